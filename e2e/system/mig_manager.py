"""NVIDIA's MIG manager of a node, emulated: a thread that follows the node's labels and cuts the stand-in of its GPUs.

It does what mig-parted's ``cmd/nvidia-mig-manager`` does as far as others see it: it looks when ``nvidia.com/mig.config``
changes, reads the ConfigMap that it was given, counts slices, and says how it went in ``nvidia.com/mig.config.state``. The real
one fails beside whoever has a GPU open; this one notes who was there when it began.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from e2e.chart import NAMESPACE as SYSTEM
from e2e.chart import Client, Object
from e2e.system import gpus as stand_in
from e2e.system.installation import RUNTIME, Installation

NAMESPACE, CONFIG_MAP = "gpu-operator", "tessera-mig-layouts"
ALLOWED = "tessera.dev/repartition"
CONFIG, STATE, AWAY = "nvidia.com/mig.config", "nvidia.com/mig.config.state", "tessera.dev/recut"
_LOOK_S, _CUT_S = 0.2, 60
_CUT = """
import json, sys
import pynvml
from tessera_core.gpu.geometry import place
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu

pynvml.nvmlInit()
for index, profiles in json.load(sys.stdin).items():
    uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(int(index)))
    with MigGpu(uuid) as gpu:
        cut(gpu, (), patience_s=10)
        cut(gpu, place(gpu.model, profiles), patience_s=10)
"""
"""Given, by index, the profiles of each GPU's slices. All of a GPU goes first, as mig-parted has it."""


@dataclass
class Manager:
    """Of one node."""

    system: Installation
    node: str
    fails: bool = False
    """Whether it fails on what it is asked for from now on, and touches nothing."""
    asked: list[str] = field(default_factory=list)
    """Names of layouts that it was asked for."""
    beside: list[str] = field(default_factory=list)
    """Runtime pods that were there when it began."""
    problems: list[str] = field(default_factory=list)
    """What no real one would have come across."""
    _stopped: threading.Event = field(default_factory=threading.Event)

    def labels(self) -> Mapping[str, str]:
        found = self.system.read("Node", self.node)
        assert found is not None
        labels: Mapping[str, str] = found["metadata"].get("labels") or {}
        return labels

    def run(self) -> None:
        """Until it is stopped."""
        seen = self.labels().get(CONFIG)
        while not self._stopped.wait(_LOOK_S):
            try:
                name = self.labels().get(CONFIG)
                if name is not None and name != seen:
                    seen = name
                    self._manage(name)
            except Exception as error:  # a thread has nobody to tell
                self.problems.append(repr(error))

    def allow(self) -> None:
        """Say, as an administrator, that Tessera may have the node cut."""
        self.system.kubectl("label", "node", self.node, f"{ALLOWED}=true")

    def stop(self) -> None:
        self._stopped.set()

    def _manage(self, name: str) -> None:
        self.asked.append(name)
        self._say("pending")
        self.beside += [
            pod["metadata"]["name"]
            for pod in self.system.objects("Pod", SYSTEM, RUNTIME)
            if pod["spec"].get("nodeName") == self.node
        ]
        if self.fails:
            self._say("failed")
            return
        found = self.system.read("ConfigMap", CONFIG_MAP, NAMESPACE)
        assert found is not None
        entries = yaml.safe_load(found["data"]["config.yaml"])["mig-configs"][name]
        self._say("success" if self._cut(entries) else "failed")

    def _cut(self, entries: list[dict[str, Any]]) -> bool:
        wanted = {
            index: [each for each, count in entry["mig-devices"].items() for _ in range(count)]
            for entry in entries
            if entry["mig-enabled"]
            for index in entry["devices"]
        }
        done = subprocess.run(
            [sys.executable, "-c", _CUT],
            input=json.dumps(wanted),
            env=os.environ | stand_in.environment(self.system, self.node),
            capture_output=True,
            text=True,
            timeout=_CUT_S,
            check=False,
        )
        if done.returncode:
            self.problems.append(done.stderr)
        return not done.returncode

    def _say(self, state: str) -> None:
        self.system.kubectl("label", "node", self.node, "--overwrite", f"{STATE}={state}")


def config_namespace() -> Object:
    """Where the GPU Operator is."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


@contextmanager
def managers(system: Installation) -> Iterator[dict[str, Manager]]:
    """One for each node; none may be cut yet. In the end labels are away."""
    # A connection serves one thread.
    found = {
        node: Manager(replace(system, client=Client(system.cluster.access)), node)
        for node in system.cluster.nodes
    }
    threads = [threading.Thread(target=each.run, name=each.node) for each in found.values()]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        for each in found.values():
            each.stop()
        for thread in threads:
            thread.join()
        for each in found.values():
            each.system.client.close()
        for node in found:
            gone = (f"{name}-" for name in (ALLOWED, CONFIG, STATE, AWAY))
            system.kubectl("label", "node", node, *gone)
