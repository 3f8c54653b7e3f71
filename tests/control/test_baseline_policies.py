"""The published rules, step by step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.control.clipper import Clipper, ClipperState
from tessera_core.control.dnnscaler import (
    MOST_INSTANCES,
    REMEMBERED,
    BatchingState,
    DnnScalerBatching,
    DnnScalerInstances,
    InstancesState,
    Knob,
    Probe,
)
from tessera_core.control.setpoint import Batch, Goal, Setpoint, Window
from tessera_core.control.static import Static

MOST = Setpoint(cap=128, instances=10)
GOAL = Goal(slo_ms=100.0, most=MOST)


def seen(*batch_ms: float) -> Window:
    """By the first instance."""
    return Window(3.0, len(batch_ms), (tuple(Batch(1, ms) for ms in batch_ms),))


NOTHING = Window(3.0, 0, ())


@pytest.mark.parametrize(
    ("batch_ms", "cap"), [(84.0, 24), (86.0, 20), (100.0, 20), (101.0, 18)], ids=str
)
def test_clipper_grows_by_four_and_shrinks_by_a_tenth(batch_ms: float, cap: int):
    found = Clipper().step(ClipperState(Setpoint(20, 1)), seen(batch_ms), GOAL)
    assert found.setpoint == Setpoint(cap, 1)


def test_clipper_judges_the_95th_percentile():
    policy, state = Clipper(), ClipperState(Setpoint(20, 1))
    assert policy.step(state, seen(*[10.0] * 95, *[200.0] * 5), GOAL).setpoint.cap == 24
    assert policy.step(state, seen(*[10.0] * 94, *[200.0] * 6), GOAL).setpoint.cap == 18


@given(st.lists(st.floats(1.0, 300.0), max_size=40))
def test_clipper_stays_within_what_is_allowed(batches: list[float]):
    policy = Clipper()
    state = policy.start(GOAL)
    for batch_ms in batches:
        state = policy.step(state, seen(batch_ms), GOAL)
        assert 1 <= state.setpoint.cap <= MOST.cap


def test_nothing_seen_moves_nothing():
    for policy in (Clipper(), DnnScalerBatching(), Static(Setpoint(8, 2))):
        state = policy.start(GOAL)
        assert policy.step(state, NOTHING, GOAL) == state


@pytest.mark.parametrize(
    ("one", "batched", "shared", "knob"),
    [(100.0, 400.0, 300.0, Knob.BATCHING), (100.0, 300.0, 400.0, Knob.MULTI_TENANCY)],
)
def test_the_knob_that_raises_throughput_more_is_chosen(
    one: float, batched: float, shared: float, knob: Knob
):
    assert Probe(one, batched, shared).knob is knob


def affine(rows: int) -> float:
    return 2.0 * rows + 10.0


def search(slo_ms: float, most: int = 128) -> list[int]:
    """Batch sizes until two in a row are the same."""
    policy, goal = DnnScalerBatching(), Goal(slo_ms, Setpoint(most, 1))
    state = policy.start(goal)
    sizes = [state.setpoint.cap]
    while len(sizes) < 2 or sizes[-1] != sizes[-2]:
        state = policy.step(state, seen(affine(state.setpoint.cap)), goal)
        sizes.append(state.setpoint.cap)
        assert len(sizes) < 20
    return sizes


def test_the_first_step_goes_to_the_middle():
    assert search(100.0)[:3] == [1, 64, 32]


@given(st.floats(20.0, 400.0))
def test_the_search_ends_in_the_band_where_there_is_one(slo_ms: float):
    found = search(slo_ms)[-1]
    assert 0.85 * slo_ms <= affine(found) <= slo_ms or found in (1, 127)


def test_the_search_opens_its_bracket_again_when_the_slo_moves():
    policy = DnnScalerBatching()
    state = policy.start(GOAL)
    for goal in (GOAL, Goal(30.0, MOST), Goal(200.0, MOST)):
        for _ in range(16):
            state = policy.step(state, seen(affine(state.setpoint.cap)), goal)
        assert 0.85 * goal.slo_ms <= affine(state.setpoint.cap) <= goal.slo_ms


@given(st.lists(st.tuples(st.floats(1.0, 300.0), st.integers(1, 200)), max_size=30))
def test_the_search_stays_within_what_is_allowed(steps: list[tuple[float, int]]):
    policy, state = DnnScalerBatching(), BatchingState()
    for batch_ms, most in steps:
        state = policy.step(state, seen(batch_ms), Goal(100.0, Setpoint(most, 1)))
        assert 1 <= state.setpoint.cap <= min(most, 127)


def known() -> np.ndarray:
    """Models whose times are flat up to a knee and then rise with their neighbours."""
    counts = np.arange(1, MOST_INSTANCES + 1)
    return np.array([base + slope * counts for base, slope in ((5, 1), (2, 4), (9, 2), (1, 7))])


@pytest.mark.parametrize(("slo_ms", "instances"), [(200.0, 10), (40.0, 6), (5.0, 1)])
def test_instances_start_where_the_estimate_holds_the_slo(slo_ms: float, instances: int):
    """Of this model: 10 ms alone, 52 ms with eight, so 4 + 6 n in between."""
    policy = DnnScalerInstances(known(), 10.0, 52.0)
    assert policy.start(Goal(slo_ms, MOST)).setpoint == Setpoint(1, instances)


def full(batch_ms: float) -> Window:
    """So much was seen that the zeros of the start are forgotten."""
    return seen(*[batch_ms] * REMEMBERED)


def test_instances_grow_and_shrink_one_by_one_and_freeze_after_going_too_far():
    policy = DnnScalerInstances(known(), 10.0, 52.0)
    state = InstancesState(instances=3, wait_s=1.0)
    state = policy.step(state, full(60.0), GOAL)
    assert (state.instances, state.wait_s) == (4, 5.0)
    state = policy.step(state, full(90.0), GOAL)
    assert (state.instances, state.wait_s) == (4, 1.0)
    state = policy.step(state, full(120.0), GOAL)
    assert state.instances == 3
    for batch_ms in (60.0, 80.0, 120.0):  # what would have made it grow, before
        state = policy.step(state, full(batch_ms), GOAL)
        assert state.instances == 3
    assert policy.step(state, full(50.0), GOAL).instances == 4
    assert policy.step(state, full(60.0), Goal(101.0, MOST)).instances == 4


def test_a_window_that_is_not_full_looks_faster_than_it_is():
    policy = DnnScalerInstances(known(), 10.0, 52.0)
    state = policy.step(InstancesState(3, 1.0), seen(*[150.0] * 10), GOAL)
    assert state.instances == 4
