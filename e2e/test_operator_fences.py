"""What the chart's policies let the operator and tenants do, on a real API server."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.chart import NAMESPACE, Client, Object, named, rendered
from e2e.system.fences import (
    GPU_OPERATOR,
    MIG_CONFIG,
    OURS,
    REPARTITION,
    SUCCESS,
    Installed,
    daemon_set,
    endpoints,
    fences,
    node_object,
    plan,
    refusal,
    runtime_node,
    service,
    status_of,
)


@pytest.fixture(scope="module")
def installed(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    with fences(binaries, tmp_path_factory.mktemp("fences")) as found:
        yield found


def test_the_operator_runs_partitioners(installed: Installed) -> None:
    installed.operator.apply(daemon_set())
    installed.operator.delete(daemon_set())


@pytest.mark.parametrize(
    "change",
    [
        {"image": "elsewhere/tessera-runtime:1"},
        {"command": ["sh", "-c", "true"]},
        {"livenessProbe": {"exec": {"command": ["true"]}}},
        {"lifecycle": {"postStart": {"exec": {"command": ["true"]}}}},
        {"env": [{"name": "PYTHONPATH", "value": "/elsewhere"}]},
        {"args": ["--api-server=https://elsewhere"]},
        {"workingDir": "/elsewhere"},
        {"of_host": "/"},
        {"of_host": "/var/lib/kubelet"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_operator_gives_nothing_else_privilege(
    installed: Installed, change: dict[str, Any]
) -> None:
    said = refusal(lambda: installed.operator.apply(daemon_set(**change)))
    assert "partitioners of the chart's image, and run nothing else" in said


@pytest.mark.parametrize(
    "spec",
    [
        {"hostPID": True},
        {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]},
        {"containers": [{"name": "a", "image": "b", "securityContext": {"privileged": True}}]},
    ],
    ids=lambda spec: next(iter(spec)),
)
def test_the_operators_deployments_have_no_privilege(
    installed: Installed, spec: dict[str, Any]
) -> None:
    labels = {"app.kubernetes.io/name": "tessera-runtime"}
    document = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "tessera-runtime-gpu", "namespace": NAMESPACE},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "a", "image": "b"}], **spec},
            },
        },
    }
    said = refusal(lambda: installed.operator.apply(document))
    assert "the operator's Deployments have no privilege" in said


def test_the_operator_gives_no_pod_another_image(installed: Installed) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "tessera-partitioner-1", "namespace": NAMESPACE},
    }
    installed.operator.merge(pod, {"metadata": {"annotations": {"example.com/a": "b"}}})
    changed = {"spec": {"containers": [{"name": "agent", "image": "elsewhere"}]}}
    said = refusal(lambda: installed.operator.merge(pod, changed))
    assert "the operator changes the metadata of pods, nothing else" in said


def test_the_operator_places(installed: Installed) -> None:
    operator = installed.operator
    operator.apply(runtime_node("node-3"))
    operator.apply(runtime_node("node-3", planRef={"name": "0bbb"}))
    operator.apply(plan("0bbb"))
    applied = {**plan("0bbb"), "status": {"conditions": []}}
    del applied["spec"]
    operator.apply(applied, "status")
    operator.delete(plan("0bbb"))
    operator.delete(runtime_node("node-3"))


TENANT_ATTEMPTS: dict[str, Callable[[Client], object]] = {
    "create a node": lambda tenant: tenant.create(runtime_node("node-9")),
    "change a spec": lambda tenant: tenant.merge(runtime_node("node-1"), {"spec": {"epoch": 2}}),
    "change a label": lambda tenant: tenant.merge(
        runtime_node("node-1"), {"metadata": {"labels": {"a": "b"}}}
    ),
    "write a status": lambda tenant: tenant.apply(status_of("node-1"), "status"),
    "delete a node": lambda tenant: tenant.delete(runtime_node("node-1")),
    "create a plan": lambda tenant: tenant.create(plan("0ccc")),
    "delete a plan": lambda tenant: tenant.delete(plan()),
    "raise the epoch": lambda tenant: tenant.merge(plan(), {"spec": {"epoch": 9}}),
    "approve and more": lambda tenant: tenant.merge(
        plan(), {"spec": {"approved": True, "epoch": 9}}
    ),
    "hold a plan": lambda tenant: tenant.merge(
        plan(), {"metadata": {"finalizers": ["example.com/hold"]}}
    ),
    "say that a plan is applied": lambda tenant: tenant.apply(
        {**{key: value for key, value in plan().items() if key != "spec"}, "status": {}}, "status"
    ),
}


@pytest.mark.parametrize("attempt", TENANT_ATTEMPTS)
def test_a_tenant_with_every_right_places_nothing(installed: Installed, attempt: str) -> None:
    said = refusal(lambda: TENANT_ATTEMPTS[attempt](installed.tenant))
    assert "tessera-placement" in said
    assert "only the operator places" in said or "only spec.approved" in said


def test_who_may_change_plans_approves_them(installed: Installed) -> None:
    installed.admin.create(plan("0ddd"))
    installed.tenant.merge(plan("0ddd"), {"spec": {"approved": True}})
    assert installed.admin.read(plan("0ddd"))["spec"]["approved"] is True


def test_a_tenant_changes_services_and_reads_what_became_of_them(installed: Installed) -> None:
    """The policies are in nobody's way."""
    installed.tenant.read(runtime_node("node-1"))
    made = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "digits", "namespace": "vision"},
        "spec": {
            "members": [{"name": "cnn", "model": {"uri": "https://m/cnn.onnx", "format": "ONNX"}}],
            "slo": {"objectives": [{"target": "50ms", "percent": "99"}]},
        },
    }
    installed.tenant.create(made)
    installed.operator.merge(made, {"metadata": {"finalizers": ["tessera.dev/drain"]}})
    said = refusal(
        lambda: installed.operator.merge(made, {"spec": {"priorityClassName": "online"}})
    )
    assert "changes finalizers of ModelServices, nothing else" in said
    installed.operator.merge(made, {"metadata": {"finalizers": None}})
    installed.tenant.delete(made)


def test_the_operator_sets_replicas_only_where_none_are_stated(installed: Installed) -> None:
    made = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "scaled", "namespace": "vision"},
        "spec": {
            "members": [{"name": "cnn", "model": {"uri": "https://m/cnn.onnx", "format": "ONNX"}}],
            "slo": {"objectives": [{"target": "50ms", "percent": "99"}]},
            "scaling": {"mode": "External"},
        },
    }
    installed.tenant.create(made)
    installed.operator.scale(made, 2)
    assert installed.admin.read(made)["spec"]["replicas"] == 2
    said = refusal(lambda: installed.operator.scale(made, 3))
    assert "sets replicas of ModelServices that state none, nothing else" in said
    installed.tenant.delete(made)


def test_the_operator_writes_its_own_services_in_every_namespace(installed: Installed) -> None:
    labels = {**OURS, "endpointslice.kubernetes.io/managed-by": "tessera"}
    for document in (service("vision", "digits"), endpoints("digits-tessera", labels)):
        installed.operator.apply(document)
        installed.operator.apply(document)
        installed.uninstall.delete(document)


def test_the_operator_takes_no_service_from_somebody_else(installed: Installed) -> None:
    for document in (service("vision", "theirs", {}), endpoints("theirs", {})):
        installed.admin.create(document)
        taken = copy.deepcopy(document)
        taken["metadata"]["labels"] = {**OURS, "endpointslice.kubernetes.io/managed-by": "tessera"}
        for attempt in (
            lambda: installed.operator.apply(taken),  # noqa: B023  # called at once
            lambda: installed.operator.apply(document),  # noqa: B023
            lambda: installed.uninstall.delete(document),  # noqa: B023
        ):
            assert "the operator writes only what is labelled" in refusal(attempt)


@pytest.mark.parametrize(
    "spec",
    [
        {"selector": {"app": "database"}},
        {"type": "LoadBalancer"},
        {"externalIPs": ["192.0.2.1"]},
    ],
    ids=lambda spec: next(iter(spec)),
)
def test_the_operators_services_catch_no_traffic_of_others(
    installed: Installed, spec: dict[str, Any]
) -> None:
    said = refusal(lambda: installed.operator.apply(service("vision", "trap", **spec)))
    assert "of type ClusterIP, without selector and external addresses" in said


def test_the_operator_sets_labels_by_which_gpus_are_cut_where_nodes_allow_it(
    installed: Installed,
) -> None:
    installed.admin.create(node_object("gpu-1", **REPARTITION, zone="a"))
    gpu, config = node_object("gpu-1"), "nvidia.com/mig.config"
    asked = {
        config: "all-1g.10gb",
        f"{config}.state": "pending",
        "tessera.dev/recut": "all-1g.10gb",
    }
    installed.operator.merge(gpu, {"metadata": {"labels": asked}})
    assert asked.items() <= installed.admin.read(gpu)["metadata"]["labels"].items()
    installed.operator.merge(gpu, {"metadata": {"labels": {"tessera.dev/recut": None}}})
    assert "tessera.dev/recut" not in installed.admin.read(gpu)["metadata"]["labels"]


def test_the_operator_fills_one_config_map_of_the_gpu_operator(installed: Installed) -> None:
    def config_map(name: str) -> Object:
        metadata = {"name": name, "namespace": GPU_OPERATOR}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}

    own, other = config_map("tessera-mig-layouts"), config_map("default-mig-parted-config")
    installed.admin.create(other)
    assert "data" not in installed.operator.merge(own, {})
    installed.operator.apply({**own, "data": {"config.yaml": "version: v1"}})
    for attempt in (
        lambda: installed.operator.merge(other, {}),
        lambda: installed.operator.apply(config_map("new")),
        lambda: installed.operator.read(own),
    ):
        assert "cannot" in refusal(attempt)


@pytest.mark.parametrize(
    ("node", "change", "words"),
    [
        ("node-1", MIG_CONFIG, "labelled tessera.dev/repartition=true"),
        ("node-1", {"metadata": {"labels": REPARTITION}}, "labelled tessera.dev/repartition=true"),
        ("gpu-2", {"metadata": {"labels": {"zone": "b"}}}, "labels by which GPUs are cut"),
        ("gpu-2", {"metadata": {"labels": {"zone": None}}}, "labels by which GPUs are cut"),
        ("gpu-2", SUCCESS, "labels by which GPUs are cut"),
        ("gpu-2", {"metadata": {"annotations": {"a": "b"}}}, "changes labels of nodes"),
        ("gpu-2", {"spec": {"unschedulable": True}}, "changes labels of nodes"),
    ],
)
def test_the_operator_changes_nothing_else_of_nodes(
    installed: Installed, node: str, change: Object, words: str
) -> None:
    gpu = node_object("gpu-2", **REPARTITION, zone="a")
    if not installed.admin.exists(gpu):
        installed.admin.create(gpu)
    assert words in refusal(lambda: installed.operator.merge(node_object(node), change))


def test_policies_say_no_rather_than_warn_or_let_pass() -> None:
    objects = rendered("everything-values")
    policies = [each for each in objects if each["kind"] == "ValidatingAdmissionPolicy"]
    assert len(policies) == 6
    for policy in policies:
        assert policy["spec"]["failurePolicy"] == "Fail"
        bound = named(objects, "ValidatingAdmissionPolicyBinding", policy["metadata"]["name"])
        assert bound["spec"]["validationActions"] == ["Deny"]
