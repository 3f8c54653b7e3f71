"""Tessera as a user has it: the chart installed on a cluster of two nodes, a pool of processors, a model store.

One installation is shared by all tests; each has a namespace of its own, which is empty again when it ends. What is
waited for says, when it does not come, what the system knew by then: objects, events and the end of the logs.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from e2e import images
from e2e.chart import CHART, Client, Object, Refused, helm
from e2e.chart import NAMESPACE as SYSTEM
from e2e.environment import Cluster
from e2e.system.services import Service
from e2e.system.store import Store, store

T = TypeVar("T")

EXAMPLES = Path(__file__).parents[2] / "examples" / "kubernetes"
RUNTIME = "app.kubernetes.io/name=tessera-runtime"
ACTIVATOR = "app.kubernetes.io/name=tessera-activator"
PARTITIONER = "app.kubernetes.io/name=tessera-partitioner"
OPERATOR = "app.kubernetes.io/name=tessera-operator"
_PATHS = {
    "APIService": ("apis/apiregistration.k8s.io/v1", "apiservices"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "Event": ("api/v1", "events"),
    "EndpointSlice": ("apis/discovery.k8s.io/v1", "endpointslices"),
    "HorizontalPodAutoscaler": ("apis/autoscaling/v2", "horizontalpodautoscalers"),
    "Node": ("api/v1", "nodes"),
    "Pod": ("api/v1", "pods"),
    "Service": ("api/v1", "services"),
    "ModelProfile": ("apis/tessera.dev/v1alpha1", "modelprofiles"),
    "ModelService": ("apis/tessera.dev/v1alpha1", "modelservices"),
    "PlacementPlan": ("apis/tessera.dev/v1alpha1", "placementplans"),
    "RuntimeNode": ("apis/tessera.dev/v1alpha1", "runtimenodes"),
    "RuntimePool": ("apis/tessera.dev/v1alpha1", "runtimepools"),
}
_POLL_S = 0.1
KEYS = "--keys-interval=5"
"""Of agents, seconds between two looks at Secrets of keys: tests change them, and wait until it is noticed."""
_INSTALL_S = 180
_READY_S = 90.0
_RESTART_S = 90.0
"""A server goes on for some seconds and then drains."""
_GONE_S = 90.0
_LOG_LINES = 40
_SHOWN = "msvc,rpool,rnode,mprof,pplan"


@dataclass
class Installation:
    """The release and its pool, seen by the cluster's administrator."""

    cluster: Cluster
    store: Store
    client: Client
    values: tuple[Path, ...] = ()
    """Files of chart values beyond those of the quick start."""

    # What there is

    def read(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """None where there is no such object. Raises OSError while the API server does not answer."""
        try:
            return self._get(f"{_folder(kind, namespace)}/{name}")
        except Refused as refused:
            if refused.code == 404:
                return None
            raise

    def objects(self, kind: str, namespace: str = "", selector: str = "") -> list[Object]:
        """All of a kind, of all namespaces where none is named; ``selector`` as in ``a=b,c=d``."""
        query = f"?labelSelector={selector.replace('=', '%3D').replace(',', '%2C')}"
        found: list[Object] = self._get(_folder(kind, namespace) + query * bool(selector))["items"]
        return found

    def pods(self, selector: str) -> list[Object]:
        """The release's pods that run and are not about to end."""
        return [
            pod
            for pod in self.objects("Pod", SYSTEM, selector)
            if pod["status"].get("phase") == "Running"
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def runtime_pod(self, node: str) -> Object:
        """The runtime pod of a node."""
        (pod,) = (pod for pod in self.pods(RUNTIME) if pod["spec"]["nodeName"] == node)
        return pod

    # What is done to it

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl(*arguments, stdin=stdin)

    def apply(self, *documents: Object) -> None:
        self.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(documents))

    def upgrade(self, folder: Path, **values: object) -> None:
        """Change values of the chart; returns when its own Deployments run with them. ``folder``: for a file."""
        changed = folder / "changed.yaml"
        changed.write_text(yaml.safe_dump(values))
        helm(
            *("upgrade", "tessera", str(CHART), f"--namespace={SYSTEM}", "--reuse-values"),
            *(f"--values={each}" for each in (*self.values, changed)),
            *("--wait", f"--timeout={_INSTALL_S}s"),
            kubeconfig=self.cluster.kubeconfig,
        )

    def service(self, namespace: str, name: str) -> Service:
        """A handle; the object need not be there."""
        return Service(self, namespace, name)

    def restart(self, pod: Object, container: str, signal: str = "SIGKILL") -> None:
        """End the first process of a container; returns when the kubelet has started it again."""
        before = self.container(pod, container)
        node = self.cluster.node(pod["spec"]["nodeName"])
        node.signal_container(before["containerID"], signal)

        def is_back() -> bool:
            now = self.container(pod, container)
            return bool(now["restartCount"] > before["restartCount"] and "running" in now["state"])

        self.wait(f"{container} of {pod['metadata']['name']} runs again", is_back, _RESTART_S)

    def container(self, pod: Object, name: str) -> Object:
        """The present status of one container."""
        found = self.read("Pod", pod["metadata"]["name"], SYSTEM)
        assert found is not None, f"{pod['metadata']['name']} is gone"
        (status,) = (each for each in found["status"]["containerStatuses"] if each["name"] == name)
        return dict(status)

    # What is waited for

    def wait(self, what: str, ready: Callable[[], T], timeout_s: float = 60.0) -> T:
        """The first result of ``ready`` that is true. Fails with all that is known when time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            problem: Exception | None = None
            try:
                if found := ready():
                    return found
            except (OSError, http.client.HTTPException) as error:
                problem = error
            if time.monotonic() > deadline:
                said = f" ({problem})" if problem else ""
                raise AssertionError(f"{what}: not within {timeout_s} s{said}\n{self.report()}")
            time.sleep(_POLL_S)

    def report(self) -> str:
        """The state of everything, for whoever reads why a test failed."""
        logs = ("logs", f"--namespace={SYSTEM}", f"--tail={_LOG_LINES}", "--prefix")
        wanted: dict[str, Sequence[str]] = {
            "objects": ("get", _SHOWN, "--all-namespaces"),
            "conditions": ("get", "msvc", "--all-namespaces", f"--output=jsonpath={_CONDITIONS}"),
            "nodes": ("get", "rnode", f"--output=jsonpath={_TOLD}"),
            "plans": ("get", "pplan", f"--output=jsonpath={_PLANS}"),
            "pods": ("get", "pods", "--all-namespaces", "--output=wide"),
            "events": ("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"),
            "operator": (*logs, f"--selector={OPERATOR}"),
            "agents": (*logs, f"--selector={RUNTIME}", "--container=agent"),
            "servers": (*logs, f"--selector={RUNTIME}", "--container=server"),
            "partitioners": (*logs, f"--selector={PARTITIONER}"),
            "activators": (*logs, f"--selector={ACTIVATOR}", "--all-containers"),
        }
        parts = []
        for name, arguments in wanted.items():
            try:
                lines = self.kubectl("--request-timeout=10s", *arguments).splitlines()
            except RuntimeError as error:
                lines = [str(error)]
            parts += [f"--- {name}", *lines[-3 * _LOG_LINES :]]
        return "\n".join(parts)

    def tables(self) -> str:
        """What ``kubectl get`` shows of every kind."""
        return self.kubectl("get", _SHOWN, "--all-namespaces")

    def _get(self, path: str) -> Object:
        try:
            return self.client.call("GET", path)
        except (OSError, http.client.HTTPException):
            self.client.close()  # the next call opens another connection
            raise


_CONDITIONS = (
    '{range .items[*]}{.metadata.namespace}/{.metadata.name}{"\\n"}{range .status.conditions[*]}'
    '{"  "}{.type}={.status} {.reason} {.message}{"\\n"}{end}{end}'
)
_PLANS = '{range .items[*]}{.metadata.name} {.spec.diff}{"\\n"}  {.status}{"\\n"}{end}'
_TOLD = (
    "{range .items[*]}{.metadata.name} told {.spec.devices[*].instances} has "
    '{.status.devices[*].instances} serves {.status.services}{"\\n"}{end}'
)


@contextmanager
def installation(cluster: Cluster, folder: Path, **values: object) -> Iterator[Installation]:
    """Install the chart with images of the present sources, and a pool of both nodes with one core each.

    ``values``: of the chart, over those of the quick start and what the cluster needs.
    """
    assert cluster.host is not None, "this machine is not in the cluster's network"
    for archive in images.build(("operator", "runtime-cpu")).values():
        cluster.load_image(archive)
    client = Client(cluster.access)
    with store(cluster.host) as models:
        files = (folder / "values.yaml", folder / "further.yaml")
        for file, content in zip(files, (_values(cluster, models), values), strict=True):
            file.write_text(yaml.safe_dump(content))
        helm(
            *("install", "tessera", str(CHART), f"--namespace={SYSTEM}", "--create-namespace"),
            *(f"--values={each}" for each in (EXAMPLES / "values.yaml", *files)),
            *("--wait", f"--timeout={_INSTALL_S}s"),
            kubeconfig=cluster.kubeconfig,
        )
        found = Installation(cluster, models, client, files)
        found.apply(pool())
        found.wait("the pool has its nodes", lambda: all_ready(found), _READY_S)
        yield found
    client.close()


def pool() -> Object:
    """The RuntimePool of the quick start: one core of both nodes."""
    document: Object = yaml.safe_load((EXAMPLES / "cpu-pool.yaml").read_text())
    return document


@contextmanager
def namespace(system: Installation, name: str) -> Iterator[str]:
    """A namespace for one test. When it ends, its services drain and go, and their instances with them."""
    system.kubectl("create", "namespace", name)
    yield name
    system.kubectl("delete", "msvc", "--all", f"--namespace={name}", "--wait=false")
    system.wait(
        f"the services of {name} go",
        lambda: not system.objects("ModelService", name) and not _running(system, name),
        _GONE_S,
    )
    system.kubectl("delete", "namespace", name, "--wait=false")


def _running(system: Installation, namespace: str) -> list[str]:
    """What of a namespace nodes have or are told to have."""
    return [
        instance["service"]
        for node in system.objects("RuntimeNode")
        for part in (node["spec"], node.get("status") or {})
        for device in part.get("devices") or ()
        for instance in device.get("instances") or ()
        if instance["service"].startswith(f"{namespace}.")
    ]


def all_ready(system: Installation) -> bool:
    """Whether the agents of all nodes say that they serve."""
    ready = {
        node["metadata"]["name"]
        for node in system.objects("RuntimeNode")
        for condition in (node.get("status") or {}).get("conditions") or ()
        if condition["type"] == "Ready" and condition["status"] == "True"
    }
    return ready.issuperset(system.cluster.nodes)


def _values(cluster: Cluster, models: Store) -> Mapping[str, object]:
    def image(name: str) -> Mapping[str, str]:
        repository, _, tag = images.tag(name).rpartition(":")
        return {"repository": repository, "tag": tag, "pullPolicy": "Never"}

    port = int(cluster.access.url.rpartition(":")[2])
    return {
        "image": {
            "operator": image("operator"),
            "runtime": image("runtime"),
            "runtimeCpu": image("runtime-cpu"),
        },
        "config": {"modelPrefixes": {"default": [models.prefix]}},
        "runtime": {"agentArgs": [KEYS]},
        "networkPolicy": {
            "apiServer": {"ports": sorted({443, 6443, port})},
            "modelStores": {"ports": [8080, models.port]},
        },
    }


def _folder(kind: str, namespace: str) -> str:
    group, plural = _PATHS[kind]
    return f"/{group}/{f'namespaces/{namespace}/' if namespace else ''}{plural}"
