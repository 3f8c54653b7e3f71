"""What holds for every plan (docs/planner-properties.md), checked by an oracle without code of the search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.clusters import applied
from support.plan_rules import broken_rules, served, unanswered
from support.random_clusters import SORTS, clusters, node, plain_clusters, services
from tessera_core.api import ModelService, RuntimeNode
from tessera_core.plan import (
    ClusterState,
    Located,
    Plan,
    diff,
    explain,
    plan,
    to_runtime_nodes,
)
from tessera_core.plan.planner import Planner
from tessera_core.plan.state import Goal

Item = TypeVar("Item")
LEAST = 1e-9
"""Rates are sums of thousandths; what is told is a float."""
ALIKE = 0.021
"""Shares that differ by less are equally fair: nobody is moved for them."""


def examples(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Drawing a cluster takes a while, which is no fault of the property."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def with_rate(service: ModelService, rate: float) -> ModelService:
    traffic = replace(service.spec.traffic, requests_per_second=rate)
    return replace(service, spec=replace(service.spec, traffic=traffic))


def running(state: ClusterState) -> tuple[Plan, ClusterState]:
    """A plan of ``state`` from nothing, and the cluster that has carried it out."""
    decided = plan(state)
    return decided, applied(decided, state)


def shares(decided: Plan, state: ClusterState) -> list[float]:
    """What services get of what they asked for, the smallest first."""
    rates = served(decided)
    return sorted(
        rates.get(each.served_name, 0.0) / each.spec.traffic.requests_per_second
        for each in state.services
    )


def as_fair(before: list[float], after: list[float]) -> bool:
    """Whether the first share that differs by more than a little is larger; any share is more than none."""
    for then, now in zip(before, after, strict=True):
        if abs(now - then) > ALIKE or (now > 0) != (then > 0):
            return now > then
    return True


def of_others(located: tuple[Located, ...], service: str) -> list[Located]:
    return [each for each in located if each.running.service != service]


# --- legal and complete


@examples(37)
@given(clusters())
def test_no_rule_is_broken_and_every_demand_is_answered(state: ClusterState) -> None:
    decided = plan(state)
    assert list(broken_rules(decided, state)) == []
    assert unanswered(decided, state) == set()
    for each in to_runtime_nodes(decided, epoch=1):
        assert RuntimeNode.from_dict(each.to_dict()) == each
    told = {each.service for each in explain(decided, state)}
    assert told == {each.served_name for each in state.services}


@examples(15)
@given(clusters())
def test_maximising_the_rate_breaks_no_rule_and_serves_no_less(state: ClusterState) -> None:
    most = replace(state, policy=replace(state.policy, objective=Goal.MAXIMISE_RATE))
    decided, least = plan(most), plan(state)
    assert list(broken_rules(decided, most)) == []
    assert unanswered(decided, most) == set()
    if not any(each.short for each in least.services) and not least.refused:
        assert not decided.refused
        assert not any(each.short for each in decided.services)


@examples(20)
@given(clusters(), clusters())
def test_whatever_runs_now_the_plan_is_legal_and_complete(
    state: ClusterState, before: ClusterState
) -> None:
    old = replace(before, nodes=state.nodes, pools=state.pools, policy=state.policy)
    now = applied(plan(old), state)
    decided = plan(now)
    assert list(broken_rules(decided, now)) == []
    assert unanswered(decided, now) == set()


@examples(20)
@given(clusters())
def test_the_lower_bound_is_never_above_the_cost(state: ClusterState) -> None:
    decided = plan(state)
    assert decided.lower_bound <= decided.cost * (1 + LEAST)


# --- a function of the facts


@examples(15)
@given(clusters(), st.randoms(use_true_random=False))
def test_the_order_of_facts_changes_nothing(state: ClusterState, random: Random) -> None:
    def shuffled(values: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(random.sample(values, len(values)))

    def mixed(state: ClusterState) -> ClusterState:
        return replace(
            state,
            nodes=tuple(
                replace(
                    each,
                    devices=shuffled(
                        tuple(replace(d, running=shuffled(d.running)) for d in each.devices)
                    ),
                    labels=shuffled(each.labels),
                )
                for each in shuffled(state.nodes)
            ),
            services=shuffled(state.services),
            measured=shuffled(state.measured),
            pools=shuffled(state.pools),
            quotas=shuffled(state.quotas),
            priorities=shuffled(state.priorities),
        )

    decided, now = running(state)
    assert plan(mixed(state)) == decided
    assert plan(mixed(now)) == plan(now)


@examples(10)
@given(st.lists(clusters(most_nodes=3, most_services=3), min_size=2, max_size=4))
def test_what_was_planned_before_makes_no_difference(states: list[ClusterState]) -> None:
    planner = Planner()
    for state in [*states, *states]:
        assert planner.plan(state) == plan(state)


@examples(10)
@given(clusters(), st.sampled_from((1.1, 2.0)))
def test_a_planner_that_remembers_plans_a_changed_rate_alike(
    state: ClusterState, factor: float
) -> None:
    planner = Planner()
    planner.plan(state)
    first = with_rate(
        state.services[0], state.services[0].spec.traffic.requests_per_second * factor
    )
    changed = replace(state, services=(first, *state.services[1:]))
    assert planner.plan(changed) == plan(changed)


# --- stable


@examples(37)
@given(clusters())
def test_planning_an_applied_plan_gives_no_action(state: ClusterState) -> None:
    first, now = running(state)
    again = plan(now)
    assert diff(again, now).empty
    assert again.name == first.name


@examples(20)
@given(clusters())
def test_losing_an_unused_node_changes_nothing(state: ClusterState) -> None:
    first, now = running(state)
    used = {each.node for each in first.assignments}
    kept = tuple(each for each in now.nodes if each.name in used)
    fewer = replace(now, nodes=kept)
    assert diff(plan(fewer), fewer).empty


@examples(25)
@given(plain_clusters(), st.sampled_from(sorted(SORTS)))
def test_more_capacity_never_serves_less(state: ClusterState, sort: str) -> None:
    """In the order of max-min fairness: one share may fall for a smaller one to rise."""
    first, now = running(state)
    more = replace(now, nodes=(*now.nodes, node("zz", sort)))
    assert as_fair(shares(first, state), shares(plan(more), state))


@examples(25)
@given(plain_clusters(most_nodes=2, most_services=3), st.data())
def test_a_rate_that_wavers_within_the_slack_moves_nothing(
    state: ClusterState, data: st.DataObject
) -> None:
    slack = state.policy.slack
    first, now = running(state)
    carried = {each.service: each.max_requests_per_second for each in first.services}
    full = {each.service for each in first.services if each.short is None}
    for _ in range(4):
        noisy = []
        for each in state.services:
            rate = each.spec.traffic.requests_per_second
            if each.served_name in full:
                factor = data.draw(st.floats(1 - slack / 2, 1 + slack / 2))
                rate = min(rate * factor, carried[each.served_name])
            noisy.append(with_rate(each, rate))
        wavering = replace(now, services=tuple(noisy))
        change = diff(plan(wavering), wavering)
        assert not change.added
        assert not change.removed


@examples(25)
@given(plain_clusters(), st.sampled_from((0.3, 0.8, 1.3, 4.0)))
def test_a_changed_rate_leaves_the_others_where_they_are(
    state: ClusterState, factor: float
) -> None:
    first, now = running(state)
    if first.refused or any(each.short for each in first.services):
        return
    changed = with_rate(
        state.services[0], state.services[0].spec.traffic.requests_per_second * factor
    )
    after = replace(now, services=(changed, *state.services[1:]))
    decided = plan(after)
    if decided.refused or any(each.short for each in decided.services):
        return
    change = diff(decided, after)
    name = changed.served_name
    assert of_others(change.removed, name) == []
    assert len(of_others(change.added, name)) == 0


@examples(15)
@given(plain_clusters(), st.sampled_from((0, 1, 3)))
def test_saving_cost_moves_no_more_than_the_policy_allows(state: ClusterState, most: int) -> None:
    first, now = running(state)
    if any(each.short for each in first.services):
        return
    quiet = tuple(
        with_rate(each, each.spec.traffic.requests_per_second / 8) for each in now.services
    )
    calm = replace(now, services=quiet, policy=replace(now.policy, max_moves=most))
    assert len(diff(plan(calm), calm).added) <= most


@examples(15)
@given(plain_clusters())
def test_a_deleted_service_is_removed_and_nobody_else_has_less(state: ClusterState) -> None:
    first, now = running(state)
    gone = state.services[0].served_name
    left = replace(now, services=state.services[1:])
    after = plan(left)
    assert all(each.service != gone for each in after.assignments)
    rates = served(after)
    for name, rate in served(first).items():
        if name != gone:
            assert rates.get(name, 0.0) >= rate * (1 - LEAST)


# --- priority


@examples(25)
@given(plain_clusters(most_nodes=3, most_services=3), services(2, plain=True, prefix="low"))
def test_a_lower_priority_never_takes_from_a_higher_one(
    state: ClusterState, lower: tuple[ModelService, ...]
) -> None:
    state = replace(state, priorities=(("low", -10),))
    lower = tuple(
        replace(each, spec=replace(each.spec, priority_class_name="low")) for each in lower
    )
    first, now = running(state)
    both = replace(now, services=(*now.services, *lower))
    assert as_fair(shares(first, state), shares(plan(both), state))
    # From nothing prices, and with them the arrangement, may differ, but the smallest share counts first.
    both = replace(state, services=(*state.services, *lower))
    assert as_fair(shares(first, state)[:1], shares(plan(both), state)[:1])


# --- monotone


@examples(25)
@given(plain_clusters(most_services=3), st.sampled_from((1.05, 1.5, 4.0)))
def test_a_higher_rate_costs_at_most_one_device_less(state: ClusterState, factor: float) -> None:
    raised = tuple(
        with_rate(each, each.spec.traffic.requests_per_second * factor) for each in state.services
    )
    less, more = plan(state), plan(replace(state, services=raised))
    if more.refused or any(each.short for each in more.services):
        return
    assert not less.refused
    assert not any(each.short for each in less.services)
    assert less.cost <= more.cost + 1
