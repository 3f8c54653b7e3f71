"""`kubectl tessera` against a real API server, with objects as an operator and its agents would leave them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from e2e.api import Api
from kubernetes import client, config

from tessera_cli.kubectl.facts import CONFIG_KEY, CONFIG_MAP
from tessera_cli.main import run as run_tessera

Result = CompletedProcess[str]
Object = dict[str, Any]
Plugin = Callable[..., Result]

STATE = Path(__file__).parents[1] / "examples" / "cluster" / "state.yaml"
CRDS = Path(__file__).parents[1] / "crds"
GROUP, VERSION = "tessera.dev", "v1alpha1"
SYSTEM = "plugin-system"
OURS = {"e2e": "plugin"}
FIRST, SECOND = "aaaa" + "0" * 36, "bbbb" + "0" * 36
_PLURALS = {
    "ModelProfile": "modelprofiles",
    "ModelService": "modelservices",
    "PlacementPlan": "placementplans",
    "RuntimeNode": "runtimenodes",
    "RuntimePool": "runtimepools",
}


def documents() -> list[Object]:
    """The example cluster, its names changed so that nothing else on the server has them.

    Nothing cuts GPUs here, so its models of vision were measured on a whole one.
    """
    text = STATE.read_text()
    for part in ("slice: 2g.20gb, smCount: 28, memoryMiB: 19968", "requestsPerSecond: 600"):
        assert part in text
    text = text.replace(
        "slice: 2g.20gb, smCount: 28, memoryMiB: 19968",
        "slice: full, smCount: 108, memoryMiB: 81920",
    ).replace("requestsPerSecond: 600", "requestsPerSecond: 150")
    for name in ("a100", "cores", "gpu-1", "cores-1"):
        text = text.replace(f"name: {name},", f"name: plugin-{name},")
        text = text.replace(f"name: {name}}}", f"name: plugin-{name}}}")
        text = text.replace(f"pool: {name}}}", f"pool: plugin-{name}}}")
    state = yaml.safe_load(text)
    for pool in state["pools"]:
        pool["metadata"]["labels"] = OURS
    for service in state["services"]:
        service["spec"]["placement"] = {"poolSelector": {"matchLabels": OURS}}
    (mlp,) = state["services"][1]["spec"]["members"]
    state["nodes"][1]["spec"]["devices"] = [
        {"uuid": "cpu", "instances": [copies(mlp["name"], "cpu-2@0", batch=8)]}
    ]
    state["nodes"][1]["status"] |= {
        "devices": [
            {
                "uuid": "cpu",
                "product": "cpu",
                "memoryMiB": 57344,
                "health": "Healthy",
                "instances": [copies(mlp["name"], "cpu-2@0", batch=8, ready=1, memoryMiB=210)],
            }
        ],
        "conditions": [condition("Ready", "True", "Serving")],
    }
    quality, digits = state["services"]
    quality["status"] = {
        "observedGeneration": 1,
        "conditions": [
            condition("Accepted", "True", "Valid"),
            condition("Planned", "False", "InsufficientCapacity", "no free 2g.20gb"),
            condition("Ready", "False", "NotPlaced"),
        ],
        "shortfall": {"requestsPerSecond": 600, "devices": 1, "reason": "no free 2g.20gb"},
    }
    digits["status"] = {
        "observedGeneration": 1,
        "url": "http://digits.forms.svc",
        "planRef": {"name": FIRST},
        "conditions": [condition("Ready", "True", "Serving"), condition("SLOMet", "True", "Met")],
        "members": [{"name": "mlp", "ready": 1, "instances": 1, "device": "cpu-2", "batch": 8}],
        "slo": {"good": 995, "total": 1000, "attainment": "0.995", "p50": "3ms", "p99": "17ms"}
        | {"requestsPerSecond": 700, "window": "5m"},
    }
    lists = ("pools", "nodes", "services", "profiles")
    return [each for name in lists for each in state[name]]


def copies(member: str, piece: str, **more: object) -> Object:
    return {"service": "forms.digits", "member": member, "slice": piece, "count": 1, **more}


def condition(name: str, status: str, reason: str, message: str = "") -> Object:
    return {
        "type": name,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }


def decision(name: str, approved: bool = False, **status: object) -> Object:
    target = {"node": "plugin-cores-1", "device": "cpu", "slice": "cpu-2@0"}
    cut = {"node": "plugin-gpu-1", "device": "GPU-1", "geometry": []}
    target |= {"service": "forms.digits", "member": "mlp", "batch": 8, "count": 1}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "PlacementPlan",
        "metadata": {"name": name},
        "spec": {
            "epoch": 1,
            "basis": f"sha256:{name}",
            "cost": "0.4",
            "lowerBound": "0.4",
            "gapPercent": "0",
            "diff": ["+ forms.digits/mlp: plugin-cores-1/cpu cpu-2@0, 1 of batch 8"],
            "steps": [
                {"id": "cut-1", "action": "Partition", "target": cut},
                {"id": "launch-1", "action": "Launch", "target": target},
                {"id": "route-1", "action": "Route", "target": {"service": "forms.digits"}}
                | {"requires": ["launch-1"]},
            ],
            "approved": approved,
        },
        "status": status,
    }


@pytest.fixture(scope="module")
def cluster(
    api: Api, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, client.ApiClient]]:
    """The kubeconfig of a cluster that holds the documents, and a client of it."""
    kubeconfig = api.access.kubeconfig(tmp_path_factory.mktemp("plugin") / "kubeconfig")
    with config.new_client_from_config(str(kubeconfig)) as found:
        core = client.CoreV1Api(found)
        present = {each.metadata.name for each in core.list_namespace().items}
        for name in {SYSTEM, "vision", "forms"} - present:
            core.create_namespace({"metadata": {"name": name}})
        settings = {"metadata": {"name": CONFIG_MAP}, "data": {CONFIG_KEY: 'headroom: "1.3"'}}
        core.create_namespaced_config_map(SYSTEM, settings)
        made = [*documents(), decision(FIRST, approved=True, step=under_way()), decision(SECOND)]
        for document in made:
            create(found, document)
        yield kubeconfig, found
        for document in made:
            delete(found, document)


def under_way() -> Object:
    return {"id": "route-1", "startedAt": "2026-01-31T12:00:01Z"}


def create(api: client.ApiClient, document: Object) -> None:
    """Make an object with its status, whatever a run before has left of it."""
    custom, plural = client.CustomObjectsApi(api), _PLURALS[document["kind"]]
    name, namespace = document["metadata"]["name"], document["metadata"].get("namespace")
    change = {"status": document.get("status", {})}
    if namespace:
        custom.create_namespaced_custom_object(GROUP, VERSION, namespace, plural, document)
        custom.patch_namespaced_custom_object_status(
            GROUP, VERSION, namespace, plural, name, change
        )
    else:
        custom.create_cluster_custom_object(GROUP, VERSION, plural, document)
        custom.patch_cluster_custom_object_status(GROUP, VERSION, plural, name, change)


def delete(api: client.ApiClient, document: Object) -> None:
    custom, plural = client.CustomObjectsApi(api), _PLURALS[document["kind"]]
    name, namespace = document["metadata"]["name"], document["metadata"].get("namespace")
    if namespace:
        custom.delete_namespaced_custom_object(GROUP, VERSION, namespace, plural, name)
    else:
        custom.delete_cluster_custom_object(GROUP, VERSION, plural, name)


@pytest.fixture
def plugin(cluster: tuple[Path, client.ApiClient], tmp_path: Path) -> Plugin:
    """Runs ``kubectl tessera``, through kubectl, as a user does."""
    program = tmp_path / "bin" / "kubectl-tessera"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tessera_cli.kubectl.main "$@"\n')
    program.chmod(0o755)

    def run(
        *arguments: str | Path, kubeconfig: Path = cluster[0], stdin: int = subprocess.DEVNULL
    ) -> Result:
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["kubectl", "tessera", *map(str, arguments), "--system-namespace", SYSTEM],
            env={**os.environ, "PATH": path, "KUBECONFIG": str(kubeconfig)},
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def row(shown: str, name: str) -> list[str]:
    (line,) = [line for line in shown.splitlines() if name in line.split()[:2]]
    return line.split()


def test_status_lists_services_with_what_keeps_them_from_serving(plugin: Plugin) -> None:
    everywhere = plugin("status", "-A")
    assert everywhere.returncode == 0, everywhere.stderr
    assert row(everywhere.stdout, "digits") == (
        ["forms", "digits", "True", "True", "17ms", "p99", "20ms", "700", "1/1", "Serving"]
    )
    assert row(everywhere.stdout, "quality")[-1] == "InsufficientCapacity"
    of_one = json.loads(plugin("status", "-n", "forms", "-o", "json").stdout)
    assert [(each["name"], each["p99Ms"]) for each in of_one] == [("digits", 17.0)]
    nothing = plugin("status")
    assert (nothing.returncode, "no ModelService in namespace default" in nothing.stderr) == (
        0,
        True,
    )


def test_status_of_one_shows_where_it_runs_and_how_far_its_plan_is(plugin: Plugin) -> None:
    found = plugin("status", "digits", "-n", "forms")
    assert found.returncode == 0, found.stderr
    for words in (
        "forms.digits  http://digits.forms.svc",
        "plugin-cores-1/cpu cpu-2@0",
        "99.5 % of 1000 requests in the last 5m, p50 3ms, p99 17ms; 700 requests/s",
        f"plan {FIRST}: Applying, step 3 of 3 (route-1) under way since 2026-01-31T12:00:01Z",
    ):
        assert words in found.stdout
    short = plugin("status", "vision.quality", "-o", "yaml")
    assert short.returncode == 1
    assert yaml.safe_load(short.stdout)["shortfall"] == (
        "short of 600 requests/s; 1 more device would do: no free 2g.20gb"
    )


def test_a_name_that_is_not_there_is_answered_with_one_that_is(plugin: Plugin) -> None:
    for verb, text, near in (
        ("status", "digit", "forms.digits"),
        ("explain", "quality", "vision.quality"),
    ):
        found = plugin(verb, text, "-n", "forms")
        assert found.returncode == 1
        said = f"found no ModelService {text} in namespace forms (did you mean {near}?)"
        assert said in found.stderr


def test_top_counts_what_nodes_give_and_services_get(plugin: Plugin) -> None:
    nodes = json.loads(plugin("top", "-o", "json").stdout)
    (cores,) = [each for each in nodes if each["name"] == "plugin-cores-1"]
    assert cores["cores"] == {"used": 2, "free": 14, "total": 16}
    assert cores["memoryMiB"]["used"] == 210
    assert cores["costPerHour"] == pytest.approx(0.4)
    (gpu,) = [each for each in nodes if each["name"] == "plugin-gpu-1"]
    assert (gpu["gpus"]["free"], gpu["costPerHour"]) == (1, 0)
    services = plugin("top", "services", "-A").stdout
    assert row(services, "digits")[2:] == ["700", "3ms", "17ms", "99.50%", "1/1", "0.125"]


def test_cost_says_who_pays_what_is_idle_and_what_quotas_leave(
    plugin: Plugin, cluster: tuple[Path, client.ApiClient]
) -> None:
    found = plugin("cost", "-n", "forms", "-o", "json")
    assert found.returncode == 0, found.stderr
    (digits,) = json.loads(found.stdout)
    assert (digits["name"], digits["cores"]) == ("digits", 2)
    assert digits["costPerHour"] == pytest.approx(0.4 * 2 / 16)
    assert digits["loadedPerHour"] == pytest.approx(0.4)
    pools = {
        each["pool"]: each for each in json.loads(plugin("cost", "pools", "-o", "json").stdout)
    }
    assert pools["plugin-a100"]["idlePerHour"] == {"parts": 0, "devices": 0, "nodes": 3.6}
    quotas = client.CoreV1Api(cluster[1])
    hard = {"hard": {"requests.tessera.dev/slices": "4"}}
    quotas.create_namespaced_resource_quota("forms", {"metadata": {"name": "parts"}, "spec": hard})
    try:
        spaces = plugin("cost", "namespaces").stdout
    finally:
        quotas.delete_namespaced_resource_quota("parts", "forms")
    assert row(spaces, "forms")[-2:] == ["1/4", "0.125/-"]


def test_explain_says_why_and_what_the_cluster_has_instead(plugin: Plugin) -> None:
    found = plugin("explain", "vision.quality")
    assert found.returncode == 0, found.stderr
    assert "resnet: plugin-gpu-1/GPU-1" in found.stdout
    assert "nodes are told to run something else; 0 of 0 instances answer; to come:" in found.stdout
    assert "+ vision.quality/vit: plugin-gpu-1/GPU-1 full, 1 of batch" in found.stdout
    assert "forms.digits" not in found.stdout


def test_a_dry_run_saved_to_a_file_is_what_tessera_plan_decides_from_it(
    plugin: Plugin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "state.yaml"
    found = plugin("plan", "--save", saved, "-o", "json")
    assert found.returncode == 0, found.stderr
    decided = json.loads(found.stdout)
    assert decided["steps"][0]["id"]
    # Room for 1.3 times the rate, as the ConfigMap says.
    assert yaml.safe_load(saved.read_text())["policy"]["headroom"] == "1.3"
    assert run_tessera(["plan", "-f", str(saved), "-o", "json"]) == 0
    offline = json.loads(capsys.readouterr().out)
    assert (offline["name"], offline["devices"]) == (decided["name"], decided["devices"])


def test_a_node_whose_agent_is_silent_is_planned_without(
    plugin: Plugin, cluster: tuple[Path, client.ApiClient]
) -> None:
    # Raw, as the typed client writes times that the API server refuses where they have no fraction.
    leases = client.CustomObjectsApi(cluster[1])
    at = ("coordination.k8s.io", "v1", SYSTEM, "leases")
    name = "tessera-node-plugin-cores-1"
    old = {"metadata": {"name": name}, "spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}}
    leases.create_namespaced_custom_object(*at, old)
    try:
        found = plugin("explain", "forms.digits")
    finally:
        leases.delete_namespaced_custom_object(*at, name)
    assert found.returncode == 1
    assert "planned without RuntimeNode plugin-cores-1" in found.stderr
    assert "not placed" in found.stdout
    again = plugin("explain", "forms.digits")
    assert again.returncode == 0
    assert "nodes are told to run exactly this; 1 of 1 instances answer" in again.stdout


def test_plans_are_listed_and_shown(plugin: Plugin) -> None:
    listed = plugin("plan", "list")
    assert row(listed.stdout, FIRST)[4:7] == ["3/3", "yes", "Applying"]
    shown = plugin("plan", "show", "bbbb")
    assert "launch-1  forms.digits/mlp: plugin-cores-1/cpu cpu-2@0, 1 of batch 8" in shown.stdout
    unknown = plugin("plan", "show", "cccc")
    assert (unknown.returncode, "found no PlacementPlan cccc" in unknown.stderr) == (1, True)


def test_a_plan_is_approved_after_it_was_shown_and_only_when_told_so(
    api: Api, plugin: Plugin, cluster: tuple[Path, client.ApiClient]
) -> None:
    plan = decision("cccc" + "0" * 36)
    create(cluster[1], plan)
    try:
        asked = plugin("approve", "cccc")
        assert asked.returncode == 1
        assert "say --yes" in asked.stderr
        assert not api.read(plan)["spec"]["approved"]
        done = plugin("approve", "cccc", "--yes")
        assert done.returncode == 0, done.stderr
        assert "+ forms.digits/mlp: plugin-cores-1/cpu cpu-2@0" in done.stdout
        approved = api.read(plan)
        assert approved["spec"]["approved"]
        assert {each["manager"] for each in approved["metadata"]["managedFields"]} >= {
            "kubectl-tessera"
        }
        again = plugin("approve", "cccc", "--yes")
        assert (again.returncode, "approved already" in again.stdout) == (0, True)
        assert (
            api.read(plan)["metadata"]["resourceVersion"]
            == (approved["metadata"]["resourceVersion"])
        )
    finally:
        delete(cluster[1], plan)


def test_a_superseded_plan_is_not_approved(
    api: Api, plugin: Plugin, cluster: tuple[Path, client.ApiClient]
) -> None:
    plan = decision("dddd" + "0" * 36, conditions=[condition("Superseded", "True", "NewPlan")])
    create(cluster[1], plan)
    try:
        found = plugin("approve", "dddd", "--yes")
        assert (found.returncode, "it is over: Superseded" in found.stderr) == (1, True)
        assert not api.read(plan)["spec"]["approved"]
    finally:
        delete(cluster[1], plan)


def test_a_plan_that_changed_since_it_was_read_is_not_approved(
    cluster: tuple[Path, client.ApiClient], api: Api
) -> None:
    from tessera_cli.kubectl.cluster import Cluster
    from tessera_cli.kubectl.objects import Failed

    plan = decision("eeee" + "0" * 36)
    create(cluster[1], plan)
    try:
        seen = api.read(plan)["metadata"]["resourceVersion"]
        api.replace({**plan, "spec": {**plan["spec"], "epoch": 2}})
        with pytest.raises(Failed, match="it changed in the meantime"):
            Cluster(cluster[1], "default", SYSTEM).approve(plan["metadata"]["name"], seen)
        assert not api.read(plan)["spec"]["approved"]
    finally:
        delete(cluster[1], plan)


def test_somebody_at_a_terminal_is_asked(
    api: Api, plugin: Plugin, cluster: tuple[Path, client.ApiClient]
) -> None:
    plan = decision("ffff" + "0" * 36)
    create(cluster[1], plan)
    keyboard, terminal = os.openpty()
    try:
        for answer, approved in ((b"\n", False), (b"y\n", True)):
            os.write(keyboard, answer)
            found = plugin("approve", "ffff", stdin=terminal)
            assert f"Approve {plan['metadata']['name']}? [y/N]" in found.stderr
            assert found.returncode == (0 if approved else 1)
            assert api.read(plan)["spec"]["approved"] is approved
    finally:
        os.close(keyboard)
        os.close(terminal)
        delete(cluster[1], plan)


@pytest.fixture
def tenant(cluster: tuple[Path, client.ApiClient], tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of somebody who may list ModelServices of the namespace forms, and nothing else."""
    kubeconfig, api = cluster
    core, rbac = client.CoreV1Api(api), client.RbacAuthorizationV1Api(api)
    core.create_namespaced_service_account("forms", {"metadata": {"name": "tenant"}})
    rule = {"apiGroups": [GROUP], "resources": ["modelservices"], "verbs": ["list"]}
    rbac.create_namespaced_role("forms", {"metadata": {"name": "tenant"}, "rules": [rule]})
    binding = {
        "metadata": {"name": "tenant"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"},
        "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": "forms"}],
    }
    rbac.create_namespaced_role_binding("forms", binding)
    token = core.create_namespaced_service_account_token("tenant", "forms", {"spec": {}})
    document = yaml.safe_load(kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token.status.token}
    document["contexts"][0]["context"]["namespace"] = "forms"
    path = tmp_path / "tenant"
    path.write_text(yaml.safe_dump(document))
    yield path
    rbac.delete_namespaced_role_binding("tenant", "forms")
    rbac.delete_namespaced_role("tenant", "forms")
    core.delete_namespaced_service_account("tenant", "forms")


def test_a_tenant_sees_its_services_and_is_told_what_it_may_not_see(
    plugin: Plugin, tenant: Path
) -> None:
    own = plugin("status", "digits", kubeconfig=tenant)
    assert own.returncode == 0, own.stderr
    assert "where it runs is not shown: this user may not list runtimenodes" in own.stderr
    assert f"plan {FIRST}" in own.stdout
    for arguments, denied in (
        (("status", "-A"), "modelservices"),
        (("top",), "runtimenodes"),
        (("plan",), "runtimepools"),
        (("approve", FIRST), "placementplans"),
    ):
        found = plugin(*arguments, kubeconfig=tenant)
        assert found.returncode == 1
        assert f"this user may not list {denied} (403" in found.stderr
        assert found.stdout == ""


def test_a_user_that_the_server_does_not_know_is_told_to_log_in(
    plugin: Plugin, cluster: tuple[Path, client.ApiClient], tmp_path: Path
) -> None:
    document = yaml.safe_load(cluster[0].read_text())
    document["users"][0]["user"] = {"token": "stale"}
    path = tmp_path / "stale"
    path.write_text(yaml.safe_dump(document))
    found = plugin("status", kubeconfig=path)
    assert (found.returncode, "does not know this user: log in again" in found.stderr) == (1, True)
