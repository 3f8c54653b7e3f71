"""Which pools get more nodes: where one would close the gap, and of those the cheapest."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.objects import pool, service
from tessera_core.api import RuntimePool
from tessera_core.plan.decision import Plan, Refusal, ServicePlan, Shortfall, Why
from tessera_operator.growth import Offer, Stock, cheapest, growth, price_of

L4, A100 = "NVIDIA-L4", "NVIDIA-A100-SXM4-80GB"
STOCKS = {"p": Stock(1, 1, {L4}), "q": Stock(1, 1, {A100})}


def planned(*refusals: Refusal, service: str = "vision.s") -> Plan:
    return Plan("plan", (), (), tuple((service, "m", each) for each in refusals), (), 0, 0, False)


def lacks(why: Why, device: str = f"{L4}/full", devices: int = 1, **others: int) -> Refusal:
    alternatives = tuple((f"{product}/full", count) for product, count in others.items())
    return Refusal(why, "", Shortfall(10.0, device, devices, alternatives))


def missing_nodes(*facts: Any) -> Mapping[str, int]:
    return growth(*facts).missing


def large(name: str, **spec: Any) -> RuntimePool:
    return pool(name, **{"size": {"max": 9}, **spec})


@pytest.mark.parametrize(
    ("refusal", "found"),
    [
        (lacks(Why.INSUFFICIENT_CAPACITY, devices=3), {"p": 3}),
        (lacks(Why.NO_DEVICE), {"p": 1}),
        (lacks(Why.SPREAD_UNMET), {"p": 1}),
        (lacks(Why.ISOLATION_UNMET), {"p": 1}),
        (lacks(Why.INFEASIBLE), {}),
        (lacks(Why.QUOTA_EXCEEDED), {}),
        (lacks(Why.FORMAT_NOT_ALLOWED), {}),
        (Refusal(Why.INSUFFICIENT_CAPACITY, ""), {}),
        (lacks(Why.INSUFFICIENT_CAPACITY, "NVIDIA-T4/full"), {}),
        # Seven of the smallest slice are one board.
        (lacks(Why.INSUFFICIENT_CAPACITY, f"{A100}/1g.10gb", 7), {"q": 1}),
        (lacks(Why.INSUFFICIENT_CAPACITY, f"{A100}/1g.10gb", 8), {"q": 2}),
        (lacks(Why.INSUFFICIENT_CAPACITY, f"{A100}/3g.40gb", 3), {"q": 2}),
    ],
)
def test_nodes_are_missing_where_they_would_close_the_gap(
    refusal: Refusal, found: dict[str, int]
) -> None:
    assert missing_nodes([large("p"), large("q")], STOCKS, planned(refusal), {}) == found


def test_a_service_that_is_short_of_something_misses_nodes_too() -> None:
    short = ServicePlan("vision.s", 9, 1, 1, 1, 99, lacks(Why.INSUFFICIENT_CAPACITY, devices=2))
    plan = Plan("plan", (), (short,), (), (), 0, 0, False)
    assert missing_nodes([large("p")], STOCKS, plan, {}) == {"p": 2}


def test_the_largest_shortfall_counts_and_a_node_brings_all_its_gpus() -> None:
    refusals = [lacks(Why.INSUFFICIENT_CAPACITY, devices=each) for each in (3, 9, 5)]
    assert missing_nodes([large("p", gpus=4)], STOCKS, planned(*refusals), {}) == {"p": 3}


def test_a_node_brings_all_its_cores() -> None:
    refusal = lacks(Why.INSUFFICIENT_CAPACITY, "cpu/cpu-2", 5)
    stocks = {"p": Stock(1, 1, {"cpu"})}
    assert missing_nodes([large("p", gpus=0)], stocks, planned(refusal), {}) == {"p": 2}


@pytest.mark.parametrize("why", [Why.NO_DEVICE, Why.NO_PROFILE])
def test_pools_that_have_shown_nothing_are_tried_with_one_node(why: Why) -> None:
    stocks = {"q": Stock(1, 0, {L4})}
    pools = [large("p"), large("q"), large("r", size={"max": 0})]
    assert missing_nodes(pools, stocks, planned(Refusal(why, "")), {}) == {"p": 1}


@pytest.mark.parametrize("why", [Why.NO_DEVICE, Why.INSUFFICIENT_CAPACITY])
def test_a_pool_that_was_tried_in_vain_is_not_tried_again_for_the_same(why: Why) -> None:
    stocks = {"p": Stock(useless_for={"vision.s"})}
    refusal = lacks(why)
    assert missing_nodes([large("p")], stocks, planned(refusal), {}) == {}
    assert missing_nodes([large("p")], stocks, planned(refusal, service="a.b"), {}) == {"p": 1}


def test_what_has_no_place_but_nodes_that_go_gets_their_like() -> None:
    plan = planned(Refusal(Why.NO_DEVICE, ""))
    pools = [large("p"), large("q"), large("r")]
    found = growth(pools, {"p": Stock(0, 0, {L4})}, plan, {}, {"vision.s": {"p": 2}})
    assert found.missing == {"p": 2}


def test_a_node_that_was_tried_and_has_not_told_what_it_has_is_waited_for() -> None:
    plan = planned(Refusal(Why.NO_DEVICE, ""))
    assert missing_nodes([large("p")], {"p": Stock(1, 0)}, plan, {}) == {}


def test_nothing_is_missing_where_everything_has_its_place() -> None:
    assert missing_nodes([large("p")], {}, planned(), {}) == {}


def test_only_a_pool_where_the_service_may_run_is_asked() -> None:
    """Else nodes would be added without end: none of them closes the gap."""
    pools = [large("p"), large("q", labels={"team": "vision"})]
    stocks = dict.fromkeys(("p", "q"), Stock(1, 1, {L4}))
    chosen = service("s", placement={"poolSelector": {"matchLabels": {"team": "vision"}}})
    plan = planned(lacks(Why.INSUFFICIENT_CAPACITY))
    assert missing_nodes(pools, stocks, plan, {"vision.s": chosen.spec}) == {"q": 1}


@pytest.mark.parametrize("products", [{L4}, set()])
def test_code_asks_for_nodes_of_a_pool_that_allows_code(products: set[str]) -> None:
    pools = [large("p"), large("q", trust={"allowCode": True})]
    stocks = dict.fromkeys(("p", "q"), Stock(len(products), len(products), products))
    code = service("s", formats={"m": "TorchScript"})
    plan = planned(lacks(Why.NO_DEVICE))
    assert missing_nodes(pools, stocks, plan, {"vision.s": code.spec}) == {"q": 1}


@pytest.mark.parametrize(
    ("cheap", "dear", "found"),
    [
        ("1", "9", {"p": 4}),  # four L4 at 1 against one A100 at 9
        ("3", "9", {"q": 1}),
        ("2.25", "9", {"q": 1}),  # the same price: fewer nodes
    ],
)
def test_of_pools_of_other_shapes_the_one_that_costs_least_is_grown(
    cheap: str, dear: str, found: dict[str, int]
) -> None:
    pools = [
        large("p", cost={"perNodeHour": cheap}),
        large("q", cost={"perNodeHour": dear}),
    ]
    refusal = lacks(Why.INSUFFICIENT_CAPACITY, f"{L4}/full", 4, **{L4: 4, A100: 1})
    assert missing_nodes(pools, STOCKS, planned(refusal), {}) == found


def test_a_pool_at_its_maximum_is_passed_over_for_the_next() -> None:
    refusal = lacks(Why.INSUFFICIENT_CAPACITY, f"{L4}/full", 4, **{L4: 4, A100: 1})
    pools = [
        pool("p", cost={"perNodeHour": "1"}, size={"max": 1}),
        large("q", cost={"perNodeHour": "9"}),
    ]
    assert missing_nodes(pools, STOCKS, planned(refusal), {}) == {"q": 1}


def test_a_pool_that_nobody_knows_is_tried_where_its_nodes_cost_less() -> None:
    refusal = lacks(Why.INSUFFICIENT_CAPACITY, devices=2)
    known = large("p", cost={"perNodeHour": "3"})
    for price, found in (("5", {"p": 2, "new": 1}), ("7", {"p": 2})):
        unknown = large("new", cost={"perNodeHour": price})
        assert missing_nodes([known, unknown], STOCKS, planned(refusal), {}) == found


def test_a_pool_that_nobody_knows_is_tried_where_the_others_are_full() -> None:
    refusal = lacks(Why.INSUFFICIENT_CAPACITY, devices=2)
    full = pool("p", cost={"perNodeHour": "1"}, size={"max": 2})
    unknown = large("new", cost={"perNodeHour": "50"})
    found = missing_nodes([full, unknown], STOCKS, planned(refusal), {})
    assert found == {"p": 1, "new": 1}
    assert growth([full, unknown], STOCKS, planned(refusal), {}).full == {"p"}


@pytest.mark.parametrize(
    ("made", "price"),
    [
        (large("p", gpus=4, cost={"perNodeHour": "24.5"}), 24.5),
        (large("p", gpus=4), 4.0),
        (large("p", gpus=0), 8 / 64),
    ],
)
def test_a_node_without_a_price_costs_what_it_has(made: RuntimePool, price: float) -> None:
    assert price_of(made) == price


OFFERS = st.lists(
    st.tuples(
        st.floats(0.1, 50.0),
        st.fractions(min_value="1/20", max_value=3, max_denominator=20).map(float),
        st.integers(0, 8),
    ),
    max_size=4,
).map(lambda found: [Offer(f"p{index}", *each) for index, each in enumerate(found)])


@given(OFFERS)
def test_no_pool_gets_more_than_it_may_have_and_what_can_be_closed_is(offers: list[Offer]) -> None:
    found = cheapest(offers)
    assert all(found.get(each.pool, 1) > 0 for each in offers)
    assert all(found.get(each.pool, 0) <= each.room for each in offers)
    closed = sum(found.get(each.pool, 0) * each.share for each in offers)
    assert closed >= min(1.0, sum(each.room * each.share for each in offers)) - 1e-6


@given(OFFERS)
def test_it_never_costs_more_than_the_best_single_pool(offers: list[Offer]) -> None:
    found = cheapest(offers)
    price = sum(found.get(each.pool, 0) * each.price for each in offers)
    nodes = {each.pool: ceil(1 / each.share - 1e-9) for each in offers}
    alone = [each.price * nodes[each.pool] for each in offers if nodes[each.pool] <= each.room]
    assert not alone or price <= min(alone) + 1e-6


@given(OFFERS, st.integers(0, 3))
def test_one_that_is_free_and_large_enough_is_always_taken(offers: list[Offer], at: int) -> None:
    free = Offer("free", 0.0, 1.0, 1)
    assert cheapest([*offers[:at], free, *offers[at:]]) == {"free": 1}
