"""Brute force on cases whose optimum is known by hand, and the tiny cases made for it."""

from __future__ import annotations

from itertools import permutations

import pytest
from bench.planner.brute import Kind, Member, TooLarge, least_cost
from bench.planner.tiny import MOST_BOARDS, MOST_MEMBERS, brute_case, tiny_case
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.gpu.devices import DeviceClass
from tessera_core.plan.demand import Demand

WHOLE, HALF = 0, 1
BOARD = ((WHOLE,), (HALF, HALF))


def test_two_members_share_a_board_in_halves() -> None:
    members = (Member(10, (30, 10)), Member(10, (30, 10)))
    assert least_cost([Kind(2.0, 2, BOARD)], members) == 2.0


def test_a_part_is_never_shared() -> None:
    members = (Member(10, (30, 0)), Member(10, (30, 0)))
    assert least_cost([Kind(2.0, 2, BOARD)], members) == 4.0
    assert least_cost([Kind(2.0, 1, BOARD)], members) is None


def test_parts_of_several_classes_add_up() -> None:
    # 40 = a whole board (30) and a half (10); the other half carries the second member.
    members = (Member(40, (30, 10)), Member(9, (30, 10)))
    assert least_cost([Kind(1.0, 3, BOARD)], members) == 2.0


def test_the_cheaper_of_two_ways_is_found() -> None:
    members = (Member(20, (10, 20)),)
    small, large = Kind(1.0, 2, ((0,),)), Kind(3.0, 1, ((1,),))
    assert least_cost([small, large], members) == 2.0
    assert least_cost([small, Kind(1.5, 1, ((1,),))], members) == 1.5


def test_a_greedy_choice_for_the_first_member_does_not_hide_a_solution() -> None:
    # The first could take either class, the second only class 0.
    members = (Member(10, (10, 10)), Member(10, (10, 0)))
    assert least_cost([Kind(1.0, 1, ((0, 1),))], members) == 1.0


def test_nothing_to_serve_costs_nothing() -> None:
    assert least_cost([Kind(1.0, 1, BOARD)], ()) == 0.0
    assert least_cost([], (Member(1, (1.0,)),)) is None


def test_a_large_case_is_refused() -> None:
    with pytest.raises(TooLarge, match="choices"):
        least_cost([Kind(1.0, 30, tuple(BOARD * 5))], (Member(1, (1, 1)),))


def test_a_case_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="need: must be positive, found 0"):
        Member(0, (1.0,))
    with pytest.raises(ValueError, match="a packing"):
        Kind(1.0, 1, ())
    with pytest.raises(ValueError, match="one number per class"):
        least_cost([], (Member(1, (1.0,)), Member(1, (1.0, 2.0))))


rates = st.sampled_from((0.0, 4.0, 10.0, 25.0))
members_strategy = st.lists(
    st.builds(Member, st.sampled_from((3.0, 10.0, 24.0)), st.tuples(rates, rates)),
    min_size=1,
    max_size=3,
)


def by_assignment(kinds: list[Kind], members: list[Member]) -> float | None:
    """The same optimum in the plainest way: every part of every packing to every member or nobody."""

    def boards(index: int) -> list[tuple[float, tuple[int, ...]]]:
        if index == len(kinds):
            return [(0.0, ())]
        found = boards(index + 1)
        for _ in range(kinds[index].count):
            used = [
                (cost + kinds[index].cost, (*parts, *packing))
                for cost, parts in found
                for packing in kinds[index].packings
            ]
            found = found + used
        return found

    def serves(parts: tuple[int, ...], needs: tuple[float, ...]) -> bool:
        if max(needs) <= 1e-9:
            return True
        if not parts:
            return False
        return serves(parts[1:], needs) or any(
            serves(
                parts[1:],
                (*needs[:m], needs[m] - members[m].rates[parts[0]], *needs[m + 1 :]),
            )
            for m in range(len(needs))
        )

    needs = tuple(member.need for member in members)
    return min((cost for cost, parts in boards(0) if serves(parts, needs)), default=None)


@given(members_strategy, st.sampled_from((1.0, 3.0)), st.integers(0, 2))
def test_it_is_the_optimum_over_all_assignments(
    members: list[Member], price: float, count: int
) -> None:
    kinds = [Kind(2.0, 1, BOARD), Kind(price, count, ((HALF,),))]
    expected = by_assignment(kinds, members)
    assert least_cost(kinds, members) == expected
    assert {least_cost(kinds, order) for order in permutations(members)} == {expected}


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_tiny_cases_are_small_reproducible_and_in_the_words_of_brute_force(seed: int) -> None:
    state = tiny_case(seed)
    assert state == tiny_case(seed)
    members = [member for service in state.services for member in service.spec.members]
    assert 1 <= len(state.nodes) <= MOST_BOARDS
    assert 1 <= len(members) <= MOST_MEMBERS
    profiles = {each.key: each.profile for each in state.measured}

    def largest(demand: Demand, place: DeviceClass) -> float:
        return profiles[demand.digest or "", place.product, place.slice].throughput(64)

    kinds, needs = brute_case(state, largest)
    assert sum(kind.count for kind in kinds) == len(state.nodes)
    assert len(needs) == len(members)
    cost = least_cost(kinds, needs)
    assert cost is None or min(kind.cost for kind in kinds) <= cost
    assert cost is None or cost <= sum(kind.cost * kind.count for kind in kinds)


def test_a_mig_boards_packings_are_its_legal_ones() -> None:
    state = next(
        case
        for case in map(tiny_case, range(200))
        if any(pool.allowed_profiles == ("1g.6gb", "2g.12gb", "4g.24gb") for pool in case.pools)
        and len(case.pools) == 1
    )
    (kind,), _ = brute_case(state, lambda demand, place: 1.0)
    # whole, 1111, 112, 22, 4: by the A30's table
    assert sorted(map(len, kind.packings)) == [1, 1, 2, 3, 4]


def test_some_tiny_cases_can_be_served_and_some_cannot() -> None:
    costs = []
    for seed in range(60):
        state = tiny_case(seed)
        profiles = {each.key: each.profile for each in state.measured}

        def carried(demand: Demand, place: DeviceClass, known: dict = profiles) -> float:  # type: ignore[type-arg]
            profile = known[demand.digest, place.product, place.slice]
            fits = 2 * profile.service_ms(16) <= demand.budget_ms
            return float(profile.throughput(16)) if fits else 0.0

        costs.append(least_cost(*brute_case(state, carried)))
    assert 5 <= costs.count(None) <= 40
    assert len(set(costs)) > 8
