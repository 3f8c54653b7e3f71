"""What a policy is told of counters, and which profile stands for several devices or members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.batching.arrivals import Arrivals
from tessera_core.control.setpoint import Batch, Setpoint
from tessera_core.control.steer import Told, active_on_each, in_turn, pooled, window
from tessera_core.perf.counters import Counters
from tessera_core.perf.profile import LatencyProfile

BOTH = frozenset({"a", "b"})
NOTHING = Counters(0.0, 0, 0, 0, 0, 0.0, 0)


def told(counters: Counters, recent: Sequence[tuple[str, Batch]] = (), answered: int = 0) -> Told:
    """``answered`` requests, all within the first 10 µs."""
    return Told(counters, (answered, 0, 0), tuple(recent))


def after(arrivals_s: np.ndarray) -> Counters:
    """Of work of one row at each of ``arrivals_s``."""
    came = Arrivals()
    for at_s in arrivals_s.tolist():
        came.came(at_s, 1)
    return replace(
        NOTHING,
        at_s=arrivals_s[-1],
        arrived=came.rows,
        requests=came.requests,
        groups=came.groups,
        gaps=came.gaps,
        gaps_s=came.gaps_s,
        groups_s2=came.groups_s2,
    )


def test_a_window_has_what_came_since_and_the_batches_that_are_new():
    recent = [("a", Batch(1, 2.0)), ("b", Batch(2, 3.0)), ("a", Batch(4, 5.0))]
    before = replace(NOTHING, at_s=10.0, arrived=100, batches=7, lost=1, requests=40)
    now = replace(NOTHING, at_s=12.0, arrived=160, batches=9, lost=5, requests=70)
    seen = window(told(before, answered=3), told(now, recent, answered=9), BOTH)
    assert seen is not None
    assert (seen.seconds, seen.arrivals, seen.burstiness) == (2.0, 60, None)
    assert seen.batches == ((Batch(2, 3.0), Batch(4, 5.0)),)
    assert (seen.latencies, seen.lost, seen.rows_each) == ((6, 0, 0), 4, 2.0)
    of_one = window(told(before), told(now, recent), frozenset({"a"}), share=0.25)
    assert of_one is not None
    assert (of_one.arrivals, of_one.batches) == (15, ((Batch(4, 5.0),),))
    # Nobody tells them apart.
    assert (of_one.latencies, of_one.lost) == ((), 0)


def test_without_new_batches_there_are_none_in_it():
    before = replace(NOTHING, batches=3)
    seen = window(told(before), told(replace(before, at_s=1.0), [("a", Batch(1, 2.0))]), BOTH)
    assert seen is not None
    assert seen.batches == ((),)


@pytest.mark.parametrize("field", [each.name for each in fields(Counters)])
def test_counters_that_went_back_are_of_another_server(field: str):
    before = Counters(5.0, 5, 5, 5, 5, 5.0, 5, 5, 5, 5, 5.0, 5.0)
    now = Counters(6.0, 6, 6, 6, 6, 6.0, 6, 6, 6, 6, 6.0, 6.0)
    assert window(told(before), told(now), BOTH) is not None
    assert window(told(before), told(replace(now, **{field: 1})), BOTH) is None


def test_without_time_there_is_no_window():
    assert window(told(NOTHING), told(NOTHING), BOTH) is None


@pytest.mark.parametrize(("variance", "about"), [(0.25, 0.25), (1.0, 1.0), (4.0, 4.0)])
def test_how_bursty_arrivals_are_is_seen_in_their_gaps(variance: float, about: float):
    rng = np.random.default_rng(7)
    gaps = rng.gamma(1 / variance, 0.002 * variance, size=20_000)
    seen = window(told(NOTHING), told(after(np.cumsum(gaps))), BOTH)
    assert seen is not None
    assert seen.burstiness == pytest.approx(about, rel=0.1)


def test_few_arrivals_say_nothing_of_bursts():
    seen = window(told(NOTHING), told(after(np.array([0.0, 0.001, 0.002, 0.9]))), BOTH)
    assert seen is not None
    assert seen.burstiness is None


@given(st.integers(1, 6), st.integers(1, 40), st.floats(0.01, 2.0), st.floats(0.1, 5.0))
def test_devices_together_take_as_long_and_carry_as_much_more(
    devices: int, batch: int, alpha_ms: float, tau0_ms: float
):
    one = LatencyProfile.from_fit(alpha_ms, tau0_ms)
    all_ = pooled(one, devices)
    assert all_.instance_counts == (devices,)
    assert all_.service_ms(batch, devices) == one.service_ms(batch)
    assert all_.throughput(batch, devices) == pytest.approx(devices * one.throughput(batch))


@given(st.floats(0.01, 2.0), st.floats(0.01, 2.0), st.integers(1, 128))
def test_members_in_turn_take_as_long_as_all_of_them(one: float, other: float, batch: int):
    profiles = [LatencyProfile.from_fit(one, 1.0), LatencyProfile.from_fit(other, 2.0)]
    both = in_turn(profiles)
    assert both is not None
    assert both.service_ms(batch) == pytest.approx(sum(p.service_ms(batch) for p in profiles))


def test_members_that_were_measured_with_other_counts_are_not_known_together():
    alone = LatencyProfile.from_fit(1.0, 1.0)
    assert in_turn([alone, pooled(alone, 2)]) is None


@given(st.integers(1, 40), st.integers(1, 8))
def test_active_instances_of_all_devices_are_at_least_those_that_were_set(
    instances: int, devices: int
):
    each = active_on_each(Setpoint(1, instances), devices)
    assert each * devices >= instances > (each - 1) * devices
