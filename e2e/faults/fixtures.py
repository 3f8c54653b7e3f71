"""What tests of the operator's faults begin with: e2e/conftest.py has them for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from e2e.faults.agents import Agents
from e2e.faults.operators import SETTINGS, Operator
from e2e.faults.proxy import Proxy
from e2e.faults.scene import NODES, Scene
from e2e.native.control_plane import ControlPlane

Operators = Callable[..., Operator]
"""Start the operator: ``operators(name, proxy, settings)``."""


@pytest.fixture(scope="session")
def stage(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """An API server with the CRDs, for all that need no nodes."""
    plane = ControlPlane(binaries, tmp_path_factory.mktemp("scene"))
    with plane.running():
        scene = Scene(plane)
        scene.prepare()
        yield scene
        scene.kube.close()


@pytest.fixture
def scene(stage: Scene) -> Iterator[Scene]:
    """A pool of three nodes and nothing else."""
    stage.clear()
    stage.populate()
    yield stage
    stage.clear()


@pytest.fixture
def agents(scene: Scene) -> Iterator[Agents]:
    with Agents(scene.kube, NODES) as agents:
        yield agents


@pytest.fixture
def proxy(scene: Scene) -> Iterator[Proxy]:
    with Proxy(scene.plane.access()).running() as proxy:
        yield proxy


@pytest.fixture
def operators(proxy: Proxy, tmp_path: Path) -> Iterator[Operators]:
    """Operators that end with the test, and then tell what they had to say."""
    with ExitStack() as stack:
        started: list[Operator] = []

        def start(
            name: str = "operator-1", through: Proxy = proxy, settings: str = SETTINGS
        ) -> Operator:
            kubeconfig = through.kubeconfig(tmp_path / f"{name}.kubeconfig")
            started.append(stack.enter_context(Operator(kubeconfig, tmp_path, name, settings)))
            return started[-1]

        yield start
        for name, tail in {each.name: each.tail() for each in started}.items():
            print(f"{name}:\n{tail}")
