"""Pools under the real Karpenter, on kwok's nodes: nodes come with the rate, go with it, and none of them while it serves.

Pods are said to run, agents are emulated: requests are sent on real nodes, in e2e/test_changes_under_load.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from e2e.autoscaling.karpenter import LABEL, Shape, install, karpenter
from e2e.autoscaling.timeline import Event, Timeline, moments
from e2e.chart import NAMESPACE
from e2e.native.processes import wait_until
from e2e.scale import fleet
from e2e.scale.site import Site, site

from tessera_operator import kinds
from tessera_operator.cluster import Cluster, connect

pytestmark = pytest.mark.timeout(1200)

ONE, EIGHT = Shape("one", 1, 4.0), Shape("eight", 8, 64.0)
SHAPES = (ONE, EIGHT)
RATE = 4_000.0
"""Requests per second that one GPU carries; more than three are needed for five times as many."""
_SERVICE = {
    "apiVersion": fleet.API,
    "kind": "ModelService",
    "metadata": {"name": "digits", "namespace": fleet.NAMESPACES[0]},
}
_BROUGHT_S = 120.0
_GIVEN_BACK_S = 400.0
"""A rate that was higher fades over minutes."""
_FALLEN_BACK_S = 300.0


@dataclass(slots=True)
class Scene:
    """A site, with whoever brings its nodes."""

    site: Site
    timeline: Timeline
    karpenter: ExitStack = field(default_factory=ExitStack)

    def start_karpenter(self, *, buffers: bool) -> None:
        self.karpenter.close()
        process = karpenter(self.site.kubeconfig, self.site.folder, SHAPES, buffers=buffers)
        self.karpenter.enter_context(process)

    def ask_for(self, rate: float) -> None:
        spec = {"traffic": {"requestsPerSecond": f"{rate:g}"}}
        self.site.api.merge(_SERVICE, {"spec": spec})

    def nodes(self) -> Counter[str]:
        """How many there are, by shape."""
        items = self.site.api.call("GET", "/api/v1/nodes")["items"]
        return Counter(each["metadata"]["labels"][LABEL] for each in items)

    def service(self) -> dict[str, Any]:
        return self.site.api.read(_SERVICE)

    def condition(self, document: dict[str, Any], kind: str) -> dict[str, Any]:
        found = self.site.api.read(document).get("status", {}).get("conditions", ())
        return next((each for each in found if each["type"] == kind), {})

    def is_served(self) -> bool:
        """Whether the service has all that it asks for."""
        service = self.service()
        status = service.get("status", {})
        found = {each["type"]: each["status"] for each in status.get("conditions", ())}
        wanted = {"Planned": "True", "Placed": "True", "Ready": "True", "Progressing": "False"}
        return (
            status.get("observedGeneration") == service["metadata"]["generation"]
            and found.get("CapacityShortfall") == "False"
            and wanted.items() <= found.items()
        )

    def pods(self, label: str, pool: str) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={label}%3D{pool}"
        items: list[dict[str, Any]] = self.site.api.call("GET", path)["items"]
        return items


@pytest.fixture(scope="module")
def scene(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A cluster without nodes, a pool that may have some, and a service."""
    with site(binaries, tmp_path_factory.mktemp("autoscaling"), 0, starts=False) as running:
        install(running.api, SHAPES)
        watched = (kinds.NODE, ""), (kinds.RUNTIME_NODE, ""), (kinds.POD, NAMESPACE)
        found = Scene(running, Timeline(running.kubeconfig, *watched))
        with found.karpenter:
            found.start_karpenter(buffers=True)
            running.start_operator()
            running.api.apply(profile())
            running.api.apply(profile(), "status")
            running.api.apply(pool(EIGHT, 0, 2))
            running.api.apply(service(RATE))
            yield found


def test_only_the_pod_that_is_meant_is_deleted(scene: Scene) -> None:
    cluster = Cluster(connect(str(scene.site.kubeconfig)))
    container = {"name": "c", "image": "none"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "some", "namespace": NAMESPACE},
        "spec": {"containers": [container], "nodeSelector": {"example.com/never": ""}},
    }
    head = {"name": "some", "namespace": NAMESPACE}
    uid = scene.site.api.create(pod)["metadata"]["uid"]
    cluster.delete({"kind": "Pod", "metadata": {**head, "uid": "of-one-before"}})
    assert scene.site.api.exists(pod)
    cluster.delete({"kind": "Pod", "metadata": {**head, "uid": uid}})
    wait_until(lambda: not scene.site.api.exists(pod), _BROUGHT_S, "it is gone")
    cluster.delete({"kind": "Pod", "metadata": {**head, "uid": uid}})


def test_the_server_is_asked_whether_it_knows_buffers(scene: Scene) -> None:
    cluster = Cluster(connect(str(scene.site.kubeconfig)))
    assert cluster.serves(kinds.CAPACITY_BUFFER)
    assert not cluster.serves(kinds.HTTP_ROUTE)


def test_a_pool_that_nobody_knows_is_tried_with_one_node(scene: Scene) -> None:
    wait_until(scene.is_served, _BROUGHT_S, "the service has what it asks for")
    assert scene.nodes() == {"eight": 1}


def test_what_serves_moves_to_a_cheaper_pool_before_the_dear_node_is_given_back(
    scene: Scene,
) -> None:
    begin = scene.timeline.events()[-1].revision
    scene.site.api.apply(pool(ONE, 1, 3))
    wait_until(lambda: scene.nodes() == {"one": 1}, _GIVEN_BACK_S, "the dear node is given back")

    assert scene.is_served()
    assert_given_back(scene.timeline.events(), begin, EIGHT)


def test_five_times_the_rate_brings_the_cheapest_nodes_that_carry_it(scene: Scene) -> None:
    begin = len(scene.timeline.events())
    scene.ask_for(5 * RATE)
    wait_until(lambda: scene.nodes()["eight"] > 0, _BROUGHT_S, "a node comes")
    wait_until(scene.is_served, _BROUGHT_S, "the service has what it asks for")

    assert scene.nodes() == {"one": 1, "eight": 1}, "two more of one would be too few"
    events = scene.timeline.events()[begin:]
    (node,) = {each.name for each in events if each.kind == "Node" and is_of(each, EIGHT)}
    first = [
        next(index for index, event in enumerate(events) if happened(event))
        for happened in (
            lambda event: event.kind == "Pod" and not event.document["spec"].get("nodeName"),
            lambda event: (event.kind, event.name) == ("Node", node),
            lambda event: event.kind == "Pod" and event.document["spec"].get("nodeName") == node,
            lambda event: (event.kind, event.name) == ("RuntimeNode", node),
            lambda event: (
                event.name == node and bool(event.document.get("status", {}).get("devices"))
            ),
            lambda event: event.name == node and bool(event.document["spec"].get("devices")),
        )
    ]
    assert first == sorted(first), "pod, machine, pod on it, RuntimeNode, its devices, what it runs"


def test_the_rate_of_before_gives_back_what_came_and_nothing_that_serves(scene: Scene) -> None:
    begin = scene.timeline.events()[-1].revision
    scene.ask_for(RATE)
    wait_until(lambda: scene.nodes() == {"one": 1}, _GIVEN_BACK_S, "the node is given back")
    wait_until(scene.is_served, _BROUGHT_S, "the service has what it asks for")

    assert_given_back(scene.timeline.events(), begin, EIGHT)


def test_a_machine_that_is_taken_away_serves_until_its_copies_answer_elsewhere(
    scene: Scene,
) -> None:
    begin = scene.timeline.events()[-1].revision
    claims = scene.site.api.call("GET", "/apis/karpenter.sh/v1/nodeclaims")["items"]
    (claim,) = (each for each in claims if each["metadata"]["labels"][LABEL] == "one")
    name = claim["status"]["nodeName"]
    scene.site.api.delete({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", **claim})
    gone = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    wait_until(lambda: not scene.site.api.exists(gone), _GIVEN_BACK_S, "the machine is gone")
    wait_until(scene.is_served, _BROUGHT_S, "the service has what it asks for")

    events = scene.timeline.events()
    tainted = left = 0
    for moment in moments(events):
        event = moment.event
        if event.revision <= begin:
            continue
        if not tainted and event.name == name and event.kind == "Node":
            tainted = event.revision
        if tainted and not left and not moment.told(name):
            left = event.revision
            others = {each for kind, each in moment.objects if kind == "RuntimeNode"} - {name}
            assert any(map(moment.runs, others)), "it serves elsewhere"
    assert left
    ended = [(kind, in_use) for kind, _, in_use in endings(events, begin)]
    assert ("Pod", True) not in ended
    assert always_served(events, begin)


def test_spare_nodes_are_a_buffer_where_somebody_acts_on_it(scene: Scene) -> None:
    spare(scene, EIGHT, 1)
    wait_until(lambda: scene.nodes()["eight"] == 1, _BROUGHT_S, "a spare node comes")
    held = partial(scene.condition, pool(EIGHT, 0, 2), "Headroom")
    wait_until(lambda: held().get("reason") == "CapacityBuffer", _BROUGHT_S, "it is told")

    assert held()["status"] == "True"
    assert (
        scene.pods("tessera.dev/pool", "eight") == scene.pods("tessera.dev/headroom", "eight") == []
    )
    spare(scene, EIGHT, 0)
    buffer = {
        "apiVersion": kinds.CAPACITY_BUFFER.api_version,
        "kind": kinds.CAPACITY_BUFFER.name,
        "metadata": {"name": "tessera-headroom-eight", "namespace": NAMESPACE},
    }
    wait_until(
        lambda: scene.site.api.read(buffer).get("status", {}).get("replicas") == 0,
        _BROUGHT_S,
        "Karpenter counts none any more",
    )


def test_spare_nodes_are_held_by_pods_that_give_way_where_nobody_acts_on_a_buffer(
    scene: Scene,
) -> None:
    scene.start_karpenter(buffers=False)
    wait_until(lambda: scene.nodes()["eight"] == 0, _GIVEN_BACK_S, "it is given back")
    spare(scene, EIGHT, 1)
    held = partial(scene.condition, pool(EIGHT, 0, 2), "Headroom")
    wait_until(lambda: bool(held()), _BROUGHT_S, "a buffer is tried")
    assert held()["reason"] == "CapacityBufferNotReady"
    wait_until(lambda: held()["reason"] == "PlaceholderPods", _FALLEN_BACK_S, "nobody acted on it")
    wait_until(
        lambda: (
            [each["status"]["phase"] for each in scene.pods("tessera.dev/headroom", "eight")]
            == ["Running"]
        ),
        _BROUGHT_S,
        "a pod holds the room",
    )
    (placeholder,) = scene.pods("tessera.dev/headroom", "eight")
    scene.site.api.merge(pool(EIGHT, 0, 2), {"spec": {"size": {"min": 1}}})

    def has_room() -> bool:
        pods = scene.pods("tessera.dev/pool", "eight")
        return [each["spec"].get("nodeName") for each in pods] == [placeholder["spec"]["nodeName"]]

    wait_until(has_room, _BROUGHT_S, "a runtime pod takes the room")


def assert_given_back(events: list[Event], begin: int, shape: Shape) -> None:
    """Machines of ``shape`` and no others were given back after ``begin``, emptied, and the service was always served."""
    ended = list(endings(events, begin))
    assert {name for _, name, _ in ended} == {shape.name}
    # Of pods there may be one more, that the ReplicaSet controller made before it was told that one less is wanted.
    kinds = [kind for kind, *_ in ended]
    assert kinds == ["Pod"] * (len(kinds) - 1) + ["Node"]
    assert 1 <= kinds.count("Pod") <= 2
    assert not any(in_use for *_, in_use in ended)
    assert always_served(events, begin)


def endings(events: list[Event], begin: int) -> Iterator[tuple[str, str, bool]]:
    """Runtime pods and machines that began to end after ``begin``: kind, shape, and whether anything was on them."""
    seen = set()
    for moment in moments(events):
        event = moment.event
        key = event.kind, event.name
        ends = event.gone or event.document["metadata"].get("deletionTimestamp")
        if event.revision <= begin or not ends or key in seen:
            continue
        seen.add(key)
        if event.kind == "Node":
            shape = event.document["metadata"]["labels"][LABEL]
            has_pods = any(each["spec"]["nodeName"] == event.name for each in moment.runtime_pods())
            yield event.kind, shape, has_pods
        elif event.kind == "Pod" and event.document["spec"].get("nodeName"):
            labels = event.document["metadata"].get("labels", {})
            node = event.document["spec"]["nodeName"]
            if "tessera.dev/pool" in labels:
                yield event.kind, labels["tessera.dev/pool"], moment.told(node) or moment.runs(node)


def always_served(events: list[Event], begin: int) -> bool:
    """Whether some node that has its runtime pod ran something at each moment after ``begin``."""
    return all(
        any(moment.runs(each["spec"]["nodeName"]) for each in moment.runtime_pods())
        for moment in moments(events)
        if moment.event.revision > begin
    )


def is_of(event: Event, shape: Shape) -> bool:
    return bool(event.document["metadata"]["labels"].get(LABEL) == shape.name)


def spare(scene: Scene, shape: Shape, nodes: int) -> None:
    change = {"spec": {"size": {"headroom": {"spareNodes": nodes}}}}
    scene.site.api.merge(pool(shape, 0, 2), change)


def pool(shape: Shape, least: int, most: int) -> dict[str, Any]:
    return {
        "apiVersion": fleet.API,
        "kind": "RuntimePool",
        "metadata": {"name": shape.name},
        "spec": {
            "node": {"resources": dict(shape.resources), "selector": {LABEL: shape.name}},
            "size": {"min": least, "max": most, "scaleDownDelay": "10s"},
            "cost": {"perNodeHour": f"{shape.per_hour:g}"},
            "trust": {"sharedBetweenNamespaces": True},
        },
    }


def profile() -> dict[str, Any]:
    """Of what is served, on a whole H100."""
    found = list(fleet.profiles())
    return found[1]


def service(rate: float) -> dict[str, Any]:
    model = {
        "uri": "s3://models/digits",
        "format": "TorchExport",
        "digest": profile()["spec"]["modelDigest"],
    }
    return {
        **_SERVICE,
        "spec": {
            "members": [{"name": "m", "model": model, "batch": {"max": 128}}],
            "ensemble": {"combine": "None"},
            "slo": {"objectives": [{"target": "100ms", "percent": "99"}]},
            "traffic": {"requestsPerSecond": f"{rate:g}"},
        },
    }
