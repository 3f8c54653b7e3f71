"""What a RuntimePool becomes: pods that need no privilege, and as many of them as are needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.objects import kubernetes_node, pool
from tessera_core.api import RuntimePool
from tessera_operator.headroom import placeholders
from tessera_operator.pools import (
    DRAIN_S,
    SHUTDOWN_DELAY_S,
    Images,
    Installation,
    conflicts,
    cores_of,
    deployment,
    disruption_budget,
)

WHERE = Installation("tessera-system", Images("gpu:1", "cpu:1"))
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def pod_of(of: RuntimePool, where: Installation = WHERE) -> dict[str, Any]:
    spec: dict[str, Any] = deployment(of, 1, where)["spec"]["template"]["spec"]
    return spec


def containers(of: RuntimePool, where: Installation = WHERE) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in pod_of(of, where)["containers"]}


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_pods_are_restricted(gpus: int) -> None:
    """Pod Security Standards, profile Restricted, v1.33: each control that concerns a pod of Linux."""
    pod = pod_of(pool(gpus=gpus, trust={"allowCode": True}))
    for host in ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "initContainers"):
        assert host not in pod
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "projected", "secret"}
    for volume in pod["volumes"]:
        assert set(volume) - {"name"} <= allowed, volume
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert "privileged" not in context
        assert not any("hostPort" in port for port in container.get("ports", ()))


def test_only_the_agent_has_a_token() -> None:
    pod = pod_of(pool())
    assert pod["automountServiceAccountToken"] is False
    with_token = [
        container["name"]
        for container in pod["containers"]
        for mount in container["volumeMounts"]
        if mount["name"] == "token"
    ]
    assert with_token == ["agent"]
    mounts = {mount["name"]: mount for mount in containers(pool())["server"]["volumeMounts"]}
    assert mounts["models"]["readOnly"] is True
    assert "state" not in mounts


def test_every_mount_has_its_volume_and_every_volume_is_used() -> None:
    pod = pod_of(pool())
    volumes = [each["name"] for each in pod["volumes"]]
    assert len(volumes) == len(set(volumes))
    mounted = {
        each["name"] for container in pod["containers"] for each in container["volumeMounts"]
    }
    assert mounted == set(volumes)
    for container in pod["containers"]:
        paths = [each["mountPath"] for each in container["volumeMounts"]]
        assert len(paths) == len(set(paths))


def test_the_server_gets_all_that_the_pool_asks_for_and_the_agent_little() -> None:
    found = containers(pool(gpus=8))
    resources = {"cpu": "8", "memory": "16Gi", "nvidia.com/gpu": "8"}
    assert found["server"]["resources"] == {"requests": resources, "limits": resources}
    assert "nvidia.com/gpu" not in found["agent"]["resources"]["requests"]


@pytest.mark.parametrize(("gpus", "image"), [(0, "cpu:1"), (1, "gpu:1")])
def test_pods_with_gpus_have_the_image_that_knows_them(gpus: int, image: str) -> None:
    assert {each["image"] for each in containers(pool(gpus=gpus)).values()} == {image}


@pytest.mark.parametrize(("gpus", "seen"), [(0, None), (8, "all")])
def test_the_agent_sees_the_gpus_that_the_server_is_given(gpus: int, seen: str | None) -> None:
    environment = {
        each["name"]: each.get("value") for each in containers(pool(gpus=gpus))["agent"]["env"]
    }
    assert environment.get("NVIDIA_VISIBLE_DEVICES") == seen


def test_the_shape_of_the_nodes_is_that_of_the_pods() -> None:
    shape = {
        "selector": {"gpu": "a100"},
        "tolerations": [TOLERATION],
        "runtimeClassName": "nvidia",
        "sharedMemory": "2Gi",
    }
    pod = pod_of(pool(node=shape))
    assert pod["nodeSelector"] == {"gpu": "a100"}
    assert pod["tolerations"] == [TOLERATION]
    assert pod["runtimeClassName"] == "nvidia"
    shm = next(each for each in pod["volumes"] if each["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}


def test_what_is_not_asked_for_is_left_out() -> None:
    pod = pod_of(pool())
    for name in ("runtimeClassName", "priorityClassName", "imagePullSecrets"):
        assert name not in pod
    images = Images("gpu:1", "cpu:1", "Always", ("registry",))
    where = Installation(
        "tessera-system",
        images,
        "agents",
        "important",
        agent_args=("--log-level=debug",),
        server_args=("--workers-unconfined",),
    )
    pod = pod_of(pool(), where)
    assert pod["priorityClassName"] == "important"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["serviceAccountName"] == "agents"
    agent = containers(pool(), where)["agent"]
    assert agent["imagePullPolicy"] == "Always"
    assert agent["args"][-1] == "--log-level=debug"
    assert containers(pool(), where)["server"]["args"][-1] == "--workers-unconfined"


@pytest.mark.parametrize("allowed", [True, False])
def test_code_is_run_only_where_the_pool_allows_it(allowed: bool) -> None:
    args = containers(pool(trust={"allowCode": allowed}))["agent"]["args"]
    assert ("--allow-code" in args) is allowed


@pytest.mark.parametrize("sharing", ["Streams", "MPS"])
def test_agents_of_a_pool_under_mps_are_told(sharing: str) -> None:
    gpus = {"resources": {"nvidia.com/gpu": "8"}}
    args = containers(pool(node=gpus, sharing=sharing))["agent"]["args"]
    assert ("--mps" in args) is (sharing == "MPS")


def test_autoscalers_leave_a_new_pod_alone() -> None:
    """Until the operator has seen that nothing is there."""
    annotations = deployment(pool(), 1, WHERE)["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }


def test_one_pod_per_node_replaced_one_at_a_time() -> None:
    found = deployment(pool("p"), 3, WHERE)
    assert found["metadata"]["name"] == "tessera-runtime-p"
    assert found["spec"]["replicas"] == 3
    assert found["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    (term,) = pod_of(pool())["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    # Of any pool: all runtime pods carry this label.
    everyone = term["labelSelector"]["matchLabels"]
    labels = found["spec"]["template"]["metadata"]["labels"]
    assert everyone.items() <= labels.items()
    assert "tessera.dev/pool" not in everyone


def test_pods_on_gpus_that_nvidias_mig_manager_cuts_stay_away_from_nodes_that_it_is_to_cut() -> (
    None
):
    managed = pool(partition={"backend": "MigManager"})
    for spec in (
        pod_of(managed),
        placeholders(managed, 1, WHERE)["spec"]["template"]["spec"],
    ):
        affinity = spec["affinity"]
        assert "podAntiAffinity" in affinity
        required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (term,) = required["nodeSelectorTerms"]
        assert term == {
            "matchExpressions": [{"key": "tessera.dev/recut", "operator": "DoesNotExist"}]
        }
    for other in (pool(), pool(partition={"backend": "NVML"})):
        assert "nodeAffinity" not in pod_of(other)["affinity"]


@pytest.mark.parametrize(
    "make", [lambda of: deployment(of, 1, WHERE), lambda of: disruption_budget(of, WHERE)]
)
def test_what_selects_the_pods_of_a_pool_selects_no_others(make: Any) -> None:
    selector = make(pool("p"))["spec"]["selector"]["matchLabels"]
    own = deployment(pool("p"), 1, WHERE)["spec"]["template"]["metadata"]["labels"]
    other = deployment(pool("q"), 1, WHERE)["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= own.items()
    assert not selector.items() <= other.items()
    (owner,) = make(pool("p"))["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("RuntimePool", "p", "uid-p")


def test_a_pod_has_the_time_that_its_server_takes_to_end() -> None:
    args = containers(pool())["server"]["args"]
    assert f"--shutdown-delay={SHUTDOWN_DELAY_S}" in args
    assert f"--drain-timeout={DRAIN_S}" in args
    assert pod_of(pool())["terminationGracePeriodSeconds"] > SHUTDOWN_DELAY_S + DRAIN_S


@pytest.mark.parametrize(("cpu", "cores"), [("8", 8), ("7500m", 7), ("500m", 0), (None, 0)])
def test_cores_are_whole(cpu: str | None, cores: int) -> None:
    resources = {"memory": "1Gi", **({"cpu": cpu} if cpu else {})}
    found = pool(gpus=0, node={"resources": resources})
    assert cores_of(found) == cores
    names = {each["name"]: each.get("value") for each in containers(found)["agent"]["env"]}
    assert names.get("TESSERA_CORES", "0") == str(cores)


def aged(name: str, created: str, **selector: str) -> RuntimePool:
    document = pool(name, node={"selector": selector}).to_dict()
    document["metadata"]["creationTimestamp"] = created
    return RuntimePool.from_dict(document)


def test_a_pool_that_selects_a_node_of_an_older_one_is_in_conflict() -> None:
    old = aged("z", "2026-01-01T00:00:00Z", gpu="a100")
    new = aged("a", "2026-01-02T00:00:00Z", zone="1")
    apart = aged("b", "2026-01-03T00:00:00Z", zone="2")
    nodes = [
        kubernetes_node("n0", labels={"gpu": "a100"}),
        kubernetes_node("n1", labels={"gpu": "a100", "zone": "1"}),
        kubernetes_node("n2", labels={"zone": "2"}),
        kubernetes_node("n3"),
    ]
    assert conflicts([new, old, apart], nodes) == {"a": ("z", "n1")}


def test_pools_without_a_common_node_are_not_in_conflict() -> None:
    pools = [aged("a", "2026-01-01T00:00:00Z", x="1"), aged("b", "2026-01-02T00:00:00Z", x="2")]
    nodes = [kubernetes_node("n0", labels={"x": "1"}), kubernetes_node("n1", labels={"x": "2"})]
    assert conflicts(pools, nodes) == {}


def values(found: Any) -> Iterator[Any]:
    if isinstance(found, dict):
        for each in found.values():
            yield from values(each)
    elif isinstance(found, list | tuple):
        for each in found:
            yield from values(each)
    else:
        yield found


@pytest.mark.parametrize("gpus", [0, 2])
def test_documents_are_plain(gpus: int) -> None:
    found = (deployment(pool(gpus=gpus), 1, WHERE), disruption_budget(pool(gpus=gpus), WHERE))
    assert all(type(each) in (str, int, bool) for each in values(found))
