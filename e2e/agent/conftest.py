"""One API server with the CRD for all tests of an agent; each has a pod and a store of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from e2e.agent.pod import Kubectl, Pod, until
from e2e.agent.store import Store, model_store
from e2e.api import Api
from e2e.native.control_plane import ControlPlane

CRDS = Path(__file__).parents[2] / "crds"
AGENT = "agent"
RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: agent}
rules:
- {apiGroups: [tessera.dev], resources: [runtimenodes], verbs: [get, watch]}
- {apiGroups: [tessera.dev], resources: [runtimenodes/status], verbs: [patch]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: agent}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: agent}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: tessera-model-credentials}
rules: [{apiGroups: [""], resources: [secrets], verbs: [get]}]
---
{apiVersion: v1, kind: Namespace, metadata: {name: vision}}
"""


@pytest.fixture(scope="package")
def plane(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("agent-cluster")
    found = ControlPlane(binaries, folder, users={AGENT: ()})
    with found.running():
        yield found


@pytest.fixture(scope="package")
def kubectl(binaries: Path, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    config = api.access.kubeconfig(tmp_path_factory.mktemp("admin") / "kubeconfig")
    found = Kubectl(binaries / "kubectl", config)
    found.apply(RIGHTS)
    return found


@pytest.fixture(scope="package")
def api(plane: ControlPlane) -> Iterator[Api]:
    found = Api(plane.access())
    crd = yaml.safe_load((CRDS / "tessera.dev_runtimenodes.yaml").read_text())
    found.create(crd)
    until(lambda: "Established" in str(found.read(crd).get("status")), "the CRD")
    yield found
    found.close()


@pytest.fixture
def store() -> Iterator[Store]:
    with model_store() as found:
        yield found


@pytest.fixture
def pod(
    plane: ControlPlane,
    api: Api,
    kubectl: Kubectl,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Pod]:
    name = request.node.name.replace("_", "-").removeprefix("test-")[:40].strip("-[]")
    found = Pod(api, kubectl, plane.access(AGENT).token, tmp_path, name)
    yield found
    found.close()
