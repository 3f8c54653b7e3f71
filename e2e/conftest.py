"""One API server with the CRDs in it, one cluster of two nodes, and Tessera installed on that cluster.

Each is made when the first test needs it, and serves the whole run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import yaml
from e2e.api import Api
from e2e.environment import Cluster, Unavailable, choose
from e2e.faults.fixtures import agents as agents
from e2e.faults.fixtures import operators as operators
from e2e.faults.fixtures import proxy as proxy
from e2e.faults.fixtures import scene as scene
from e2e.faults.fixtures import stage as stage
from e2e.native.build import kubernetes
from e2e.native.control_plane import control_plane
from e2e.system import gpus
from e2e.system.installation import Installation, installation
from e2e.system.installation import namespace as one_namespace

_HERE = Path(__file__).parent
_CRDS = _HERE.parent / "crds"
_TEST_S = 120
_OF_RELEASE = (
    "test_drift.py",
    "test_recutting.py",
    "test_mig_manager_cuts.py",
    "test_measuring_cuts.py",
    "test_gpu_health.py",
    "test_helm_life_cycle.py",
    "test_tls.py",
    "test_uninstall.py",
)
"""What shares one release, in this order: once TLS is on it stays on, and in the end the release is gone."""

SaidAloud = Callable[[], AbstractContextManager[None]]
_ESTABLISHED_S = 30


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Limits are on tests, not on what the first of them waits for: a build may take minutes.

    Those that change the second release come last, in their order.
    """
    items.sort(key=lambda item: _OF_RELEASE.index(item.path.name) if _shares_release(item) else -1)
    for item in items:
        if item.path.is_relative_to(_HERE) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_TEST_S, func_only=True))


def _shares_release(item: pytest.Item) -> bool:
    return item.path.parent == _HERE and item.path.name in _OF_RELEASE


@pytest.fixture(scope="session")
def said_aloud(request: pytest.FixtureRequest) -> SaidAloud:
    """A context in which what is printed is seen at once: what takes minutes says so."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    aloud: SaidAloud = capture.global_and_fixture_disabled
    return aloud


@pytest.fixture(scope="session")
def binaries(said_aloud: SaidAloud) -> Path:
    with said_aloud():
        return kubernetes()


@pytest.fixture(scope="session")
def cluster(
    said_aloud: SaidAloud,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    try:
        with said_aloud():
            environment = choose()
            environment.prepare()
    except Unavailable as reason:
        pytest.skip(str(reason))
    with environment.cluster(tmp_path_factory.mktemp("nodes")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def installed(
    cluster: Cluster, said_aloud: SaidAloud, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """Tessera on the cluster, with a pool of both nodes."""
    if cluster.host is None:
        pytest.skip("this machine reaches no ClusterIP of that cluster: TESSERA_E2E=native does")
    with ExitStack() as stack:
        with said_aloud():
            found = stack.enter_context(installation(cluster, tmp_path_factory.mktemp("release")))
        yield found


@pytest.fixture(scope="session")
def release(
    said_aloud: SaidAloud, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """Tessera on another cluster, which tests may change and take away. What lasts is recorded sooner than elsewhere."""
    try:
        environment = choose()
        environment.prepare()
    except Unavailable as reason:
        pytest.skip(str(reason))
    nodes, folder = (tmp_path_factory.mktemp(name) for name in ("release-nodes", "release"))
    with ExitStack() as stack:
        with said_aloud():
            cluster = stack.enter_context(environment.cluster(nodes))
            if cluster.host is None:
                pytest.skip(
                    "this machine reaches no ClusterIP of that cluster: TESSERA_E2E=native does"
                )
            soon = {"driftAfter": "20s"}
            found = stack.enter_context(installation(cluster, folder, config=soon, **gpus.VALUES))
        yield found


@pytest.fixture
def namespace(installed: Installation, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, empty again when it ends."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")
    with one_namespace(installed, name[:50].strip("-")) as found:
        yield found


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
