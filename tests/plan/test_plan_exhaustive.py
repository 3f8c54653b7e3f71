"""Every case of a small grid: one or two boards, one or two services, all combinations of a few rates.

What holds for nearly all large cases can still be wrong for the smallest ones, and there nothing is left to
chance: 100 clusters are planned, the plans are carried out and planned again, and all pairs of which one
asks for more than the other are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from support.clusters import applied, cluster, cpu_node, gpu_node, gpu_place, measured, service
from support.plan_rules import broken_rules, served, unanswered
from support.random_clusters import A30
from tessera_core.gpu.devices import FULL, DeviceClass
from tessera_core.plan import ClusterState, Measured, NodeState, Plan, PoolRules, diff
from tessera_core.plan.planner import Planner

MODELS = {"a": (0.2, 1000), "b": (0.35, 12_000)}
"""ms per row on a whole A100, and MiB."""
PLACES: tuple[tuple[DeviceClass | int, float], ...] = (
    (gpu_place(FULL), 1.0),
    (gpu_place(FULL, A30), 2.0),
    (gpu_place("1g.6gb", A30), 9.5),
    (1, 12.0),
)
"""Classes, numbers being cores, and how much slower than a whole A100 they are."""
DOCUMENT = Path(__file__).parents[2] / "docs" / "planner-properties.md"
LARGE = (20, 700, 2000, 3200)
SMALL = (20, 300, 900)
CORES = (20, 100, 300)
FLEETS: dict[str, tuple[tuple[NodeState, ...], tuple[int, ...]]] = {
    "one large": ((gpu_node("n0"),), LARGE[:3]),
    "one small": ((gpu_node("n0", product=A30),), SMALL),
    "one of each": ((gpu_node("n0"), gpu_node("n1", product=A30)), LARGE[:3]),
    "two large on two nodes": ((gpu_node("n0"), gpu_node("n1")), LARGE),
    "two large on one node": ((gpu_node("n0", 2),), (700, 2000, 6000)),
    "cores": ((cpu_node("n0", 2, 12_500),), CORES),
    "large and cores": ((gpu_node("n0"), cpu_node("n1", 2)), (*CORES, 1500)),
}
"""Nodes, and rates from a little of one part to about as much as there is."""
Rates = tuple[int, ...]


def measurements() -> tuple[Measured, ...]:
    return tuple(
        measured(model, place, slower * alpha, slower**0.3, memory)
        for model, (alpha, memory) in MODELS.items()
        for place, slower in PLACES
    )


@cache
def cases(fleet: str) -> dict[Rates, tuple[ClusterState, Plan]]:
    """The state and its plan by the rates of the services."""
    rules = PoolRules("p", partition=True, shared_between_namespaces=True)
    nodes, choice = FLEETS[fleet]
    empty = cluster(nodes, (), measurements(), rules)
    planner = Planner()
    found = {}
    for rates in (*product(choice), *product(choice, repeat=2)):
        services = [
            service(f"s{model}", model, rps=rate)
            for model, rate in zip(MODELS, rates, strict=False)
        ]
        state = replace(empty, services=tuple(services))
        found[rates] = state, planner.plan(state)
    return found


def complete(plan: Plan) -> bool:
    return not plan.refused and not any(each.short for each in plan.services)


def gpus(plan: Plan) -> int:
    return len({each.device for each in plan.assignments if each.device != "cpu"})


def raised(fleet: str) -> Iterator[tuple[Rates, Rates]]:
    """Pairs of rates, the second asking for more of something and for less of nothing."""
    for less, more in product(cases(fleet), repeat=2):
        no_less = all(here <= there for here, there in zip(less, more, strict=False))
        if len(less) == len(more) and less != more and no_less:
            yield less, more


def used_nodes(state: ClusterState, plan: Plan) -> tuple[NodeState, ...]:
    used = {each.node for each in plan.assignments}
    return tuple(node for node in state.nodes if node.name in used)


every_fleet = pytest.mark.parametrize("fleet", FLEETS)


@every_fleet
def test_every_tiny_plan_is_legal_and_answers_every_demand(fleet: str) -> None:
    for rates, (state, plan) in cases(fleet).items():
        assert list(broken_rules(plan, state)) == [], rates
        assert unanswered(plan, state) == set(), rates
        for each in state.services:
            rate = served(plan).get(each.served_name, 0.0)
            kept = rate >= each.spec.traffic.requests_per_second
            assert kept or not complete(plan), f"{rates}: less than was asked for is not said"


@every_fleet
def test_an_applied_tiny_plan_gives_no_action(fleet: str) -> None:
    planner = Planner()
    for rates, (state, plan) in cases(fleet).items():
        now = applied(plan, state)
        again = planner.plan(now)
        assert diff(again, now).empty, rates
        assert again.name == plan.name, rates


@every_fleet
def test_losing_an_unused_node_of_a_tiny_cluster_changes_nothing(fleet: str) -> None:
    planner = Planner()
    for rates, (state, plan) in cases(fleet).items():
        now = applied(plan, state)
        fewer = replace(now, nodes=used_nodes(now, plan))
        if fewer.nodes != now.nodes:
            assert diff(planner.plan(fewer), fewer).empty, rates


@every_fleet
def test_more_of_a_tiny_rate_costs_no_less_and_takes_no_fewer_gpus(fleet: str) -> None:
    """Also: where the higher rates are all served, so are the lower ones."""
    for less, more in raised(fleet):
        (_, low), (_, high) = cases(fleet)[less], cases(fleet)[more]
        if complete(high):
            assert complete(low), (less, more)
            assert low.cost <= high.cost, (less, more)
            assert gpus(low) <= gpus(high), (less, more)


def test_the_grid_has_cases_of_every_sort() -> None:
    plans = [plan for fleet in FLEETS for _, plan in cases(fleet).values()]
    assert {gpus(plan) for plan in plans if complete(plan)} == {0, 1, 2}
    assert {complete(plan) for plan in plans} == {True, False}
    assert any(plan.refused for plan in plans)
    assert any(len(used_nodes(*case)) < 2 for case in cases("one of each").values())
    assert any(each.shares_with for plan in plans for each in plan.assignments)
    assert len(plans) == 100
    assert any(each.slice.name == "1g.6gb" for plan in plans for each in plan.assignments)


def named_tests() -> list[str]:
    """``file::test`` as the document writes them."""
    return sorted(set(re.findall(r"`(test_\w+\.py::\w+)`", DOCUMENT.read_text())))


@pytest.mark.parametrize("name", named_tests())
def test_a_test_that_the_list_of_properties_names_exists(name: str) -> None:
    file, test = name.split("::")
    assert re.search(
        rf"^def {test}\(", (DOCUMENT.parents[1] / "tests/plan" / file).read_text(), re.M
    )


def test_every_property_names_its_test() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if re.search(r"\| [EHX] \|", line)]
    assert len(rows) > 30
    assert all(re.search(r"`test_\w+\.py::\w+` \|$", row) for row in rows)
    mentions = DOCUMENT.read_text().count("::")
    assert mentions == len(re.findall(r"`test_\w+\.py::\w+`", DOCUMENT.read_text()))
