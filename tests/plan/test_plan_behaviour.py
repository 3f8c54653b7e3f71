"""What a model does under one budget: covers, bounds and rates agree with each other."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.clusters import digest, gpu_place
from tessera_core.perf import LatencyProfile, Neighbours, ProfileRow
from tessera_core.plan.behaviour import MILLI, Behaviour, Option, Regime, Running
from tessera_core.plan.curves import Curves
from tessera_core.plan.demand import Demand

SLICES = ("1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb")
PLACES = tuple(gpu_place(name) for name in SLICES)
ALL = tuple(range(len(PLACES)))
DEMAND = Demand(
    service="vision.s",
    namespace="vision",
    member="m",
    digest=digest("m"),
    load=100.0,
    rate=100.0,
    rows_per_request=1,
    percentile=99.0,
    budget_ms=50.0,
    burstiness=1.0,
    batch_max=128,
)


def profile(
    alpha_ms: float,
    tau0_ms: float,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
    memory_mib: float = 500.0,
    neighbours: Neighbours = Neighbours.BUSY,
) -> LatencyProfile:
    """One and two instances, batches 1 to 128; two take 1.6 times as long each."""
    rows = []
    for instances, slower in ((1, 1.0), (2, 1.6)):
        for batch in (1, 2, 4, 8, 16, 32, 64, 128):
            ms = slower * (alpha_ms * batch + tau0_ms)
            if rng is not None:
                ms *= rng.uniform(1 - noise, 1 + noise)
            rate = 1000 * instances * batch / ms
            memory = instances * (memory_mib + 10 * batch)
            rows.append(ProfileRow(batch, instances, ms, 1.05 * ms, rate, memory, neighbours))
    return LatencyProfile(tuple(rows))


def curves(*found: LatencyProfile) -> Curves:
    """``found`` on the first places."""
    profiles = {
        (digest("m"), place.product, place.slice): each
        for place, each in zip(PLACES, found, strict=False)
    }
    return Curves(PLACES, profiles, 1.08)


@st.composite
def behaviours(draw: st.DrawFn, bursty: bool = True) -> Behaviour:
    """Noisy profiles on every slice; larger slices take their rows faster, not their constant part."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    alpha, tau0 = rng.uniform(0.1, 2), rng.uniform(0, 8)
    found = [profile(alpha / width, tau0, 0.1, rng) for width in (1, 2, 3, 7)]
    demand = replace(
        DEMAND,
        rows_per_request=draw(st.sampled_from([1, 1, 3])),
        percentile=draw(st.sampled_from([95.0, 99.0, 99.67])),
        budget_ms=exp(rng.uniform(log(15), log(150))),
        burstiness=draw(st.sampled_from([1.0, 1.0, 4.0])) if bursty else 1.0,
    )
    return curves(*found).behaviour(demand)


def cells(behaviour: Behaviour) -> list[Running]:
    """What a search uses."""
    return sorted(
        {
            Running(place, cap, instances)
            for setting in behaviour.settings()
            for (place, instances), cap in setting.items()
        }
    )


def cover(regime: Regime, data: st.DataObject) -> tuple[Running, ...] | None:
    """Parts that add up to the need, none of them superfluous; None where so few do not."""
    chosen: list[Option] = []
    while sum(each.rate for each in chosen) < regime.need:
        if len(chosen) == min(regime.most, 40):
            return None
        chosen.append(data.draw(st.sampled_from(regime.options)))
    for each in tuple(chosen):
        if sum(other.rate for other in chosen) - each.rate >= regime.need:
            chosen.remove(each)
    return tuple(sorted(Running(each.place, each.cap, each.instances) for each in chosen))


@given(behaviour=behaviours(), asked=st.integers(10, 20_000), data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_parts_that_cover_a_regime_carry_what_was_asked(
    behaviour: Behaviour, asked: int, data: st.DataObject
) -> None:
    for regime in behaviour.regimes(asked * MILLI, ALL):
        parts = cover(regime, data)
        if parts is None:
            continue
        carried = behaviour.rate(parts)
        if regime.most > 2 and sum(part.instances for part in parts) == 2:
            # Such a regime counts on three servers; two wait longer for the one that is free first.
            carried = max(carried, behaviour.rate((*parts, parts[0])))
        assert carried >= asked * MILLI


@given(behaviour=behaviours(), asked=st.integers(10, 20_000))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_one_part_is_only_offered_with_the_rate_that_it_carries_alone(
    behaviour: Behaviour, asked: int
) -> None:
    for regime in behaviour.regimes(asked * MILLI, ALL):
        for option in regime.options:
            if option.rate >= regime.need:
                alone = (Running(option.place, option.cap, option.instances),)
                assert behaviour.rate(alone) >= asked * MILLI


@given(behaviour=behaviours(), data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_part_adds_more_than_its_most_rate(behaviour: Behaviour, data: st.DataObject) -> None:
    usable = cells(behaviour)
    if not usable:
        return
    most = behaviour.most_rates()
    assert list(most) == [behaviour.most_rate(place) for place in ALL]
    chosen = st.lists(st.sampled_from(usable), min_size=1, max_size=6)
    for _ in range(10):
        parts = tuple(sorted(data.draw(chosen)))
        bound = sum(float(most[part.place]) for part in parts)
        # Long batches among many fast ones may finish a little more than their own bound.
        assert behaviour.rate(parts) <= 1.06 * bound


@given(behaviour=behaviours())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_best_cell_carries_what_it_says_and_no_cell_of_the_search_much_more(
    behaviour: Behaviour,
) -> None:
    for place in ALL:
        best = behaviour.best(place)
        rates = [behaviour.rate((each,)) for each in cells(behaviour) if each.place == place]
        if best is None:
            assert max(rates, default=0) == 0
            continue
        alone = behaviour.rate((Running(place, best.cap, best.instances),))
        # Looked up one by one or all at once: the same table, other rounding.
        assert alone == pytest.approx(best.rate, rel=1e-6, abs=2)
        assert max(rates) <= best.rate / 0.99 + 2


@given(behaviour=behaviours(), data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_equal_parts_never_carry_less_when_one_more_joins(
    behaviour: Behaviour, data: st.DataObject
) -> None:
    usable = cells(behaviour)
    if not usable:
        return
    part = data.draw(st.sampled_from(usable))
    rates = [behaviour.rate((part,) * count) for count in range(1, 9)]
    assert rates == sorted(rates)


def test_a_part_whose_batches_outlast_the_budget_takes_the_queue_down_to_its_best_server() -> None:
    behaviour = curves(profile(0.5, 2.0), profile(0.25, 2.0)).behaviour(DEMAND)
    fast, slow = Running(1, 32, 1), Running(0, 128, 1)
    assert behaviour.point(slow).batch_ms > DEMAND.budget_ms
    pair = behaviour.rate((fast, fast))
    with_slow = behaviour.rate((slow, fast, fast))
    assert pair > 1.9 * behaviour.rate((fast,))
    assert with_slow == behaviour.rate((fast,))


@given(behaviour=behaviours(bursty=False), data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_latency_at_the_rate_of_parts_is_within_the_budget(
    behaviour: Behaviour, data: st.DataObject
) -> None:
    usable = cells(behaviour)
    if not usable:
        return
    for _ in range(3):
        parts = tuple(sorted(data.draw(st.lists(st.sampled_from(usable), min_size=1, max_size=4))))
        rate = behaviour.rate(parts)
        one_carries_it = rate == max(behaviour.rate((part,)) for part in parts)
        if rate and (len(parts) == 1 or not one_carries_it):
            assert behaviour.latency_ms(parts, rate / MILLI) <= behaviour.budget_ms * 1.01


def test_requests_of_several_rows_wait_together_and_fill_batches_in_whole_requests() -> None:
    found = curves(profile(0.25, 2.0))
    rows = found.behaviour(DEMAND)
    requests = found.behaviour(replace(DEMAND, rows_per_request=12))
    best = requests.best(0)
    assert best is not None
    assert best.cap % 12 == 0
    part = Running(0, best.cap, best.instances)
    assert requests.point(part).queue.cap == best.cap // 12
    assert 0 < requests.rate((part,)) < rows.rate((part,))
    # Each part finishes the same rows; only the line in front of it is counted in requests.
    assert requests.rate((part,) * 20) == pytest.approx(rows.rate((part,) * 20), rel=0.15)


def test_no_cap_exceeds_the_members_bound() -> None:
    behaviour = curves(profile(0.25, 2.0)).behaviour(replace(DEMAND, batch_max=24))
    caps = [point.cap for column in behaviour.columns(0) for point in column.points]
    assert max(caps) == 24
    assert max(cap for setting in behaviour.settings() for cap in setting.values()) == 24


def test_cells_that_exceed_a_parts_memory_do_not_exist_there() -> None:
    # 10 GB hold one instance, and of that not the buffers of the largest batches; 40 GB hold two.
    large = profile(0.25, 2.0, memory_mib=8900.0)
    behaviour = curves(large, large, large).behaviour(replace(DEMAND, budget_ms=500.0))
    small, wide = behaviour.columns(0), behaviour.columns(2)
    assert [column.instances for column in small] == [1]
    assert [column.instances for column in wide] == [1, 2]
    assert max(point.memory_mib for point in small[0].points) <= PLACES[0].memory_mib
    assert small[0].points[-1].cap < wide[0].points[-1].cap == 128
    assert not behaviour.knows(Running(0, 128, 1))
    assert behaviour.knows(Running(2, 128, 2))
    assert behaviour.least_memory(0) == 8910
    huge = curves(profile(0.25, 2.0, memory_mib=40_000.0)).behaviour(DEMAND)
    assert huge.best(0) is None
    assert huge.most_rate(0) == 0.0
    assert huge.least_memory(0) == 40_010


def test_slices_measured_beside_idle_neighbours_only_are_taken_as_slower() -> None:
    part = Running(0, 32, 1)
    busy = curves(profile(0.25, 2.0)).behaviour(DEMAND)
    idle = curves(profile(0.25, 2.0, neighbours=Neighbours.IDLE)).behaviour(DEMAND)
    assert idle.point(part).batch_ms == pytest.approx(1.08 * busy.point(part).batch_ms)
    assert idle.rate((part, part)) < busy.rate((part, part))


def test_a_model_that_was_never_measured_runs_nowhere() -> None:
    found = curves(profile(0.25, 2.0))
    for unknown in (None, digest("other")):
        behaviour = found.behaviour(replace(DEMAND, digest=unknown))
        assert [behaviour.best(place) for place in ALL] == [None] * len(ALL)
        assert behaviour.regimes(100 * MILLI, ALL) == ()
        assert not behaviour.most_rates().any()
        assert behaviour.least_latency_ms(0) == inf
        assert behaviour.least_memory(0) is None
        assert not behaviour.knows(Running(0, 1, 1))
        with pytest.raises(ValueError, match="was not measured"):
            behaviour.point(Running(0, 1, 1))


def test_equal_demands_share_one_behaviour() -> None:
    found = curves(profile(0.25, 2.0))
    other = replace(DEMAND, service="vision.t", member="n", load=7.0, rate=9.0)
    assert found.behaviour(DEMAND) is found.behaviour(other)
    assert found.behaviour(DEMAND) is not found.behaviour(replace(DEMAND, budget_ms=49.0))
