"""Covers against enumeration of every combination of items."""

from __future__ import annotations

from itertools import product
from math import ceil, inf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tessera_core.plan.cover import Item, cheapest, covers

Counts = tuple[int, ...]

# Prices are whole numbers, so that sums are exact and equal prices really are ties; needs are small, so that
# all combinations can be tried.
items_strategy = st.lists(
    st.tuples(st.integers(0, 12).map(float), st.sampled_from((0, *range(2, 10)))),
    min_size=1,
    max_size=4,
)
needs = st.integers(1, 18)
most_strategy = st.one_of(st.integers(0, 6), st.just(100))
below_strategy = st.one_of(st.just(inf), st.integers(1, 40).map(float))


def irredundant(items: list[Item], need: int) -> list[tuple[float, Counts]]:
    """Every cover that is none without any one of its items, the cheapest first."""
    ranges = [range(ceil(need / rate) + 1) if rate else range(1) for _, rate in items]
    found = []
    for counts in product(*ranges):
        spare = rate_of(items, counts) - need
        used = [rate for (_, rate), count in zip(items, counts, strict=True) if count]
        if spare >= 0 and all(rate > spare for rate in used):
            found.append((price_of(items, counts), counts))
    return sorted(found)


def rate_of(items: list[Item], counts: Counts) -> int:
    return sum(rate * count for (_, rate), count in zip(items, counts, strict=True))


def price_of(items: list[Item], counts: Counts) -> float:
    return sum(price * count for (price, _), count in zip(items, counts, strict=True))


@settings(deadline=None)
@given(items_strategy, needs, most_strategy, below_strategy)
def test_the_first_cover_is_the_cheapest_that_the_bounds_allow(
    items: list[Item], need: int, most: int, below: float
) -> None:
    allowed = [
        price for price, counts in irredundant(items, need) if sum(counts) <= most and price < below
    ]
    found = covers(items, need, most, below)
    assert [price for price, _ in found] == allowed[:1]


@settings(deadline=None)
@given(items_strategy, needs, most_strategy, below_strategy, st.integers(1, 6))
def test_covers_are_what_they_say(
    items: list[Item], need: int, most: int, below: float, keep: int
) -> None:
    found = covers(items, need, most, below, keep)
    assert len(found) <= keep
    assert [price for price, _ in found] == sorted(price for price, _ in found)
    assert len({counts for _, counts in found}) == len(found)
    for price, counts in found:
        assert len(counts) == len(items)
        assert min(counts) >= 0
        assert rate_of(items, counts) >= need
        assert price == price_of(items, counts) < below
        assert sum(counts) <= most


@settings(deadline=None)
@given(items_strategy, needs, most_strategy, below_strategy, st.integers(1, 6))
def test_no_cover_that_was_left_out_is_cheaper_than_one_that_was_kept(
    items: list[Item], need: int, most: int, below: float, keep: int
) -> None:
    found = covers(items, need, most, below, keep)
    kept = {counts for _, counts in found}
    limit = found[-1][0] if len(found) == keep else below
    for price, counts in irredundant(items, need):
        if sum(counts) <= most and counts not in kept:
            assert price >= limit


@settings(deadline=None)
@given(items_strategy, needs)
def test_more_covers_begin_with_the_fewer(items: list[Item], need: int) -> None:
    prices = [[price for price, _ in covers(items, need, 100, keep=n)] for n in (1, 2, 4)]
    assert prices[2][:2] == prices[1]
    assert prices[1][:1] == prices[0]


@settings(deadline=None)
@given(items_strategy, needs)
def test_the_least_price_is_that_of_the_cheapest_cover(items: list[Item], need: int) -> None:
    assume(any(rate for _, rate in items))
    assert cheapest(items, need) == irredundant(items, need)[0][0]


@settings(deadline=None)
@given(items_strategy, needs)
def test_the_order_of_items_changes_no_price(items: list[Item], need: int) -> None:
    turned = items[::-1]
    assert cheapest(turned, need) == cheapest(items, need)
    there, back = covers(items, need, 8), covers(turned, need, 8)
    assert [price for price, _ in there] == [price for price, _ in back]


def test_three_covers_of_one_need_by_hand() -> None:
    # 7 of whole boards at 5 (rate 6) and halves at 3 (rate 3): 3 halves 9, whole and half 8, 2 wholes 10.
    items = [(3.0, 3), (5.0, 6)]
    assert covers(items, 7, 10, keep=3) == [(8.0, (1, 1)), (9.0, (3, 0)), (10.0, (0, 2))]
    assert covers(items, 7, 2, keep=3) == [(8.0, (1, 1)), (10.0, (0, 2))]
    assert covers(items, 7, 10, below=9.0, keep=3) == [(8.0, (1, 1))]
    assert covers(items, 7, 1) == []


def test_what_carries_nothing_is_never_taken() -> None:
    assert covers([(0.5, 0), (2.0, 1)], 2, 9) == [(4.0, (0, 2))]
    assert covers([(0.5, 0)], 2, 9) == []
    assert covers([], 2, 9) == []
    assert cheapest([(0.5, 0)], 2) == 0.0
    assert cheapest([], 2) == 0.0


def test_no_need_costs_nothing() -> None:
    assert cheapest([(2.0, 1)], 0) == 0.0
    assert covers([(2.0, 1)], 0, 9) == [(0.0, (0,))]


def test_free_items_cover_for_nothing() -> None:
    items = [(1.0, 5), (0.0, 2)]
    assert covers(items, 9, 99) == [(0.0, (0, 5))]
    assert cheapest(items, 9) == 0.0
    # Where there may be only two of them, the dear one is needed.
    assert covers(items, 7, 2)[0] == (1.0, (1, 1))


def least_price(items: list[Item], need: int) -> float:
    """By dynamic programming, for needs that are too large to enumerate."""
    least = [0.0]
    for left in range(1, need + 1):
        least.append(min(price + least[max(0, left - rate)] for price, rate in items if rate))
    return least[need]


# Even rates at one price per unit of rate: nothing tells combinations apart, and an odd need wastes a unit.
TIES = [(float(rate), rate) for rate in (2, 4, 6, 8, 10)]


def test_a_search_that_is_cut_short_still_bounds_the_price_from_below() -> None:
    assert least_price(TIES, 2001) == 2002
    assert cheapest(TIES, 2001) == pytest.approx(2001)
    assert cheapest([*TIES, (30.0, 20)], 2001) == pytest.approx(2001)
    assert cheapest(TIES, 2000) == 2000


def test_a_search_that_is_cut_short_still_gives_a_cover() -> None:
    ((price, counts),) = covers(TIES, 2001, 10_000)
    assert rate_of(TIES, counts) >= 2001
    assert price == price_of(TIES, counts) == 2002


def test_branches_that_cannot_win_cost_no_steps() -> None:
    items = [(700.0, 71), (400.0, 37), (300.0, 29), (200.0, 17), (100.0, 8), (690.0, 66), (90.0, 7)]
    for need in (501, 997, 1501):
        assert cheapest(items, need) == least_price(items, need)


nearly_ties = st.lists(
    st.tuples(st.integers(50, 300), st.integers(0, 3)), min_size=2, max_size=8
).map(lambda found: [(10.0 * rate + more, rate) for rate, more in found])


@settings(max_examples=60, deadline=None)
@given(nearly_ties, st.integers(300, 3000))
def test_a_long_search_is_never_above_the_least_price(items: list[Item], need: int) -> None:
    least = least_price(items, need)
    assert cheapest(items, need) <= least * (1 + 1e-12)
    ((price, _),) = covers(items, need, 10_000)
    assert price >= least
