"""One API server for the whole run, with the CRDs in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from e2e.api import Api
from e2e.native.build import kubernetes
from e2e.native.control_plane import control_plane

_CRDS = Path(__file__).parents[1] / "crds"
_ESTABLISHED_S = 30


@pytest.fixture(scope="session")
def binaries() -> Path:
    return kubernetes()


@pytest.fixture(scope="session")
def api(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with control_plane(binaries, tmp_path_factory.mktemp("cluster")) as access:
        api = Api(access)
        for name in ("default", "vision"):
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            if name != "default":
                api.create(namespace)
        for path in sorted(_CRDS.glob("*.yaml")):
            _install(api, yaml.safe_load(path.read_text()))
        yield api
        api.close()


def _install(api: Api, crd: dict[str, object]) -> None:
    api.create(crd)
    deadline = time.monotonic() + _ESTABLISHED_S
    while True:
        conditions = {
            each["type"]: each
            for each in (api.read(crd).get("status") or {}).get("conditions") or ()
        }
        assert "NonStructuralSchema" not in conditions, conditions
        if conditions.get("Established", {}).get("status") == "True":
            return
        assert time.monotonic() < deadline, conditions
        time.sleep(0.05)
