"""Who may do what once the chart is installed: its roles on every resource of a real API server, agents and partitioners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from e2e.chart import CHART, NAMESPACE
from e2e.native.processes import wait_until
from e2e.system.fences import (
    Installed,
    cuts_of,
    fences,
    give_everything,
    lease,
    plan,
    refusal,
    runtime_node,
    status_of,
    token,
)

RIGHTS = yaml.safe_load((CHART / "files" / "rbac.yaml").read_text())
ACCOUNTS = sorted({role["account"] for role in RIGHTS if "account" in role})
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
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


@pytest.fixture(scope="module")
def installed(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    with fences(binaries, tmp_path_factory.mktemp("fences")) as found:
        yield found


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
