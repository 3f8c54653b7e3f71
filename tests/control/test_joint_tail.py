"""What measured latencies, waiting included, do to the policy that sets batches and instances together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tessera_core.control.joint import (
    LATE,
    MOST_BURSTINESS,
    MOST_TAIL,
    WARMING,
    Joint,
    JointState,
)
from tessera_core.control.setpoint import Batch, Goal, Setpoint, Window
from tessera_core.perf.capacity import latency_percentile
from tessera_core.perf.histogram import Histogram
from tessera_core.perf.profile import LatencyProfile, ProfileRow
from tessera_core.simulate.arrivals import poisson
from tessera_core.simulate.controlled import control

MOST = Setpoint(cap=64, instances=4)
GOAL = Goal(slo_ms=50.0, most=MOST)
RATE = 1000.0


def batch_ms(rows: int, instances: int) -> float:
    return max(4.0 + 0.2 * rows, instances * (1.5 + 0.15 * rows))


PROFILE = LatencyProfile(
    tuple(
        ProfileRow(rows, n, ms := batch_ms(rows, n), ms, 1e3 * n * rows / ms, 100.0 * n)
        for rows in (1, 2, 4, 8, 16, 32, 64)
        for n in (1, 2, 4)
    )
)
POLICY = Joint(PROFILE, 99.0)


def predicted_ms(setpoint: Setpoint, rate: float) -> float:
    return latency_percentile(PROFILE.service(setpoint.cap, setpoint.instances), rate, 99.0)


def latencies(ms: float, count: int) -> tuple[int, ...]:
    """Half of the requests soon, the others about ``ms`` late."""
    found = Histogram()
    found.observe(ms / 4e3, count // 2)
    found.observe(ms / 1e3, count - count // 2)
    return tuple(found.counts)


def second(
    state: JointState, ms: float, rate: float = RATE, answered: int = 1000, lost: int = 0
) -> Window:
    """In which batches took as long as they should, and answers about ``ms``."""
    each = Batch(4, PROFILE.service_ms(4, state.setpoint.instances))
    return Window(1.0, round(rate), ((each,) * 40,), latencies=latencies(ms, answered), lost=lost)


def settled(seconds: int = 3) -> JointState:
    state = POLICY.start(GOAL)
    for _ in range(seconds):
        state = POLICY.step(state, second(state, predicted_ms(state.setpoint, RATE)), GOAL)
    return state


def test_latencies_as_predicted_correct_nothing():
    before = settled()
    state = before
    for _ in range(20):
        state = POLICY.step(state, second(state, predicted_ms(state.setpoint, RATE)), GOAL)
    assert state.tail == pytest.approx(1.0, abs=0.15)
    assert state.setpoint == before.setpoint


def test_longer_latencies_than_predicted_leave_less_of_the_slo_and_so_take_more():
    rate = 2500.0
    first = state = settled()
    for _ in range(30):
        late = 3 * predicted_ms(state.setpoint, rate)
        state = POLICY.step(state, second(state, late, rate), GOAL)
    assert state.tail == pytest.approx(3.0, rel=0.15)
    assert state.setpoint.instances > first.setpoint.instances


def test_what_was_longer_is_forgotten_more_slowly_than_it_was_learnt():
    state = replace(settled(), tail=2.0)
    for _ in range(4):
        state = POLICY.step(state, second(state, predicted_ms(state.setpoint, RATE)), GOAL)
    assert 1.5 < state.tail < 2.0
    for _ in range(120):
        state = POLICY.step(state, second(state, predicted_ms(state.setpoint, RATE)), GOAL)
    assert state.tail < 1.2


def test_shorter_latencies_than_predicted_are_no_reason_for_less():
    state = settled()
    for _ in range(20):
        state = POLICY.step(state, second(state, predicted_ms(state.setpoint, RATE) / 3), GOAL)
    assert state.tail == 1.0


def test_requests_that_were_lost_were_late():
    """None of those that were answered took long: early drops see to that."""
    state = settled()
    ms = predicted_ms(state.setpoint, RATE)
    few = POLICY.step(state, second(state, ms, lost=2), GOAL)
    assert few.tail == pytest.approx(1.0, abs=0.1)
    some = POLICY.step(state, second(state, ms, lost=20), GOAL)
    assert 1.0 < some.tail < 0.8 * LATE * GOAL.slo_ms / ms


def test_many_that_were_lost_are_believed_at_once_however_few_were_answered():
    state = settled()
    ms = predicted_ms(state.setpoint, RATE)
    for answered, lost in ((1000, 100), (40, 20)):
        found = POLICY.step(state, second(state, ms, answered=answered, lost=lost), GOAL)
        assert found.tail == pytest.approx(min(LATE * GOAL.slo_ms / ms, MOST_TAIL), rel=0.1)
    unlucky = POLICY.step(state, second(state, ms, answered=40, lost=2), GOAL)
    assert unlucky.tail == 1.0


def test_few_answers_say_nothing_alone_and_something_together():
    state = settled()
    one = second(state, 3 * predicted_ms(state.setpoint, RATE), answered=100)
    tails = []
    for _ in range(6):
        state = POLICY.step(state, one, GOAL)
        tails.append(state.tail)
    assert tails[0] == tails[1] == 1.0
    assert tails[-1] > 1.0


def test_answers_that_waited_before_a_change_are_not_counted():
    state = settled()
    late = 3 * predicted_ms(state.setpoint, RATE)
    other_setting = replace(state, pause=1)
    assert POLICY.step(other_setting, second(state, late), GOAL).tail == 1.0
    assert POLICY.step(state, second(state, late, rate=1.5 * RATE), GOAL).tail == 1.0
    assert POLICY.step(state, second(state, late), GOAL).tail > 1.0


def test_instances_that_were_added_have_time_to_load_before_latencies_count():
    state = settled()
    rate = 1.1 * POLICY.carries(state.setpoint, GOAL, 1.0, 1.0)
    state = POLICY.step(state, second(state, 10.0, rate), GOAL)
    assert state.setpoint.instances > 1
    for _ in range(WARMING):
        state = POLICY.step(state, second(state, 10.0, rate, lost=500), GOAL)
        assert state.tail == 1.0
    assert POLICY.step(state, second(state, 10.0, rate, lost=500), GOAL).tail > 1.0


def test_where_latencies_are_not_told_nothing_is_corrected():
    state = settled()
    window = replace(second(state, 500.0), latencies=(), lost=500)
    assert POLICY.step(state, window, GOAL).tail == 1.0


def test_beyond_what_is_set_carries_latencies_are_nobodys_error():
    state = JointState(MOST, rate_per_s=1e6, pause=0)
    found = POLICY.step(state, second(state, GOAL.slo_ms, rate=1e6, lost=10**6), GOAL)
    assert found.tail == 1.0


def test_batches_hold_a_request_whole():
    state = POLICY.start(GOAL)
    for _ in range(5):
        window = replace(second(state, 10.0, rate=400.0), rows_each=20.0)
        state = POLICY.step(state, window, GOAL)
    assert state.setpoint.cap >= 20


def test_one_pause_of_a_machine_is_no_burst_of_hundreds():
    state = settled()
    found = POLICY.step(state, replace(second(state, 10.0), burstiness=800.0), GOAL)
    assert found.burstiness <= MOST_BURSTINESS


def test_a_queue_that_is_worse_than_predicted_comes_back_into_its_slo():
    """Every tenth batch takes three times as long, which no median of batch times tells."""
    rng = np.random.default_rng(4)
    slow = rng.random(1 << 16) < 0.1
    ran = 0

    def uneven_ms(rows: int, instances: int) -> float:
        nonlocal ran
        ran += 1
        return batch_ms(rows, instances) * (3.0 if slow[ran % len(slow)] else 1.0)

    policy = Joint(PROFILE, 99.0)
    goal = Goal(30.0, MOST)
    start = policy.start(goal)
    rate = 0.75 * policy.carries(start.setpoint, goal, 1.0, 1.0)
    arrivals = poisson(rate, 60.0, rng)
    found = control(policy, [(0.0, goal)], uneven_ms, arrivals, 60.0)
    assert found.goodput_per_s(40.0, 60.0) >= 0.99 * np.sum(arrivals >= 40e3) / 20.0
    assert found.decisions[-1].setpoint != start.setpoint
