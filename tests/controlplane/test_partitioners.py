"""What cuts the GPUs of a pool: pods with privilege and little else, only where the pool says so."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from support.memory_operator import WHERE, Operator
from support.objects import pool
from tessera_core.api import RuntimePool
from tessera_core.api.runtimepool import CAPABILITIES_RESOURCE
from tessera_operator.partitioners import COMMAND, PARTITIONER, daemon_set
from tessera_operator.pools import Images, Installation, deployment, is_cut_here
from tessera_runtime.partitioner import device_plugin

SET = "DaemonSet", "tessera-system", "tessera-partitioner-p"
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def nvml(**spec: Any) -> RuntimePool:
    return pool(partition={"backend": "NVML"}, **spec)


def pod_of(of: RuntimePool, where: Installation = WHERE) -> dict[str, Any]:
    spec: dict[str, Any] = daemon_set(of, where)["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize(
    ("partition", "is_so"),
    [
        ({"backend": "NVML"}, True),
        ({"backend": "MigManager"}, False),
        ({"backend": "Static"}, False),
    ],
)
def test_only_the_backend_nvml_has_partitioners(partition: dict[str, Any], is_so: bool) -> None:
    assert is_cut_here(pool(partition=partition)) == is_so
    assert not is_cut_here(pool())


def test_it_runs_where_the_pool_does_and_asks_for_no_gpu() -> None:
    selector = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    shape = {"selector": selector, "tolerations": [TOLERATION], "runtimeClassName": "nvidia"}
    pod = pod_of(nvml(node=shape))
    assert pod["nodeSelector"] == selector
    assert pod["tolerations"] == [TOLERATION]
    assert pod["runtimeClassName"] == "nvidia"
    (container,) = pod["containers"]
    for resources in container["resources"].values():
        assert set(resources) <= {"cpu", "memory"}
    told = {each["name"]: each.get("value") for each in container["env"]}
    assert told["NVIDIA_VISIBLE_DEVICES"] == told["NVIDIA_MIG_CONFIG_DEVICES"] == "all"
    assert "runtimeClassName" not in pod_of(nvml())


def test_it_has_the_privilege_to_cut_an_account_of_its_own_and_no_port() -> None:
    pod = pod_of(nvml())
    (container,) = pod["containers"]
    assert container["securityContext"]["privileged"] is True
    assert container["securityContext"]["runAsUser"] == 0
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["hostPID"] is True
    assert "hostNetwork" not in pod
    assert "ports" not in container
    assert pod["serviceAccountName"] == PARTITIONER
    assert pod["automountServiceAccountToken"] is False


def test_device_nodes_of_new_instances_are_the_hosts() -> None:
    pod = pod_of(nvml())
    of_host = {each["name"]: each["hostPath"] for each in pod["volumes"] if "hostPath" in each}
    (container,) = pod["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert of_host["dev"] == {"path": "/dev"}
    assert mounts.keys() == {each["name"] for each in pod["volumes"]}
    assert mounts["dev"] == "/dev"


def test_it_meets_the_kubelet_where_device_plugins_do() -> None:
    pod = pod_of(nvml())
    of_host = {each["name"]: each["hostPath"] for each in pod["volumes"] if "hostPath" in each}
    (container,) = pod["containers"]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert of_host["device-plugins"] == {"path": str(device_plugin.FOLDER)}
    assert mounts["device-plugins"] == str(device_plugin.FOLDER)
    assert of_host.keys() == {"dev", "device-plugins"}


def test_runtime_pods_ask_for_the_instances_that_are_cut_later_and_the_plugin_has_enough() -> None:
    pod = deployment(nvml(), 1, WHERE)["spec"]["template"]["spec"]
    asked = [each["resources"] for each in pod["containers"]]
    for resources in asked:
        assert resources["requests"][CAPABILITIES_RESOURCE] == "1"
        assert resources["limits"][CAPABILITIES_RESOURCE] == "1"
    assert len(asked) == device_plugin.COUNT
    for other in (pool(), pool(partition={"backend": "Static"})):
        pod = deployment(other, 1, WHERE)["spec"]["template"]["spec"]
        for each in pod["containers"]:
            assert CAPABILITIES_RESOURCE not in each["resources"]["requests"]


def test_it_runs_the_image_of_gpu_pods_with_the_options_of_the_installation() -> None:
    images = Images("gpu:1", "cpu:1", "Always", ("registry",))
    where = Installation(
        "tessera-system", images, priority_class="high", partitioner_args=("--patience=120",)
    )
    pod = pod_of(nvml(), where)
    (container,) = pod["containers"]
    assert (container["image"], container["imagePullPolicy"]) == ("gpu:1", "Always")
    assert (container["command"], container["args"]) == ([*COMMAND], ["--patience=120"])
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["priorityClassName"] == "high"
    assert "priorityClassName" not in pod_of(nvml())


def test_its_command_is_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tessera-partitioner", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(COMMAND[-1], run_name="__main__")
    assert ended.value.code == 0


def test_it_goes_with_its_pool() -> None:
    (owner,) = daemon_set(nvml(), WHERE)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("RuntimePool", "p", "uid-p")


def test_its_labels_are_selected() -> None:
    made = daemon_set(nvml(), WHERE)
    selected = made["spec"]["selector"]["matchLabels"]
    assert selected.items() <= made["spec"]["template"]["metadata"]["labels"].items()


def test_it_comes_with_the_pools_partition_and_goes_with_it() -> None:
    operator = Operator(nvml().to_dict(), nodes=1)
    operator.rounds(2)
    assert operator.cluster.objects[SET]["spec"] == daemon_set(nvml(), WHERE)["spec"]
    written = len(operator.cluster.calls)
    operator.rounds(3)
    assert [key for _, key in operator.cluster.calls[written:] if key == SET] == []
    operator.restart()
    operator.rounds(1)
    assert ("apply", SET) in operator.cluster.calls[written:], (
        "fields that only the last one set go"
    )
    for partition in ({"backend": "Static"}, None):
        operator.cluster.apply(nvml().to_dict())
        operator.rounds(1)
        assert SET in operator.cluster.objects
        changed = pool(partition=partition).to_dict() if partition else pool().to_dict()
        operator.cluster.apply(changed)
        operator.rounds(1)
        assert SET not in operator.cluster.objects
