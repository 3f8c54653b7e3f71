"""A service that has fewer nodes than it is to be spread over serves what those can, until there are more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import applied, cluster, gpu_node, gpu_place, measured, service
from support.plan_rules import served
from tessera_core.api import ModelService
from tessera_core.gpu.geometry import Placement
from tessera_core.plan import ClusterState, NodeState, Plan, Running, Slice, plan

ONE_GPU = 4237.8
"""Rows/s that the model carries on one A100 within 50 ms."""
ALIKE = 0.02
HALVES = (Placement("3g.40gb", 0), Placement("3g.40gb", 4))


def spread(nodes: int, load: float, **spec: object) -> ModelService:
    """A service that asks for so many nodes, and for the rate of so many GPUs."""
    return service("s", rps=load * ONE_GPU, placement={"spread": {"minNodes": nodes}}, **spec)  # type: ignore[arg-type]


def running(node: NodeState) -> NodeState:
    """``node`` with a copy of the model on its first GPU."""
    first, *rest = node.devices
    copy = Running("vision.s", "m", Slice(), 64, 1)
    return replace(node, devices=(replace(first, running=(copy,)), *rest))


def state(nodes: Iterable[NodeState], wanted: ModelService) -> ClusterState:
    half = measured("m", gpu_place("3g.40gb"), 0.4)
    return cluster(nodes, [wanted], [measured("m", gpu_place()), half])


def load_of(decided: Plan) -> float:
    """In GPUs."""
    return served(decided).get("vision.s", 0.0) / ONE_GPU


def places(decided: Plan) -> list[str]:
    """The node of each copy."""
    return sorted(each.node for each in decided.assignments)


@given(
    gpus=st.integers(1, 4),
    others=st.lists(st.integers(1, 3), max_size=2),
    nodes=st.integers(1, 4),
    load=st.sampled_from([0.5, 1.5, 2.5, 3.5, 5.5]),
)
def test_it_serves_as_much_as_its_nodes_can(
    gpus: int, others: list[int], nodes: int, load: float
) -> None:
    more = [gpu_node(f"g{index}", count) for index, count in enumerate(others)]
    found = plan(state([running(gpu_node("g", gpus)), *more], spread(nodes, load)))
    assert load_of(found) == pytest.approx(min(load, gpus + sum(others)), abs=ALIKE)


def test_it_also_takes_free_slices_of_another_kind() -> None:
    whole, cut = running(gpu_node("g")), gpu_node("cut", geometry=HALVES)
    devices = (replace(each, cuttable=False) for each in (*whole.devices, *cut.devices))
    found = plan(state([replace(whole, devices=tuple(devices))], spread(2, 1.5)))
    assert load_of(found) == pytest.approx(1.5, abs=ALIKE)
    assert {each.slice.name for each in found.assignments} == {"full", "3g.40gb"}


@pytest.mark.parametrize(
    ("load", "scaling"),
    [
        (3.5, {"minReplicas": 4, "maxReplicas": 4}),
        (0.1, {"minReplicas": 4}),
        (0.1, {"mode": "Fixed", "minReplicas": 4}),
    ],
)
def test_a_copy_is_kept_back_for_the_node_that_lacks(
    load: float, scaling: dict[str, object]
) -> None:
    facts = state([running(gpu_node("g", 4))], spread(2, load, scaling=scaling))
    found = plan(facts)
    assert places(found) == ["g", "g", "g"]
    now = applied(found, facts)
    found = plan(replace(now, nodes=(*now.nodes, gpu_node("h"))))
    assert places(found) == ["g", "g", "g", "h"]


def test_a_copy_for_another_node_is_no_reason_for_a_second_one_on_this() -> None:
    assert places(plan(state([running(gpu_node("g", 4))], spread(2, 0.5)))) == ["g"]


@pytest.mark.parametrize("gpus", [1, 2, 3, 4])
@pytest.mark.parametrize("nodes", [["g"], ["g", "h"]])
@pytest.mark.parametrize("load", [0.1, 1.5])
def test_there_are_as_many_copies_as_fit_whether_one_runs_or_not(
    gpus: int, nodes: list[str], load: float
) -> None:
    wanted = spread(len(nodes), load, scaling={"minReplicas": 4})
    others = [gpu_node(name) for name in nodes[1:]]
    for first in (gpu_node("g", gpus), running(gpu_node("g", gpus))):
        found = places(plan(state([first, *others], wanted)))
        assert len(found) == min(4, gpus + len(others))
        assert set(found) == set(nodes)


def test_a_rate_goes_before_copies_of_another_service() -> None:
    few = spread(1, 0.1, scaling={"minReplicas": 4})
    busy = service("t", rps=2 * ONE_GPU)
    facts = state([running(gpu_node("g", 3))], few)
    found = plan(replace(facts, services=(*facts.services, busy)))
    assert Counter(each.service for each in found.assignments) == {"vision.s": 1, "vision.t": 2}
