"""GPUs that are cut anew while they serve: on the real cluster, with a stand-in of NVIDIA's library in place of GPUs.

Each node has two GPUs. One is full of what stays where it is. The other is of the service ``moves``, which is measured to
fit the slices that a test wants it on. No two services fit the same slices, so nobody trades places.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import pytest
from e2e.autoscaling.timeline import Event, Timeline, moments
from e2e.chart import NAMESPACE as SYSTEM
from e2e.chart import Object
from e2e.system import gpus as stand_in
from e2e.system.gpus import MODEL, Gpus
from e2e.system.installation import Installation
from e2e.system.installation import namespace as one_namespace
from e2e.system.load import Load, zero_failures
from e2e.system.models import answer, classifier, example
from e2e.system.services import Service, model_service

from tessera_operator import kinds

WHOLE, PART = "7g.80gb", "1g.20gb"
STAY = {"large": "4g.40gb", "small": "3g.40gb"}
JOINS = "2g.20gb"
KINDS = ("full", WHOLE, PART, *STAY.values(), JOINS)
X = example()
FILES = {name: classifier(31 + at) for at, name in enumerate(("moves", "joins", *STAY))}
TWICE = {
    "placement": {"isolation": "Partition", "spread": {"minNodes": 2}},
    "scaling": {"minReplicas": 2},
}
"""Once on each node, on a slice of its own."""
ANY_TIME = {"minInterval": "0s", "windows": []}
SERVICE_LABEL = "kubernetes.io/service-name"
RECUT_S = 90.0
CALM_S = 2.0
Kill = tuple[str, str]
"""Who, and at which kind of step."""
KILLS: tuple[tuple[Kill, Kill], ...] = (
    (("agent", "Unload"), ("partitioner", "Unload")),
    (("partitioner", "Partition"), ("agent", "Partition")),
    (("agent", "Launch"), ("partitioner", "Launch")),
    (("partitioner", "Route"), ("agent", "Route")),
    (("operator", "Unload"), ("operator", "Partition")),
    (("operator", "Launch"), ("operator", "Route")),
)
"""Each of the three at each step, two in one re-cut. Agents take turns, since the kubelet waits before it starts one again."""
SLOW = ";".join(
    f"{call} 1 1000000 slow 500"
    for call in ("nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceDestroy")
)
"""As slow as real drivers are, so that there is a middle to be killed in."""
REFUSED = "nvmlDeviceCreateGpuInstanceWithPlacement 2 2 fail 4"
"""The second slice of every cut is refused (NVML_ERROR_NO_PERMISSION), which ends it half way; putting one slice back works."""

pytestmark = pytest.mark.timeout(240, func_only=True)


@pytest.fixture(scope="module")
def gpus(release: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpus]:
    partition = {"approval": "Auto", "disruption": ANY_TIME}
    with stand_in.gpus(release, tmp_path_factory.mktemp("gpus"), partition, faults=SLOW) as found:
        yield found


@pytest.fixture(scope="module")
def namespace(gpus: Gpus) -> Iterator[str]:
    with one_namespace(gpus.system, "recut") as found:
        yield found


@pytest.fixture(scope="module")
def moves(gpus: Gpus, namespace: str) -> Service:
    """It has a GPU of each node to itself."""
    found = [serve(gpus, namespace, name, kind) for name, kind in {"moves": WHOLE, **STAY}.items()]
    for each in found:
        each.wait_until_serving()
    return found[0]


@pytest.fixture
def joins(gpus: Gpus, namespace: str, moves: Service) -> Iterator[Service]:
    """To be served beside ``moves``, which has to make room: it has whole GPUs, and needs less."""
    move(gpus, moves, WHOLE)
    fits(moves, WHOLE, PART)
    yield gpus.system.service(namespace, "joins")
    gpus.system.kubectl("delete", "msvc", "joins", f"--namespace={namespace}", "--wait=false")
    gpus.system.wait(
        "it is gone", lambda: gpus.system.read("ModelService", "joins", namespace) is None
    )


def serve(gpus: Gpus, namespace: str, name: str, *kinds: str) -> Service:
    """A service of one model that runs on slices of these ``kinds`` only."""
    found = gpus.system.service(namespace, name)
    fits(found, *kinds)
    uri = gpus.system.store.put(f"{namespace}/{name}.onnx", FILES[name])
    document = model_service(namespace, name, {"only": uri}, **TWICE)
    document["spec"]["members"][0]["model"]["digest"] = digest(name)
    gpus.system.apply(document)
    return found


def digest(name: str) -> str:
    return f"sha256:{hashlib.sha256(FILES[name]).hexdigest()}"


def fits(service: Service, *kinds: str) -> None:
    """Have its model measured, with more memory than there is on all but these ``kinds`` of slices."""
    # What it is to move to comes first, so that it is never measured to fit nowhere.
    for kind in sorted(KINDS, key=lambda each: each not in kinds):
        memory_mib = 1 if kind in kinds else MODEL.memory_mib + 1
        stand_in.measured(service, digest(service.name), kind, memory_mib)


def spots(service: Service) -> dict[str, tuple[str, str]]:
    """By node, the GPU and the slice where it answers."""
    return {
        node["metadata"]["name"]: (device["uuid"], each["slice"])
        for node in service.system.objects("RuntimeNode")
        for device in (node.get("status") or {}).get("devices") or ()
        for each in device.get("instances") or ()
        if each["service"] == service.served_name and each["ready"]
    }


def boards(service: Service) -> set[tuple[str, str]]:
    """Nodes and GPUs where it answers."""
    return {(node, gpu) for node, (gpu, _) in spots(service).items()}


def is_on(service: Service, kind: str) -> bool:
    """Whether it answers on slices of this kind on both nodes, and clients are sent there."""
    found = [piece.partition("@")[0] for _, piece in spots(service).values()]
    return found == [kind, kind] and len(service.addresses()) == 2


def conditions(document: Object) -> dict[str, Object]:
    return {each["type"]: each for each in (document.get("status") or {}).get("conditions") or ()}


def holds(document: Object, kind: str, reason: str = "") -> bool:
    found = conditions(document).get(kind, {})
    return found.get("status") == "True" and reason in ("", found["reason"])


def cutting(gpus: Gpus) -> list[Object]:
    """Plans that cut and are not over."""
    return [
        plan
        for plan in gpus.system.objects("PlacementPlan")
        if any(step["action"] == "Partition" for step in plan["spec"].get("steps", ()))
        and not any(holds(plan, each) for each in ("Applied", "Superseded", "RolledBack"))
    ]


def recuts(gpus: Gpus) -> list[Object]:
    """What plans record of each cut that has begun."""
    return [
        cut
        for plan in gpus.system.objects("PlacementPlan")
        for cut in (plan.get("status") or {}).get("cuts") or ()
    ]


def is_over(cut: Object) -> bool:
    return "endedAt" in cut


def waiting(gpus: Gpus, reason: str) -> list[Object]:
    return [plan for plan in cutting(gpus) if holds(plan, "Waiting", reason)]


def move(gpus: Gpus, moves: Service, kind: str) -> None:
    fits(moves, kind)
    settled(gpus, moves, kind)


def settled(gpus: Gpus, service: Service, kind: str) -> None:
    gpus.system.wait(
        f"{service.name} is on {kind}",
        lambda: is_on(service, kind) and not cutting(gpus) and all(map(is_over, recuts(gpus))),
        RECUT_S,
    )


def approve(gpus: Gpus, plan: Object) -> str:
    command = (sys.executable, "-m", "tessera_cli.kubectl.main", "approve")
    kubeconfig = f"--kubeconfig={gpus.system.cluster.kubeconfig}"
    done = subprocess.run(
        [*command, plan["metadata"]["name"], "--yes", kubeconfig],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(service: Service) -> Load:
    return Load(service.target(), X, {"right": answer(FILES[service.name], X)})


def reached(gpus: Gpus, action: str, turn: int) -> str:
    """The node where the plan that cuts has come to its first or second step of this kind; empty: nowhere yet."""
    for plan in cutting(gpus):
        steps = plan["spec"]["steps"]
        ids = [step["id"] for step in steps]
        at = ((plan.get("status") or {}).get("step") or {}).get("id")
        wanted = [index for index, step in enumerate(steps) if step["action"] == action]
        # Who leads anew plans what is left, so the first one's steps may be gone.
        if at in ids and wanted and ids.index(at) >= wanted[: turn + 1][-1]:
            nodes = [step["target"].get("node") for step in steps[: ids.index(at) + 1]]
            return next(str(node) for node in reversed(nodes) if node)
    return ""


def kill(gpus: Gpus, who: str, node: str) -> None:
    """End the operator that leads, or the agent or partitioner of ``node``, at once; another one follows."""
    system = gpus.system
    if who == "operator":
        path = "--output=jsonpath={.spec.holderIdentity}"
        leads = system.kubectl("get", "lease", "tessera-operator", f"--namespace={SYSTEM}", path)
        pod = system.read("Pod", leads, SYSTEM)
        assert pod is not None, f"nobody leads: {leads}"
    else:
        pod = system.runtime_pod(node) if who == "agent" else gpus.partitioner(node)
    identifier = system.container(pod, who)["containerID"]
    system.cluster.node(pod["spec"]["nodeName"]).signal_container(identifier, "SIGKILL")
    if who == "partitioner":
        # Another one comes at once; the kubelet would wait before it starts this one again.
        name, now = pod["metadata"]["name"], ("--grace-period=0", "--force", "--wait=false")
        system.kubectl("delete", "pod", name, f"--namespace={SYSTEM}", *now)


def order_of(events: list[Event], node: str, gpu: str, goal: set[str], address: str) -> list[str]:
    """What became of one GPU, in the order in which the API server heard of it; ``address``: of the node's pod."""
    found: dict[str, int] = {}
    for number, moment in enumerate(moments(events)):
        status = moment.objects.get(("RuntimeNode", node), {}).get("status") or {}
        devices = {each["uuid"]: each for each in status.get("devices") or ()}
        cuts = {each["uuid"]: places(each) for each in status.get("cuts") or ()}
        running = devices.get(gpu, {}).get("instances") or ()
        sent = {
            each
            for (kind, _), one in moment.objects.items()
            if kind == "EndpointSlice" and one["metadata"]["labels"].get(SERVICE_LABEL) == "moves"
            for endpoint in one.get("endpoints") or ()
            for each in endpoint["addresses"]
        }
        seen = {
            "there": address in sent,
            "left": "there" in found and address not in sent,
            "drained": "left" in found and not running,
            "cut": cuts.get(gpu) == goal,
            "loaded": "cut" in found and any(each["ready"] for each in running),
            "routed": "loaded" in found and address in sent,
        }
        for what, is_so in seen.items():
            if is_so:
                found.setdefault(what, number)
    return sorted(found, key=lambda each: found[each])


def places(cut: Object) -> set[str]:
    return {f"{each['profile']}@{each['start']}" for each in cut.get("slices") or ()}


def test_a_plan_that_cuts_waits_for_a_person(gpus: Gpus, moves: Service, joins: Service) -> None:
    before, homes = gpus.cuts(), spots(moves)
    goal = {f"{PART}@6", f"{JOINS}@4"}
    lines = {
        f"cut {node}/{gpu}: {WHOLE}@0 -> {' + '.join(sorted(goal))}"
        for node, (gpu, _) in homes.items()
    }
    addresses = {node: gpus.system.runtime_pod(node)["status"]["podIP"] for node in homes}
    watched = (kinds.RUNTIME_NODE, ""), (kinds.ENDPOINT_SLICE, moves.namespace)
    gpus.change_pool(approval="Manual")
    with asked(moves) as load:
        serve(gpus, moves.namespace, "joins", JOINS)
        [plan] = gpus.system.wait("it waits", lambda: waiting(gpus, "Approval"))
        assert lines <= set(plan["spec"]["diff"])
        load.go_on_for(CALM_S)
        assert gpus.cuts() == before
        timeline = Timeline(gpus.system.cluster.kubeconfig, *watched)
        said = approve(gpus, plan)
        assert all(line in said for line in lines), said
        for service, kind in ((joins, JOINS), (moves, PART)):
            settled(gpus, service, kind)
        timeline.end()
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    after = gpus.cuts()
    for node, (gpu, _) in homes.items():
        assert set(after[node, gpu]) == goal
        found = order_of(timeline.events(), node, gpu, goal, addresses[node])
        assert found == ["there", "left", "drained", "cut", "loaded", "routed"]
    assert all(after[key] == before[key] for key in before.keys() - boards(moves)), "UUIDs too"
    gpus.change_pool(approval="Auto")


@pytest.mark.parametrize(("first", "second"), KILLS, ids=lambda each: "-".join(each))
def test_whoever_is_killed_at_whichever_step_it_ends_as_planned(
    gpus: Gpus, moves: Service, first: Kill, second: Kill
) -> None:
    """Nodes are cut one after the other: ``first`` is at the first one's step, ``second`` at the second one's."""
    kind = WHOLE if is_on(moves, PART) else PART
    before, own = gpus.cuts(), boards(moves)
    with asked(moves) as load:
        fits(moves, kind)
        for turn, (who, action) in enumerate((first, second)):
            node = gpus.system.wait(
                f"the step {action}", partial(reached, gpus, action, turn), RECUT_S
            )
            kill(gpus, who, node)
        settled(gpus, moves, kind)
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    after = gpus.cuts()
    assert all(after[key] == before[key] for key in before.keys() - own), "UUIDs too"
    assert not any(cut.get("problem") for cut in recuts(gpus))


def test_a_cut_waits_for_its_time_and_is_undone_where_it_fails(
    gpus: Gpus, moves: Service, joins: Service
) -> None:
    before, own = gpus.cuts(), boards(moves)
    month = (datetime.now(UTC).month + 5) % 12 + 1
    closed = [{"schedule": f"0 0 1 {month} *", "duration": "1h"}]
    gpus.change_pool(disruption={"minInterval": "1h", "windows": closed})
    gpus.fail(REFUSED)
    with asked(moves) as load:
        serve(gpus, moves.namespace, "joins", JOINS)
        [plan] = gpus.system.wait("it waits", lambda: waiting(gpus, "Window"))
        assert f"-{month:02}-01T00:00:00Z" in conditions(plan)["Waiting"]["message"]
        gpus.change_pool(disruption={"windows": []})
        gpus.system.wait("it was cut not long ago", lambda: waiting(gpus, "Interval"))
        assert gpus.cuts() == before
        gpus.change_pool(disruption=ANY_TIME)
        gpus.system.wait("it fails", lambda: rolled_back(gpus))
        gpus.fail("")
        settled(gpus, moves, WHOLE)
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    after = gpus.cuts()
    assert {key: set(cut) for key, cut in after.items()} == {
        key: set(cut) for key, cut in before.items()
    }
    [cut] = [each for each in recuts(gpus) if each.get("problem")]
    assert (cut["node"], cut["device"]) in own
    assert cut["problem"].startswith("NotPermitted")
    assert cut["retryAt"] > cut["endedAt"]


def rolled_back(gpus: Gpus) -> list[Object]:
    return [each for each in gpus.system.objects("PlacementPlan") if holds(each, "RolledBack")]
