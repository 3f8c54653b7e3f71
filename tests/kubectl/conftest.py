from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera_core.api import ModelService

Object = dict[str, Any]


@pytest.fixture
def example() -> dict[str, list[Object]]:
    """The documents of the example cluster, by list."""
    path = Path(__file__).parents[2] / "examples" / "cluster" / "state.yaml"
    found: dict[str, list[Object]] = yaml.safe_load(path.read_text())
    return found


@pytest.fixture
def objects(example: dict[str, list[Object]]) -> list[Object]:
    """All of them, the GPU cut already: nothing in a cluster cuts one."""
    (gpu,) = example["nodes"][0]["status"]["devices"]
    starts = (("2g.20gb", 0), ("2g.20gb", 2), ("3g.40gb", 4))
    gpu["migMode"] = "Enabled"
    gpu["slices"] = [
        {"uuid": f"MIG-{start}", "profile": profile, "start": start} for profile, start in starts
    ]
    return [each for name in ("pools", "nodes", "services", "profiles") for each in example[name]]


@pytest.fixture
def service_with(example: dict[str, list[Object]]) -> Callable[..., ModelService]:
    """The service vision.quality with a status."""

    def make(generation: int | None = None, **status: object) -> ModelService:
        document = copy.deepcopy(example["services"][0])
        document["status"] = status
        if generation is not None:
            document["metadata"]["generation"] = generation
        return ModelService.from_dict(document)

    return make
