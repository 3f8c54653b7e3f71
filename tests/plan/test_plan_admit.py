"""Who gets what when there is not enough for everybody, and how the rest is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from support.clusters import (
    A100,
    cluster,
    cpu_node,
    gpu_node,
    gpu_place,
    measured,
    service,
)
from support.plan_rules import served
from tessera_core.api import ModelService
from tessera_core.gpu.geometry import Placement
from tessera_core.plan import ClusterState, Goal, NodeState, Plan, Policy, Shortfall, Why, plan
from tessera_core.plan.admit import fairer
from tessera_core.plan.state import Quota

MODELS = tuple(measured(member, gpu_place()) for member in "abcd")
ONE_GPU = 4237.8
"""Rows/s that each of them carries on one A100 within 50 ms."""
ALIKE = 0.02
"""Shares that differ by less are equal."""


def nodes(count: int) -> list[NodeState]:
    """Nodes of one A100 each: what they carry adds up."""
    return [gpu_node(f"g{index}") for index in range(count)]


def shares(decided: Plan, state: ClusterState) -> dict[str, float]:
    """What each service gets of what it asked for, by name without namespace."""
    rates = served(decided)
    return {
        each.metadata.name: rates.get(each.served_name, 0.0) / each.spec.traffic.requests_per_second
        for each in state.services
    }


def shortfall(decided: Plan) -> Shortfall:
    """The only one."""
    reasons = [each.short for each in decided.services if each.short]
    (reason,) = [*reasons, *(refusal for _, _, refusal in decided.refused)]
    assert reason.shortfall is not None
    return reason.shortfall


# --- priority


@pytest.mark.parametrize("names", ["sz", "zs"], ids=["named first", "named last"])
def test_a_higher_priority_is_served_fully_before_a_lower_one_gets_anything(names: str) -> None:
    high, low = list(names)
    wanted = [
        service(high, "a", rps=4000, priorityClassName="high"),
        service(low, "b", rps=4000),
    ]
    state = cluster(nodes(1), wanted, MODELS, priorities=(("high", 5),))
    decided = plan(state)
    assert shares(decided, state) == {high: 1.0, low: 0.0}
    equal = replace(state, priorities=(("high", 0),))
    assert 0 < shares(plan(equal), equal)[low] < 1


def test_a_lower_priority_gets_what_a_higher_one_leaves() -> None:
    wanted = [
        service("s", "a", rps=1.5 * ONE_GPU, priorityClassName="high"),
        service("t", "b", rps=3 * ONE_GPU),
    ]
    state = cluster(nodes(4), wanted, MODELS, priorities=(("high", 5),))
    found = shares(plan(state), state)
    assert found["s"] == 1.0
    assert 2 / 3 - ALIKE < found["t"] < 1


# --- max-min fairness


def divisions(boards: int, among: int) -> Iterator[tuple[int, ...]]:
    """Every way to give ``boards`` whole boards to ``among`` services."""
    if among == 1:
        yield (boards,)
        return
    for first in range(boards + 1):
        for rest in divisions(boards - first, among - 1):
            yield first, *rest


def fairest(rates: Sequence[float], boards: int) -> list[float]:
    """The shares of the fairest division of whole boards, by trying all of them."""
    ways = [
        sorted(min(1.0, count * ONE_GPU / rate) for count, rate in zip(way, rates, strict=True))
        for way in divisions(boards, len(rates))
    ]
    return max(ways)


ASKED = (
    (1, 2),
    (2, 2),
    (0.9, 1.8),
    (1.2, 2.6),
    (5, 2),
    (9, 0.5),
    (1, 1.5, 2),
    (0.5, 0.9, 1.9),
    (1.9, 1.9, 0.1),
)
"""Boards that services ask for, also more than there are."""


@pytest.mark.parametrize(
    ("gpus_asked", "boards"),
    [(asked, boards) for asked in ASKED for boards in (2, 3, 4) if len(asked) <= boards],
)
def test_the_smallest_share_is_as_large_as_any_division_of_the_boards_makes_it(
    gpus_asked: tuple[float, ...], boards: int
) -> None:
    """Of services of which each can have a board."""
    rates = [round(gpus * ONE_GPU) for gpus in gpus_asked]
    alone = {"isolation": "Exclusive"}
    wanted = [
        service(name, name, rps=rate, placement=alone)
        for name, rate in zip("abcd", rates, strict=False)
    ]
    state = cluster(nodes(boards), wanted, MODELS)
    found = sorted(shares(plan(state), state).values())
    for share, best in zip(found, fairest(rates, boards), strict=True):
        assert share == pytest.approx(best, abs=ALIKE)


def test_members_that_take_turns_share_one_board_in_proportion_to_what_they_ask() -> None:
    wanted = [service("s", "a", rps=2500), service("t", "b", rps=2500)]
    state = cluster(nodes(1), wanted, MODELS)
    found = shares(plan(state), state)
    assert 0.5 < found["s"] < 1
    assert found["s"] == pytest.approx(found["t"], abs=2 * ALIKE)


@pytest.mark.parametrize(
    ("one", "other", "better"),
    [
        ((0.5, 0.9), (0.6, 0.6), True),
        ((0.6, 0.6), (0.5, 0.9), False),
        ((0.5, 0.6), (0.51, 0.9), True),
        ((0.51, 0.9), (0.5, 0.6), False),
        ((0.5, 0.9), (0.515, 0.9), False),
        ((0.0, 0.9), (0.01, 0.5), True),
        ((0.4, 0.4), (0.4, 0.4), False),
    ],
)
def test_fairer_is_whoever_has_clearly_more_at_the_first_difference(
    one: tuple[float, ...], other: tuple[float, ...], better: bool
) -> None:
    assert fairer(one, other) == better


# --- rooms that are given up


def test_a_service_whose_required_member_has_no_room_takes_none_from_the_others() -> None:
    sizes = [
        measured(member, gpu_place(), memory_mib=mib)
        for member, mib in (("a", 60_000), ("b", 60_000), ("c", 30_000), ("d", 30_000))
    ]
    others = [service("t", "c", rps=1500), service("u", "d", rps=1500)]
    state = cluster(nodes(1), [service("s", "ab", rps=10), *others], sizes)
    decided = plan(state)
    assert shares(decided, state) == {"s": 0.0, "t": 1.0, "u": 1.0}
    assert {(name, member) for name, member, _ in decided.refused} == {
        ("vision.s", "a"),
        ("vision.s", "b"),
    }
    alone = plan(replace(state, services=tuple(others)))
    assert decided.assignments == alone.assignments


# --- quotas


def limited(**limits: float) -> ClusterState:
    wanted = [
        service("s", "a", rps=3 * ONE_GPU, namespace="red"),
        service("t", "b", rps=2.9 * ONE_GPU),
    ]
    return cluster(nodes(4), wanted, MODELS, quotas=(Quota("red", **limits),))  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [{"slices": 1}, {"shares": 1.0}])
def test_a_quota_holds_back_its_own_namespace_only(limits: dict[str, float]) -> None:
    state = limited(**limits)
    decided = plan(state)
    found = shares(decided, state)
    assert found["t"] == 1.0
    assert found["s"] == pytest.approx(1 / 3, abs=ALIKE)
    (reason,) = [each.short for each in decided.services if each.short]
    assert reason.why is Why.QUOTA_EXCEEDED
    assert len([each for each in decided.assignments if each.member == "a"]) == 1


def test_who_is_held_back_by_a_quota_makes_the_others_no_less_even() -> None:
    """Five boards: one is all that ``s`` may have, and the others are for two that ask for the same."""
    alone = {"isolation": "Exclusive"}
    wanted = [
        service("s", "a", rps=10 * ONE_GPU, namespace="red", placement=alone),
        service("t", "b", rps=3 * ONE_GPU, placement=alone),
        service("u", "c", rps=3 * ONE_GPU, placement=alone),
    ]
    state = cluster(nodes(5), wanted, MODELS, quotas=(Quota("red", slices=1),))
    found = shares(plan(state), state)
    assert found["s"] == pytest.approx(1 / 10, abs=ALIKE)
    assert found["t"] == pytest.approx(2 / 3, abs=ALIKE)
    assert found["u"] == pytest.approx(2 / 3, abs=ALIKE)


def test_without_a_quota_the_same_services_share_evenly() -> None:
    state = replace(limited(slices=1), quotas=())
    found = shares(plan(state), state)
    assert found["s"] > 1 / 3 + ALIKE
    assert found["t"] < 1


@pytest.mark.parametrize(
    ("limits", "enough", "said"),
    [
        (
            {"slices": 1},
            {"slices": 3},
            "has 1 of 1 slices; it takes requests.tessera.dev/slices of 3",
        ),
        (
            {"shares": 1.5},
            {"shares": 3},
            "has 1 of 1.5 devices; it takes requests.tessera.dev/shares of 3",
        ),
        (
            {"slices": 2, "shares": 2},
            {"slices": 3, "shares": 3},
            "has 2 of 2 slices and 2 of 2 devices; it takes requests.tessera.dev/slices of 3 and "
            "requests.tessera.dev/shares of 3",
        ),
    ],
    ids=str,
)
def test_who_is_held_back_by_a_quota_is_told_which_one_would_do(
    limits: dict[str, float], enough: dict[str, float], said: str
) -> None:
    wanted = [service("s", "a", rps=3 * ONE_GPU, namespace="red")]
    state = cluster(nodes(4), wanted, MODELS, quotas=(Quota("red", **limits),))  # type: ignore[arg-type]
    (short,) = [each.short for each in plan(state).services if each.short]
    assert short.why is Why.QUOTA_EXCEEDED
    assert f"; namespace red {said} in its ResourceQuotas" in short.detail
    larger = replace(state, quotas=(Quota("red", **enough),))  # type: ignore[arg-type]
    assert [each.short for each in plan(larger).services] == [None]


def test_a_quota_of_nothing_refuses_and_says_why() -> None:
    state = limited(slices=0)
    decided = plan(state)
    [(name, _, reason)] = decided.refused
    assert (name, reason.why) == ("red.s", Why.QUOTA_EXCEEDED)
    assert reason.detail.startswith(
        "namespace red has 0 of 0 slices; it takes requests.tessera.dev/slices of "
    )
    assert shares(decided, state)["t"] == 1.0


# --- what would help


@pytest.mark.parametrize("present", [1, 2])
@pytest.mark.parametrize("rate", [5_000, 9_000, 12_000, 20_000])
def test_the_gpus_that_are_said_to_be_missing_are_enough_and_none_is_too_many(
    rate: int, present: int
) -> None:
    state = cluster(nodes(present), [service("s", "a", rps=rate)], MODELS)
    first = plan(state)
    if first.services[0].short is None:
        assert rate <= present * ONE_GPU
        return
    missing = shortfall(first)
    assert missing.device == f"{A100}/full"
    assert missing.requests_per_second == pytest.approx(rate - present * ONE_GPU, rel=1e-3)
    enough = plan(replace(state, nodes=tuple(nodes(present + missing.devices))))
    assert enough.services[0].short is None
    fewer = plan(replace(state, nodes=tuple(nodes(present + missing.devices - 1))))
    assert fewer.services[0].short is not None


def sliced(count: int) -> NodeState:
    """A board whose cut is fixed."""
    return gpu_node("g", geometry=tuple(Placement("1g.10gb", start) for start in range(count)))


def test_missing_slices_are_counted_in_slices() -> None:
    sizes = [measured("m", gpu_place("1g.10gb"), 1.0)]
    state = cluster([sliced(2)], [service("s", rps=3000)], sizes)
    missing = shortfall(plan(state))
    assert missing.device == f"{A100}/1g.10gb"
    enough = plan(replace(state, nodes=(sliced(2 + missing.devices),)))
    assert enough.services[0].short is None


def test_missing_cores_are_counted_in_sets_of_cores() -> None:
    state = cluster([cpu_node("c", 1)], [service("s", rps=9000)], [measured("m", 1)])
    missing = shortfall(plan(state))
    assert missing.device == "cpu-1"
    enough = plan(replace(state, nodes=(cpu_node("c", 1 + missing.devices),)))
    assert enough.services[0].short is None


def test_what_a_refused_service_lacks_is_said_too() -> None:
    sizes = [measured(member, gpu_place(), memory_mib=50_000) for member in "ab"]
    state = cluster(nodes(1), [service("s", "a"), service("t", "b", rps=9000)], sizes)
    decided = plan(state)
    assert [name for name, _, _ in decided.refused] == ["vision.t"]
    missing = shortfall(decided)
    assert (missing.requests_per_second, missing.devices) == (9000, 3)
    enough = plan(replace(state, nodes=tuple(nodes(1 + missing.devices))))
    assert not enough.refused
    assert not any(each.short for each in enough.services)


# --- as much as there is


def growing(count: int, *wanted: ModelService) -> Plan:
    policy = Policy(objective=Goal.MAXIMISE_RATE)
    return plan(cluster(nodes(count), wanted, MODELS, policy=policy))


@pytest.mark.parametrize(("count", "rates"), [(2, (100, 200)), (3, (100, 200)), (4, (100, 300))])
def test_maximising_the_rate_raises_all_by_the_same_factor_and_uses_every_board(
    count: int, rates: tuple[int, int]
) -> None:
    decided = growing(count, service("s", "a", rps=rates[0]), service("t", "b", rps=rates[1]))
    factors = [each.max_requests_per_second / each.requests_per_second for each in decided.services]
    assert factors[0] == pytest.approx(factors[1], rel=0.05)
    assert min(factors) > 20
    assert len({each.device for each in decided.assignments}) == count


def test_what_one_cannot_use_another_one_gets() -> None:
    """``s`` may have one part only; its limit is not that of ``t``."""
    bound = service("s", "a", rps=100, scaling={"maxReplicas": 1})
    decided = growing(4, bound, service("t", "b", rps=100))
    small, large = decided.services
    assert small.max_requests_per_second <= ONE_GPU + 1
    assert large.max_requests_per_second >= 2.9 * ONE_GPU
    assert len({each.device for each in decided.assignments}) == 4
