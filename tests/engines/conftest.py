"""Tiny real models, exported once for the whole folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tessera_runtime.engines.base import Engine, EngineLane


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def ask() -> Callable[..., dict[str, np.ndarray]]:
    """Stage arrays in a lane, run, and copy the answer."""

    def run(lane: EngineLane, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        views = lane.stage({name: array.shape for name, array in batch.items()})
        assert views.keys() == batch.keys()
        for name, view in views.items():
            assert view.shape == batch[name].shape
            assert view.dtype == batch[name].dtype
            view[...] = batch[name]
        return {name: array.copy() for name, array in lane.run().items()}

    return run


@pytest.fixture
def closing() -> Callable[[Engine], Engine]:
    """Closes engines after the test."""
    engines: list[Engine] = []

    def keep(engine: Engine) -> Engine:
        engines.append(engine)
        return engine

    yield keep
    for engine in engines:
        engine.close()
