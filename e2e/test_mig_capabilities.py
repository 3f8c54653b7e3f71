"""Device nodes of instances that are cut later: the partitioner as a device plugin of a real kubelet.

No GPU is needed: the nodes are of the kernel's driver macvtap, whose devices come and go as MIG instances do, and a folder
says what NVIDIA's driver would in /proc. An interface that is made while a container runs is an instance that is cut
meanwhile: what opens its node fails before, and not after.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from e2e import images
from e2e.environment import Cluster
from e2e.native.processes import run, wait_until

NAMESPACE = "mig-capabilities"
RESOURCE = "tessera.dev/mig-capabilities-tried"
"""Not that of partitioners: for minutes after a plugin has gone the kubelet says that there is nothing of its resource, and
other tests of the same nodes have theirs without one."""
DRIVER = "macvtap"
RIGHTS = 8 * 15 * (1 + 8)
"""Of eight GPUs: 15 GPU instances each, with up to 8 compute instances."""
WITHIN_S = 60.0
_LOWER, _OTHER, _CUT = "tessera-low", "tessera-other", "tessera-cut"

PLUGIN = """
import asyncio, logging, shutil, signal, sys
from pathlib import Path
from tessera_runtime.partitioner import device_plugin
from tessera_runtime.partitioner.capability_nodes import Machine

device_plugin.CAPABILITIES_RESOURCE = sys.argv[1]

async def main():
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    machine = Machine(Path("/of-driver"), Path("/dev/tessera-e2e"))
    machine.dev.mkdir(exist_ok=True)
    plugin = asyncio.create_task(device_plugin.DevicePlugin(machine).run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, plugin.cancel)
    try:
        await plugin
    except asyncio.CancelledError:
        shutil.rmtree(machine.dev)

asyncio.run(main())
"""
"""The partitioner's device plugin, on another machine's /proc."""

OPENED = """
import errno, json, os
folder, found = "/dev/nvidia-caps", {}
for name in os.listdir(folder) if os.path.isdir(folder) else ():
    try:
        os.close(os.open(f"{folder}/{name}", os.O_RDONLY))
        found[name] = "opened"
    except OSError as error:
        found[name] = errno.errorcode[error.errno]
print(json.dumps(found))
"""


def of_driver(major: int) -> dict[str, str]:
    """Files below /proc. All rights are of one GPU here, and begin with the first minor of the driver that stands in."""
    minors = "".join(f"gpu0/gi{minor}/access {minor}\n" for minor in range(1, RIGHTS + 1))
    privileges = f"config {RIGHTS + 1}\nmonitor {RIGHTS + 2}\n"
    return {
        "devices": f"Character devices:\n{major} nvidia-caps\n\nBlock devices:\n",
        "driver/nvidia/gpus/0000:07:00.0/information": "Device Minor: \t 0\n",
        "driver/nvidia-caps/mig-minors": privileges + minors,
    }


def plugin_pod(node: str, files: dict[str, str]) -> list[dict[str, Any]]:
    """As privileged as a partitioner, on ``node``."""
    keys = {f"file-{number}": path for number, path in enumerate(files)}
    mounts = {"dev": "/dev", "device-plugins": "/var/lib/kubelet/device-plugins"}
    container = {
        "name": "plugin",
        "image": images.tag("runtime-cpu"),
        "imagePullPolicy": "Never",
        "command": ["python", "-c", PLUGIN, RESOURCE],
        "securityContext": {"privileged": True, "runAsUser": 0, "runAsGroup": 0},
        "volumeMounts": [
            {"name": "of-driver", "mountPath": "/of-driver"},
            *({"name": name, "mountPath": path} for name, path in mounts.items()),
        ],
    }
    items = [{"key": key, "path": path} for key, path in keys.items()]
    volumes = [
        {"name": "of-driver", "configMap": {"name": "of-driver", "items": items}},
        *({"name": name, "hostPath": {"path": path}} for name, path in mounts.items()),
    ]
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "of-driver", "namespace": NAMESPACE},
            "data": {key: files[path] for key, path in keys.items()},
        },
        pod("plugin", 20, {"nodeName": node, "containers": [container], "volumes": volumes}),
    ]


def idle_pod(name: str, node: str, **limits: str) -> dict[str, Any]:
    """Restricted as a runtime pod is."""
    container = {
        "name": "server",
        "image": images.tag("runtime-cpu"),
        "imagePullPolicy": "Never",
        "command": ["python", "-c", "import signal; signal.pause()"],
        "resources": {"limits": limits},
        "securityContext": {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    selector = {"kubernetes.io/hostname": node}
    return pod(name, 1, {"nodeSelector": selector, "containers": [container]})


def pod(name: str, grace_s: int, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"terminationGracePeriodSeconds": grace_s, **spec},
    }


@dataclass(frozen=True, slots=True)
class Scene:
    cluster: Cluster
    node: str
    """Where the plugin is."""

    def start(self, *documents: dict[str, Any]) -> None:
        """Returns when the pods run."""
        self.cluster.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(documents))
        for each in documents:
            if each["kind"] == "Pod":
                name = each["metadata"]["name"]
                self.wait(lambda name=name: self.runs(name), f"{name} runs")  # type: ignore[misc]

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        try:
            wait_until(ready, WITHIN_S, what)
        except RuntimeError as error:
            said = self.kubectl("describe", "pods"), self.kubectl("logs", "plugin")
            raise AssertionError("\n".join((str(error), *said))) from error

    def runs(self, name: str) -> bool:
        return bool(self.status(name).get("phase") == "Running")

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", "pod", name, "--output=json"))
        return found["status"]  # type: ignore[no-any-return]

    def allocatable(self) -> str | None:
        found = json.loads(self.cluster.kubectl("get", "node", self.node, "--output=json"))
        value: str | None = found["status"]["allocatable"].get(RESOURCE)
        return value

    def opened(self, name: str) -> dict[str, str]:
        """What becomes of each node that a pod has when it opens it."""
        said = self.kubectl("exec", name, "--", "python", "-c", OPENED)
        found: dict[str, str] = json.loads(said)
        return found

    def kubectl(self, *arguments: str) -> str:
        return self.cluster.kubectl(f"--namespace={NAMESPACE}", *arguments)


def cut() -> tuple[int, int]:
    """Major and minor of a device that is there from now on."""
    run("ip", "link", "add", "link", _LOWER, "name", _CUT, "type", DRIVER)
    [device] = Path(f"/sys/class/net/{_CUT}/{DRIVER}").glob("*/dev")
    major, _, minor = device.read_text().strip().partition(":")
    return int(major), int(minor)


def take_away() -> None:
    run("ip", "link", "delete", _CUT)


@pytest.fixture(scope="module")
def major() -> Iterator[int]:
    """Of the driver whose devices come and go."""
    try:
        run("ip", "link", "delete", _LOWER)
    except (OSError, RuntimeError):
        pass  # no earlier run was killed
    try:
        run("ip", "link", "add", _LOWER, "type", "veth", "peer", "name", _OTHER)
    except (OSError, RuntimeError) as error:
        pytest.skip(f"no network interfaces can be made: {error}")
    try:
        try:
            found, _ = cut()
            take_away()
        except RuntimeError as error:
            pytest.skip(f"no devices that come and go: this kernel has no {DRIVER} ({error})")
        yield found
    finally:
        run("ip", "link", "delete", _LOWER)


@pytest.fixture(scope="module")
def scene(cluster: Cluster, major: int) -> Iterator[Scene]:
    cluster.load_image(images.build(("runtime-cpu",))["runtime-cpu"])
    made = Scene(cluster, cluster.nodes[0])
    # Kubelets that share a machine share the folder of device plugins, and it is that of the last one that started.
    cluster.node(made.node).stop_kubelet()
    cluster.node(made.node).start_kubelet()
    cluster.kubectl("create", "namespace", NAMESPACE)
    try:
        made.start(*plugin_pod(made.node, of_driver(major)))
        made.wait(lambda: made.allocatable() == "2", f"{made.node} has the resource")
        yield made
    finally:
        made.kubectl("delete", "pods", "--all")  # the plugin takes its nodes away
        cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def test_who_asks_has_a_node_for_every_instance_that_there_can_be(scene: Scene) -> None:
    scene.start(idle_pod("asks", scene.node, **{RESOURCE: "1"}), idle_pod("other", scene.node))
    assert scene.opened("asks").keys() == {f"nvidia-cap{minor}" for minor in range(1, RIGHTS + 1)}
    assert scene.opened("other") == {}


def test_a_node_made_before_the_cut_is_of_the_instance_that_comes(scene: Scene) -> None:
    scene.start(idle_pod("serves", scene.node, **{RESOURCE: "1"}))
    before = scene.opened("serves")
    _, minor = cut()
    name = f"nvidia-cap{minor}"
    try:
        assert before[name] == "ENODEV", "nothing is there, and who may open it is told so"
        assert scene.opened("serves") == {**before, name: "opened"}
    finally:
        take_away()
    assert scene.opened("serves") == before
    [container] = scene.status("serves")["containerStatuses"]
    assert container["restartCount"] == 0


def test_the_plugin_outlives_the_kubelet(scene: Scene) -> None:
    node = scene.cluster.node(scene.node)
    registrations = registered(scene)
    node.stop_kubelet()
    node.start_kubelet()
    scene.wait(lambda: said(scene, registered) > registrations, "the plugin registers again")
    scene.wait(lambda: scene.allocatable() == "2", f"{scene.node} has the resource again")
    scene.kubectl("delete", "pod", "--ignore-not-found", "asks", "serves")
    scene.start(idle_pod("later", scene.node, **{RESOURCE: "1"}))
    assert len(scene.opened("later")) == RIGHTS
    [container] = scene.status("plugin")["containerStatuses"]
    assert container["restartCount"] == 0


def registered(scene: Scene) -> int:
    return len(re.findall(f"registered {RESOURCE}", scene.kubectl("logs", "plugin")))


def said(scene: Scene, count: Callable[[Scene], int]) -> int:
    """0 while the kubelet hands out no logs."""
    try:
        return count(scene)
    except RuntimeError:
        return 0
