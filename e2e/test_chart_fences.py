"""Who may do what once the chart is installed: its roles on every resource of a real API server, and its policies.

Agents have real tokens, made for pods as kubelets ask for them; no pod has to run for that. Tenants are tried with
more rights than anybody should give them, so that it is the policy that refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from e2e.chart import CHART, NAMESPACE, Client, Object, Refused, helm, named, rendered
from e2e.native.control_plane import control_plane
from e2e.native.processes import wait_until

RIGHTS = yaml.safe_load((CHART / "files" / "rbac.yaml").read_text())
ACCOUNTS = sorted({role["account"] for role in RIGHTS if "account" in role})
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
NODES = ("node-1", "node-2")
GPU_OPERATOR = "gpu-operator"
OFF_LIMITS = (
    *((verb, "", "secrets") for verb in ("get", "list", "watch", "create", "patch")),
    *((verb, "", "pods") for verb in ("create", "patch", "delete")),
    *((verb, "", "pods/exec") for verb in ("get", "create")),
    ("create", "", "pods/eviction"),
    ("create", "", "serviceaccounts/token"),
    ("get", "", "configmaps"),
    ("impersonate", "", "users"),
    ("impersonate", "", "serviceaccounts"),
    *(
        (verb, "rbac.authorization.k8s.io", "clusterroles")
        for verb in ("create", "bind", "escalate")
    ),
    ("create", "authentication.k8s.io", "tokenreviews"),
    ("patch", "admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("patch", "apiextensions.k8s.io", "customresourcedefinitions"),
    ("proxy", "", "nodes"),
    ("get", "", "nodes/proxy"),
)
"""What no account may do in any namespace, whatever else is granted."""
EXCEPTIONS = {("tessera-operator", NAMESPACE): {("patch", "", "pods"), ("delete", "", "pods")}}
"""Runtime pods are marked, which the policy tessera-privilege keeps to their metadata, and deleted when they are empty."""


class Installed(NamedTuple):
    """The chart, and who asks."""

    admin: Client
    operator: Client
    uninstall: Client
    tenant: Client
    """Everything on every kind of Tessera."""
    agents: dict[str, Client]
    """By pod. ``tessera-runtime-N`` and ``tessera-activator-N`` are on ``node-N``."""
    partitioner: Client
    """On ``node-1``."""


@pytest.fixture(scope="module")
def installed(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("fences")
    with control_plane(binaries, folder) as access:
        admin = Client(access)
        kubeconfig = access.kubeconfig(folder / "kubeconfig")
        for name in ("vision", GPU_OPERATOR):
            admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        helm(
            *("install", "tessera", str(CHART), f"--namespace={NAMESPACE}", "--create-namespace"),
            "--set=partition.migManager.enabled=true",
            *(f"--set=config.gateway.{key}=edge" for key in ("name", "namespace", "domain")),
            kubeconfig=kubeconfig,
        )
        for document in rendered("everything-values"):
            # Rights of hooks, as if all of them ran.
            if "helm.sh/hook" in document["metadata"].get("annotations", {}) and (
                document["kind"] not in ("Job", "Pod")
            ):
                admin.apply(document)
        give_everything(admin, "tenant")
        agents = {}
        for number, node in enumerate(NODES, start=1):
            admin.create(node_object(node))
            for kind in ("runtime", "activator"):
                pod = f"tessera-{kind}-{number}"
                agents[pod] = admin.with_token(pod_token(admin, "tessera-agent", pod, node))
        partitioner = admin.with_token(
            pod_token(admin, "tessera-partitioner", "tessera-partitioner-1", NODES[0])
        )
        operator, uninstall = (
            admin.with_token(token(admin, f"tessera-{name}", {}))
            for name in ("operator", "uninstall")
        )
        tenant = admin.acting_for("tenant")
        found = Installed(admin, operator, uninstall, tenant, agents, partitioner)
        wait_for_policies(found)
        yield found
        for each in (admin, operator, uninstall, tenant, partitioner, *agents.values()):
            each.close()


def give_everything(admin: Client, user: str) -> None:
    """All rights on the kinds of Tessera, in a role of its own."""
    metadata = {"name": f"everything-{user}"}
    rules = [{"apiGroups": ["tessera.dev"], "resources": ["*"], "verbs": ["*"]}]
    version = "rbac.authorization.k8s.io/v1"
    role = {"apiVersion": version, "kind": "ClusterRole", "metadata": metadata}
    admin.create({**role, "rules": rules})
    admin.create(
        {
            "apiVersion": version,
            "kind": "ClusterRoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": version.partition("/")[0], "kind": "ClusterRole", **metadata},
            "subjects": [{"apiGroup": version.partition("/")[0], "kind": "User", "name": user}],
        }
    )


def pod_token(admin: Client, account: str, name: str, node: str) -> str:
    pod = admin.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "serviceAccountName": account,
                "nodeName": node,
                "containers": [{"name": "agent", "image": "none"}],
            },
        }
    )
    bound = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"]}
    return token(admin, account, {"boundObjectRef": bound})


def token(admin: Client, account: str, bound: Object) -> str:
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": bound}
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
    return str(admin.call("POST", path, request)["status"]["token"])


def wait_for_policies(found: Installed) -> None:
    """A policy is in force a moment after it was written; each is tried with what it alone refuses."""
    admin, agent = found.admin, found.agents["tessera-runtime-1"]
    for name in (*NODES, "tessera-activator-1", "tessera-activator-2"):
        admin.create(runtime_node(name))
    admin.create(plan())
    foreign = service("vision", "foreign", labels={})
    tries: dict[str, Callable[[], object]] = {
        "tessera-agents": lambda: agent.apply(lease("tessera-operator"), dry=True),
        "tessera-partitioners": lambda: found.partitioner.apply(
            status_of("node-1"), "status", dry=True
        ),
        "tessera-placement": lambda: found.tenant.apply(runtime_node("other"), dry=True),
        "tessera-privilege": lambda: found.operator.create(daemon_set(image="other"), dry=True),
        "tessera-operator": lambda: found.operator.create(foreign, dry=True),
        "tessera-node-labels": lambda: found.operator.merge(node_object("node-1"), MIG_CONFIG),
    }
    for policy, attempt in tries.items():
        wait_until(lambda: policy in refusal(attempt), 30, policy)  # noqa: B023  # called at once


def refusal(attempt: Callable[[], object]) -> str:
    """What the API server says against it; empty when it does not."""
    try:
        attempt()
    except Refused as refused:
        return str(refused)
    return ""


def node_object(name: str, **labels: str) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}}


def runtime_node(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "RuntimeNode",
        "metadata": {"name": name},
        "spec": {"epoch": 1, **spec},
    }


def status_of(name: str) -> Object:
    document = {**runtime_node(name), "status": {"agentVersion": "1.0"}}
    del document["spec"]
    return document


def cuts_of(name: str) -> Object:
    """As a partitioner tells them."""
    return {**status_of(name), "status": {"cuts": [{"uuid": "GPU-1", "generation": 1}]}}


def daemon_set(of_host: str = "/dev", **container: Any) -> Object:
    """What the operator makes for a pool whose GPUs are cut, with a container that may differ."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    labels = {"app.kubernetes.io/name": "tessera-partitioner"}
    made = {
        "name": "partitioner",
        "image": f"tessera-runtime:{version}",
        "command": ["python", "-m", "tessera_runtime.partitioner"],
        "args": ["--patience=120"],
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}],
        "securityContext": {"privileged": True},
        "volumeMounts": [{"name": "host", "mountPath": "/dev"}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": "tessera-partitioner-gpu",
            "namespace": NAMESPACE,
            "labels": {**OURS, **labels},
        },
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": "tessera-partitioner",
                    "hostPID": True,
                    "containers": [{**made, **container}],
                    "volumes": [{"name": "host", "hostPath": {"path": of_host}}],
                },
            },
        },
    }


def lease(name: str) -> Object:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"holderIdentity": "somebody"},
    }


def plan(name: str = "00ff") -> Object:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "PlacementPlan",
        "metadata": {"name": name},
        "spec": {
            "epoch": 1,
            "basis": "sha256:ab01",
            "cost": "1",
            "lowerBound": "1",
            "gapPercent": "0",
            "diff": ["node-1: nothing -> something"],
        },
    }


OURS = {"app.kubernetes.io/managed-by": "tessera"}
MIG_CONFIG = {"metadata": {"labels": {"nvidia.com/mig.config": "all-1g.10gb"}}}
SUCCESS = {"metadata": {"labels": {"nvidia.com/mig.config.state": "success"}}}
REPARTITION = {"tessera.dev/repartition": "true"}


def service(namespace: str, name: str, labels: dict[str, str] = OURS, **spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"type": "ClusterIP", "ports": [{"port": 80}], **spec},
    }


def endpoints(name: str, labels: dict[str, str]) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "vision", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.7"]}],
    }


def granted(account: str, scopes: tuple[str, ...]) -> set[tuple[str, str, str]]:
    return {
        (verb, rule["group"], resource)
        for role in RIGHTS
        if role.get("account") == account and role["scope"] in scopes and "in" not in role
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("account", ACCOUNTS)
@pytest.mark.parametrize("namespace", [NAMESPACE, "vision"])
def test_an_account_may_do_what_is_declared_and_nothing_else(
    installed: Installed, account: str, namespace: str
) -> None:
    """Every verb on every resource that is served, beside an account without any role."""
    scopes = ("cluster", "namespace") if namespace == NAMESPACE else ("cluster",)
    declared = granted(account, scopes)
    nobody, somebody = f"{NAMESPACE}:nobody", f"{NAMESPACE}:{account}"
    asked = declared | {
        (verb, group, resource)
        for group, resource, _, _ in installed.admin.resources()
        for verb in VERBS
    }
    may = {
        (verb, group, resource)
        for verb, group, resource in asked
        if installed.admin.may(somebody, verb, group, resource, namespace)
        and not installed.admin.may(nobody, verb, group, resource, namespace)
    }
    assert len(asked) > 400
    assert may == declared


@pytest.mark.parametrize("account", ACCOUNTS)
def test_no_account_comes_near_secrets_pods_or_rights(installed: Installed, account: str) -> None:
    may = [
        right
        for right in OFF_LIMITS
        for namespace in ("", NAMESPACE, "vision", "kube-system")
        if right not in EXCEPTIONS.get((account, namespace), ())
        and installed.admin.may(f"{NAMESPACE}:{account}", *right, namespace)
    ]
    assert may == []


def test_a_namespace_lets_agents_read_one_secret_and_no_other(installed: Installed) -> None:
    """As docs/rbac.md says."""
    text = (CHART.parents[1] / "docs" / "rbac.md").read_text()
    example = text.partition("```yaml\n")[2].partition("```")[0]
    for document in yaml.safe_load_all(example):
        installed.admin.create(document)
    agent = f"{NAMESPACE}:tessera-agent"

    def may(verb: str, namespace: str, name: str) -> bool:
        return installed.admin.may(agent, verb, "", "secrets", namespace, name)

    wait_until(lambda: may("get", "vision", "store"), 30, "the binding works")
    assert not may("get", "vision", "other")
    assert not may("list", "vision", "")
    assert not may("get", NAMESPACE, "store")


def test_an_agent_writes_the_status_of_its_own_node(installed: Installed) -> None:
    agent = installed.agents["tessera-runtime-2"]
    agent.apply(status_of("node-2"), "status")
    assert installed.admin.read(runtime_node("node-2"))["status"]["agentVersion"] == "1.0"
    agent.apply(lease("tessera-node-node-2"))
    agent.apply(lease("tessera-node-node-2"))


def test_the_activator_writes_the_status_named_for_its_pod(installed: Installed) -> None:
    agent = installed.agents["tessera-activator-1"]
    agent.apply(status_of("tessera-activator-1"), "status")
    agent.apply(lease("tessera-node-tessera-activator-1"))


@pytest.mark.parametrize("name", ["node-2", "tessera-activator-1", "tessera-activator-2"])
def test_an_agent_writes_no_other_status(installed: Installed, name: str) -> None:
    agent = installed.agents["tessera-runtime-1"]
    said = refusal(lambda: agent.apply(status_of(name), "status"))
    assert "tessera-agents" in said
    assert "node-1, tessera-runtime-1" in said


@pytest.mark.parametrize("name", ["tessera-node-node-2", "tessera-operator", "node-1"])
def test_an_agent_writes_no_other_lease(installed: Installed, name: str) -> None:
    agent = installed.agents["tessera-runtime-1"]
    said = refusal(lambda: agent.apply(lease(name)))
    assert "agents renew the Lease tessera-node-<own node> only" in said


def test_a_token_that_no_pod_has_writes_no_status(installed: Installed) -> None:
    agent = installed.admin.with_token(token(installed.admin, "tessera-agent", {}))
    assert "no node" in refusal(lambda: agent.apply(status_of("node-1"), "status"))
    agent.close()


def test_an_agent_writes_no_spec_even_if_a_role_lets_it(installed: Installed) -> None:
    give_everything(installed.admin, f"system:serviceaccount:{NAMESPACE}:tessera-agent")
    agent = installed.agents["tessera-runtime-1"]
    attempts: dict[str, Callable[[], object]] = {
        "agents write the status of a RuntimeNode only": lambda: agent.merge(
            runtime_node("node-1"), {"spec": {"epoch": 2}}
        ),
        "agents delete nothing": lambda: agent.delete(runtime_node("node-1")),
        "users change ModelServices": lambda: agent.create(plan("0aaa")),
    }
    try:
        for words, attempt in attempts.items():
            # Roles come into force a moment later, and until then RBAC refuses in other words. Two policies
            # forbid it, of which the API server names one.
            either = (words, "only the operator places")
            wait_until(lambda: any(each in refusal(attempt) for each in either), 30, words)  # noqa: B023  # called at once
    finally:
        name = f"everything-system:serviceaccount:{NAMESPACE}:tessera-agent"
        for kind in ("ClusterRoleBinding", "ClusterRole"):
            version = "rbac.authorization.k8s.io/v1"
            installed.admin.delete(
                {"apiVersion": version, "kind": kind, "metadata": {"name": name}}
            )


def test_a_partitioner_tells_what_the_gpus_of_its_node_are_cut_into(installed: Installed) -> None:
    installed.partitioner.apply(cuts_of("node-1"), "status")
    (cut,) = installed.admin.read(runtime_node("node-1"))["status"]["cuts"]
    assert cut["uuid"] == "GPU-1"


def test_a_partitioner_tells_of_no_other_node(installed: Installed) -> None:
    said = refusal(lambda: installed.partitioner.apply(cuts_of("node-2"), "status"))
    assert "node-1, it cannot write the status of another RuntimeNode" in said


def test_a_partitioner_tells_nothing_else(installed: Installed) -> None:
    said = refusal(lambda: installed.partitioner.apply(status_of("node-1"), "status"))
    assert "partitioners write status.cuts, the rest is the agent's" in said
    unbound = installed.admin.with_token(token(installed.admin, "tessera-partitioner", {}))
    assert "no node" in refusal(lambda: unbound.apply(cuts_of("node-1"), "status"))
    unbound.close()


def test_a_partitioner_orders_nothing(installed: Installed) -> None:
    change = {"spec": {"epoch": 2}}
    said = refusal(lambda: installed.partitioner.merge(runtime_node("node-1"), change))
    assert "cannot patch resource" in said


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
