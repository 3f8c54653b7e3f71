"""Edits of a state, and two plans side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import cluster, cpu_node, digest, gpu_node, gpu_place, measured, service
from tessera_core.api import ModelProfile, ModelService
from tessera_core.gpu.geometry import Placement
from tessera_core.plan import (
    Assignment,
    ClusterState,
    DevicePlan,
    NodeState,
    Plan,
    Refusal,
    Running,
    ServicePlan,
    Slice,
    Why,
    plan,
    state_from_dict,
    state_to_dict,
)
from tessera_core.plan.what_if import (
    MOST_COPIES,
    Comparison,
    Edit,
    EditRefused,
    NodeLost,
    NodesAdded,
    RateTimes,
    ServiceAdded,
    Standing,
    compare,
    edited,
)


@pytest.fixture
def state() -> ClusterState:
    running = (Running("vision.a", "m", Slice("1g.10gb", 3), 4, 2),)
    busy = gpu_node("n1", geometry=(Placement("1g.10gb", 3),), running=running, healthy=False)
    return cluster(
        [busy, gpu_node("n2"), cpu_node("c1")],
        [service("a", rps=100), service("b", rps=20), service("off", rps=0)],
        [measured("m", gpu_place("1g.10gb"))],
    )


def _rates(state: ClusterState) -> dict[str, float]:
    return {each.metadata.name: each.spec.traffic.requests_per_second for each in state.services}


def _profile(name: str, content: str, namespace: str = "vision", ms: str = "2ms") -> ModelProfile:
    row = {"batch": 1, "instances": 1, "p50": ms, "p99": ms, "throughput": "500", "memoryMiB": 9}
    place = {"product": "cpu", "slice": "cpu-2", "smCount": 2, "memoryMiB": 1024}
    return ModelProfile.from_dict(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "ModelProfile",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"modelDigest": digest(content), "deviceClass": place, "engine": "e 1"},
            "status": {"rows": [row]},
        }
    )


def _referring(name: str, profile: str, namespace: str = "vision") -> ModelService:
    """A service of one member whose content is known through a profile only."""
    document = service(name, namespace=namespace).to_dict()
    (member,) = document["spec"]["members"]
    del member["model"]["digest"]
    member["profileRef"] = {"name": profile}
    return ModelService.from_dict(document)


def test_no_edits_change_nothing(state: ClusterState) -> None:
    assert edited(state, ()) == state


def test_a_lost_node_takes_what_runs_on_it(state: ClusterState) -> None:
    found = edited(state, [NodeLost("n1")])
    assert [node.name for node in found.nodes] == ["n2", "c1"]
    assert replace(found, nodes=state.nodes) == state


def test_an_added_node_is_like_the_other_but_empty_and_well(state: ClusterState) -> None:
    found = edited(state, [NodesAdded("n1", 2)])
    assert found.nodes[:3] == state.nodes
    assert [node.name for node in found.nodes[3:]] == ["n1-copy-1", "n1-copy-2"]
    original = state.nodes[0].devices[0]
    for number, node in enumerate(found.nodes[3:], 1):
        uuid = f"{original.uuid}-copy-{number}"
        assert node.devices == (replace(original, uuid=uuid, running=(), healthy=True),)
    (again,) = edited(found, [NodesAdded("n1")]).nodes[5:]
    assert again.name == "n1-copy-3"


def test_the_processor_of_an_added_node_keeps_its_id(state: ClusterState) -> None:
    (copy,) = edited(state, [NodesAdded("c1")]).nodes[3:]
    assert copy.devices == state.nodes[2].devices


def test_edits_apply_in_their_order(state: ClusterState) -> None:
    assert edited(state, [NodesAdded("n1"), NodeLost("n1-copy-1")]) == state
    with pytest.raises(EditRefused):
        edited(state, [NodeLost("n1-copy-1"), NodesAdded("n1")])
    with pytest.raises(EditRefused):
        edited(state, [NodeLost("n1"), NodeLost("n1")])


def test_rates_are_multiplied_for_one_service_or_all(state: ClusterState) -> None:
    one = edited(state, [RateTimes(1.5, "vision.a")])
    assert _rates(one) == {"a": 150, "b": 20, "off": 0}
    assert replace(one, services=state.services) == state
    assert _rates(edited(state, [RateTimes(2)])) == {"a": 200, "b": 40, "off": 0}
    both = [RateTimes(2), RateTimes(0.5, "vision.a")]
    assert _rates(edited(state, both)) == {"a": 100, "b": 40, "off": 0}
    assert _rates(edited(state, [RateTimes(0, "vision.b")]))["b"] == 0


@given(st.floats(0, 1e5))
def test_an_edited_state_is_a_state_that_can_be_saved(factor: float) -> None:
    before = cluster([cpu_node("c1")], [service("a", rps=100)], [measured("m", 2)])
    edits = [RateTimes(factor), NodesAdded("c1"), ServiceAdded(service("z"))]
    found = edited(before, edits)
    assert _rates(state_from_dict(state_to_dict(found))) == _rates(found)


def test_a_service_comes_with_the_content_that_its_spec_states(state: ClusterState) -> None:
    new = service("new", ("x", "y"))
    found = edited(state, [ServiceAdded(new)])
    assert found.services == (*state.services, new)
    assert found.digests == (
        ("vision.new", "x", digest("x")),
        ("vision.new", "y", digest("y")),
    )


def test_a_service_may_refer_to_a_profile_that_comes_with_it(state: ClusterState) -> None:
    edit = ServiceAdded(_referring("new", "p"), (_profile("p", "x"),))
    found = edited(state, [edit])
    assert found.digests == (("vision.new", "m", digest("x")),)
    (measurement,) = found.measured[1:]
    assert measurement.key == (digest("x"), "cpu", "cpu-2")
    # Several services of one file bring the same profiles.
    twice = edited(found, [replace(edit, service=_referring("newer", "p"))])
    assert twice.measured == found.measured


def test_a_service_may_refer_to_a_profile_that_another_one_refers_to() -> None:
    known = _referring("a", "shared")
    before = state_from_dict(
        {"services": [known.to_dict()], "profiles": [_profile("shared", "x").to_dict()]}
    )
    found = edited(before, [ServiceAdded(_referring("new", "shared"))])
    assert found.digests == (("vision.a", "m", digest("x")), ("vision.new", "m", digest("x")))
    with pytest.raises(EditRefused, match=r"spec.members\[0\].profileRef.name 'shared'"):
        edited(before, [ServiceAdded(_referring("new", "shared", namespace="other"))])


def test_an_added_service_is_planned_like_one_that_was_there() -> None:
    there = service("b", rps=30)
    before = cluster([cpu_node("c1", 8)], [service("a", rps=50)], [measured("m", 2)])
    after = plan(edited(before, [ServiceAdded(there)]))
    assert after == plan(replace(before, services=(*before.services, there)))
    assert {each.service for each in after.services} == {"vision.a", "vision.b"}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            NodeLost("n11"),
            "node-lost=n11: found no node 'n11', allowed: c1, n1, n2 (did you mean n1?)",
        ),
        (NodesAdded("m", 2), "node-added=m*2: found no node 'm', allowed: c1, n1, n2"),
        (NodesAdded("n1", 0), "node-added=n1*0: found 0, allowed: 1 to 10000 copies"),
        (NodesAdded("n1", MOST_COPIES + 1), "found 10001, allowed: 1 to 10000 copies"),
        (
            RateTimes(2, "vision.aa"),
            "rate=vision.aa*2: found no service 'vision.aa', allowed: vision.a, vision.b, "
            "vision.off (did you mean vision.a?)",
        ),
        (RateTimes(-1), "rate=*-1: found the factor -1, allowed: a finite factor of at least 0"),
        (RateTimes(float("nan")), "found the factor nan, allowed: a finite factor"),
        (RateTimes(1e6), "found 1e+08 requests/s for vision.a, allowed: a product of at most"),
        (RateTimes(2, "vision.off"), "found no expected rate, of which every multiple is 0"),
        (ServiceAdded(service("a")), "add=vision.a: found a second service vision.a, allowed: a"),
        (
            ServiceAdded(_referring("new", "p")),
            "add=vision.new: found spec.members[0].profileRef.name 'p', allowed: a profile that "
            "comes with the service or that a service of the namespace refers to; or the digest "
            "itself in spec.members[0].model.digest",
        ),
    ],
)
def test_an_edit_that_does_not_apply_says_what_is_allowed(state, edit: Edit, message: str) -> None:
    with pytest.raises(EditRefused) as caught:
        edited(state, [RateTimes(1), edit])
    assert message in str(caught.value)
    assert caught.value.edit == edit


def test_two_measurements_of_one_thing_are_refused(state: ClusterState) -> None:
    known = edited(state, [ServiceAdded(service("x"), (_profile("p", "x"),))])
    other = ServiceAdded(service("y"), (_profile("p", "x", ms="3ms"),))
    with pytest.raises(EditRefused, match=r"another measurement of sha256:.* cpu cpu-2 than"):
        edited(known, [other])


def test_a_profile_without_a_measurement_is_refused(state: ClusterState) -> None:
    profile = _profile("p", "x")
    empty = replace(profile, status=replace(profile.status, rows=()))
    with pytest.raises(EditRefused, match=r"found profiles\[0\].status"):
        edited(state, [ServiceAdded(service("new"), (empty,))])


def test_only_some_of_many_names_are_shown() -> None:
    before = cluster([gpu_node(f"n{i:04}") for i in range(1250)], (), ())
    with pytest.raises(EditRefused) as caught:
        edited(before, [NodeLost("n9999")])
    assert "n0007 and 1242 more (did you mean n" in str(caught.value)
    assert len(str(caught.value)) < 200
    with pytest.raises(EditRefused, match="allowed: none, as the state has none"):
        edited(before, [RateTimes(2, "vision.a")])


# Comparison: plans and states made by hand, so that every number is known.

SHORT = Refusal(Why.INSUFFICIENT_CAPACITY, "too few")


def _plan(
    placed: Iterable[tuple[str, str, int]] = (),
    short: Iterable[str] = (),
    refused: Iterable[tuple[str, str]] = (),
    idle: Iterable[str] = (),
    batch: int = 4,
) -> Plan:
    """``placed``: (service, node, instances) of member m."""
    placed, short = list(placed), set(short)
    nodes = sorted({node for _, node, _ in placed})
    return Plan(
        name="plan",
        devices=tuple(
            DevicePlan(
                node,
                "gpu",
                "any",
                (),
                False,
                tuple(
                    Assignment(name, "m", node, "gpu", Slice(), "any", batch, count, 1.0, 1.0, 1.0)
                    for name, where, count in placed
                    if where == node
                ),
            )
            for node in nodes
        ),
        services=tuple(
            ServicePlan(name, 1.0, 1.0, 1.0, 2.0, 99.0, short=SHORT if name in short else None)
            for name in sorted({name for name, _, _ in placed})
        ),
        refused=tuple((name, member, SHORT) for name, member in refused),
        idle=tuple(idle),
        cost=float(len(nodes)),
        lower_bound=1.0,
        truncated=False,
    )


def _running(*placed: tuple[str, str, int]) -> ClusterState:
    nodes = []
    for name in sorted({node for _, node, _ in placed}):
        running = tuple(
            Running(service, "m", Slice(), 4, count)
            for service, where, count in placed
            if where == name
        )
        device = replace(gpu_node(name).devices[0], uuid="gpu", running=running)
        nodes.append(NodeState(name, "p", (device,)))
    return ClusterState(nodes=tuple(nodes))


def _changed(found: Comparison) -> dict[str, tuple[Standing, Standing]]:
    return {each.service: (each.before, each.after) for each in found.services}


def test_equal_plans_have_no_changes() -> None:
    one = _plan([("a", "n1", 2), ("b", "n2", 1)], short=["b"], refused=[("c", "m")], idle=["d"])
    found = compare(one, one, _running())
    assert found.services == ()
    assert found.base == found.what_if


def test_instances_are_counted_against_what_runs() -> None:
    state = _running(("a", "n1", 3), ("b", "n1", 1), ("gone", "n2", 2))
    base = _plan([("a", "n1", 3), ("b", "n1", 1)])
    what_if = _plan([("a", "n1", 1), ("a", "n3", 4), ("b", "n2", 1)])
    found = compare(base, what_if, state)
    assert (found.base.moved, found.base.started, found.base.stopped) == (0, 0, 2)
    # a: 2 leave n1, 4 come to n3; b moves; gone ends.
    assert (found.what_if.moved, found.what_if.started, found.what_if.stopped) == (3, 2, 2)
    assert (found.base.instances, found.what_if.instances) == (4, 6)
    assert (found.base.devices, found.what_if.devices) == (1, 3)
    assert (found.base.cost, found.what_if.cost) == (1, 3)
    assert {each.service: each.instances for each in found.services} == {"a": (3, 5), "b": (1, 1)}


def test_instances_of_a_lost_node_move_elsewhere() -> None:
    state = _running(("a", "n1", 2), ("b", "n2", 1))
    base = _plan([("a", "n1", 2), ("b", "n2", 1)])
    found = compare(base, _plan([("a", "n2", 2), ("b", "n2", 1)]), state)
    assert (found.what_if.moved, found.what_if.started, found.what_if.stopped) == (2, 0, 0)


def test_how_services_fare_before_and_after() -> None:
    base = _plan([("a", "n1", 1), ("b", "n1", 1), ("opt", "n1", 1)], idle=["z"])
    what_if = _plan(
        [("a", "n1", 1), ("new", "n1", 1), ("opt", "n1", 1)],
        short=["a"],
        refused=[("b", "m"), ("opt", "extra"), ("z", "m")],
    )
    found = compare(base, what_if, _running())
    assert _changed(found) == {
        "a": (Standing.PLACED, Standing.SHORT),
        "b": (Standing.PLACED, Standing.REFUSED),
        "new": (Standing.ABSENT, Standing.PLACED),
        "opt": (Standing.PLACED, Standing.SHORT),
        "z": (Standing.IDLE, Standing.REFUSED),
    }
    reasons = {each.service: each.reasons for each in found.services}
    assert reasons["a"] == (("", SHORT),)
    assert reasons["b"] == (("m", SHORT),)
    assert reasons["opt"] == (("extra", SHORT),)
    assert reasons["new"] == ()
    figures = found.what_if
    assert (figures.placed, figures.short, figures.refused) == (1, 2, 2)


def test_another_batch_cap_is_a_change_but_no_move() -> None:
    state = _running(("a", "n1", 1))
    found = compare(_plan([("a", "n1", 1)]), _plan([("a", "n1", 1)], batch=8), state)
    assert _changed(found) == {"a": (Standing.PLACED, Standing.PLACED)}
    assert found.what_if.moved == 0
