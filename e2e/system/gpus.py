"""GPUs on the nodes of a release: NVIDIA's library is stood in for (tests/support/nvml_stand_in.py), and models run on cores.

All else is what nodes with GPUs have: a runtime class, a resource of the node, a pool whose GPUs partitioners cut and
whose agents tell what there is. A node has one runtime pod, so the pool of processors makes room until the GPUs go again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from e2e import images
from e2e.chart import NAMESPACE as SYSTEM
from e2e.chart import Object
from e2e.native import gpu_runtime
from e2e.native.node import Machine
from e2e.system.installation import KEYS, PARTITIONER, RUNTIME, Installation, all_ready
from e2e.system.installation import pool as processors
from e2e.system.services import Service

from tessera_core.api.runtimepool import GPU_RESOURCE, PartitionBackend
from tessera_core.gpu.tables import H100_80_SXM
from tessera_operator.recutting import RECUT_AT

MODEL = H100_80_SXM
"""MIG is switched on without a reset, which is an administrator's to make."""
POOL = "gpu"
CAPABILITIES = "tessera.dev/mig-capabilities"
"""The right to use slices that are cut later, for a server and its agent: there is no driver to have it from."""
VALUES: Mapping[str, object] = {
    "image": {"runtime": {"repository": images.tag("runtime-cpu").rpartition(":")[0]}},
    "runtime": {"agentArgs": [KEYS, "--gpus-on-cores"]},
}
"""Of the chart: without GPUs there is nothing for torch to run on, and its image is of gigabytes."""
_TESTS = Path(__file__).parents[2] / "tests"
_BUILD = (
    "import pathlib, sys; from support.nvml_stand_in import build; build(pathlib.Path(sys.argv[1]))"
)
_BUILD_S, _READY_S, _GONE_S = 300, 90.0, 90.0
_FAULTS = "NVML_STAND_IN_FAULTS"
_MACHINES = count(1)
"""Numbers in the UUIDs of GPUs: no two are the same."""

Slices = Mapping[str, str]
"""UUIDs of the slices of one GPU, by place: ``3g.40gb@4``."""


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a release's nodes."""

    system: Installation

    def cuts(self) -> dict[tuple[str, str], Slices]:
        """By (node, GPU), what partitioners say that it is cut into."""
        return {
            (node["metadata"]["name"], cut["uuid"]): {
                f"{each['profile']}@{each['start']}": each["uuid"]
                for each in cut.get("slices") or ()
            }
            for node in self.system.objects("RuntimeNode")
            for cut in (node.get("status") or {}).get("cuts") or ()
        }

    def partitioner(self, node: str) -> Object:
        """The pod that cuts GPUs of ``node``."""
        pods = self.system.pods(PARTITIONER)
        (pod,) = (pod for pod in pods if pod["spec"]["nodeName"] == node)
        return pod

    def fail(self, faults: str) -> None:
        """Have the driver fail partitioners so from now on: rules as in tests/nvml/machine.c; none: it works again."""
        for node in self.system.cluster.nodes:
            gpu_runtime.change_gpus(_folder(self.system, node), {_FAULTS: faults})
        names = [each["metadata"]["name"] for each in self.system.pods(PARTITIONER)]
        self.system.kubectl("delete", "pod", *names, f"--namespace={SYSTEM}")
        self.system.wait(
            "other partitioners run",
            lambda: len(self.system.pods(PARTITIONER)) == len(names),
            _READY_S,
        )

    def change_pool(self, **partition: object) -> None:
        """Merge into what the pool says of cutting."""
        patch = json.dumps({"spec": {"partition": partition}})
        self.system.kubectl("patch", "rpool", POOL, "--type=merge", f"--patch={patch}")


def pool(gpus: int, partition: Mapping[str, object]) -> Object:
    """Both nodes with one core and all GPUs of each."""
    document = processors()
    document["metadata"]["name"] = POOL
    document["spec"]["partition"] = dict(partition)
    node = document["spec"]["node"]
    node["resources"][GPU_RESOURCE] = str(gpus)
    node["runtimeClassName"] = gpu_runtime.HANDLER
    return document


def measured(service: Service, digest: str, kind: str, memory_mib: int = 1) -> None:
    """Have the only model of ``service`` measured to take so much on slices of a ``kind``."""
    profile = next((each for each in MODEL.profiles if each.name == kind), None)
    sms = (profile.sm_count or 0) if profile is not None else MODEL.sm_count
    memory = profile.memory_mib if profile is not None else MODEL.memory_mib
    place = {"product": MODEL.products[0], "slice": kind, "smCount": sms, "memoryMiB": memory}
    name = f"{service.name}-{kind.replace('.', '-')}"
    service.system.apply(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "ModelProfile",
            "metadata": {"name": name, "namespace": service.namespace},
            "spec": {"modelDigest": digest, "deviceClass": place, "engine": "onnxruntime"},
        }
    )
    rows = [
        {
            "batch": batch,
            "instances": 1,
            "p50": f"{10 + batch}ms",
            "p99": f"{10 + batch}ms",
            "throughput": f"{1000 * batch / (10 + batch):.3f}",
            "memoryMiB": str(memory_mib),
        }
        for batch in (1, 2, 4, 8)
    ]
    service.system.kubectl(
        *("patch", "mprof", name, f"--namespace={service.namespace}", "--subresource=status"),
        *("--type=merge", f"--patch={json.dumps({'status': {'rows': rows}})}"),
    )


def environment(system: Installation, node: str) -> dict[str, str]:
    """Of a program on this machine that is to find the GPUs of ``node``."""
    return gpu_runtime.from_outside(_folder(system, node))


def library(folder: Path) -> Path:
    """The stand-in, compiled into ``folder``. Raises RuntimeError with what the compiler said."""
    paths = os.pathsep.join(filter(None, (str(_TESTS), os.environ.get("PYTHONPATH"))))
    built = subprocess.run(
        [sys.executable, "-c", _BUILD, str(folder)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=_BUILD_S,
        check=False,
    )
    if built.returncode:
        raise RuntimeError(f"the stand-in of NVML was not built: {built.stderr}")
    return folder / "libnvidia-ml.so.1"


@contextmanager
def gpus(
    system: Installation,
    folder: Path,
    partition: Mapping[str, object],
    boards: Sequence[str] = (MODEL.name, MODEL.name),
    faults: str = "",
) -> Iterator[Gpus]:
    """Give each node of a release with ``VALUES`` these GPUs, in a pool in place of that of processors.

    ``partition``: of the pool; ``folder``: an empty one, for files; ``faults``: of the driver, as in ``Gpus.fail``. When it ends all is as before; by then no service may
    be left.
    """
    stand_in, nodes = library(folder), system.cluster.nodes
    # What plans remember of GPUs that are gone is not of these.
    system.kubectl("annotate", "rnode", "--all", f"{RECUT_AT}-")
    for node, number in zip(nodes, _MACHINES, strict=False):
        machine = {
            "NVML_STAND_IN_BOARDS": ",".join(boards),
            "NVML_STAND_IN_NUMBER": str(number),
            _FAULTS: faults,
        }
        gpu_runtime.give_gpus(_folder(system, node), stand_in, machine)
        _advertise(system, node, len(boards))
    system.apply(_runtime_class())
    _replace(system, processors(), pool(len(boards), partition))
    try:
        found = Gpus(system)
        expected = len(nodes) * len(boards)
        if partition.get("backend", PartitionBackend.NVML) == PartitionBackend.NVML:
            told = "partitioners tell of GPUs"
            system.wait(told, lambda: len(found.cuts()) == expected, _READY_S)
        yield found
    finally:
        _replace(system, pool(len(boards), partition), processors())
        system.kubectl("delete", "runtimeclass", gpu_runtime.HANDLER)
        for node in nodes:
            _advertise(system, node, 0)
            gpu_runtime.take_gpus(_folder(system, node))


def _replace(system: Installation, old: Object, new: Object) -> None:
    """Have the runtime pods of another pool."""
    system.kubectl("delete", "rpool", old["metadata"]["name"])
    system.wait(
        "the pods of the pool before have ended",
        lambda: not any(system.objects("Pod", SYSTEM, each) for each in (RUNTIME, PARTITIONER)),
        _GONE_S,
    )
    system.apply(new)
    system.wait("the pool has its nodes", lambda: _has_its_pods(system), _READY_S)


def _has_its_pods(system: Installation) -> bool:
    """Whether nodes are ready by what the pods of now say."""
    pods = {pod["metadata"]["name"] for pod in system.pods(RUNTIME)}
    told = {(node.get("status") or {}).get("pod") for node in system.objects("RuntimeNode")}
    return pods <= told and len(pods) == len(system.cluster.nodes) and all_ready(system)


def _advertise(system: Installation, node: str, count: int) -> None:
    """Say that a node has so many GPUs, and what goes with them, as device plugins would.

    https://kubernetes.io/docs/tasks/administer-cluster/extended-resource-node/
    """
    there = {GPU_RESOURCE: str(count), CAPABILITIES: "2"}
    amounts = there if count else dict.fromkeys(there)
    patch = json.dumps({"status": {"capacity": amounts, "allocatable": amounts}})
    system.kubectl(
        "patch", "node", node, "--subresource=status", "--type=merge", f"--patch={patch}"
    )


def _runtime_class() -> Object:
    return {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": gpu_runtime.HANDLER},
        "handler": gpu_runtime.HANDLER,
    }


def _folder(system: Installation, node: str) -> Path:
    machine = system.cluster.node(node)
    assert isinstance(machine, Machine), "only native nodes have a runtime that gives them GPUs"
    return machine.place.folder
