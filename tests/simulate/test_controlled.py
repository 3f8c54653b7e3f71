"""A queue whose cap and instances a policy sets: without changes it is the queue of the station."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.control.clipper import INTERVAL_S, Clipper
from tessera_core.control.joint import Joint
from tessera_core.control.setpoint import Goal, Setpoint
from tessera_core.control.static import Static
from tessera_core.perf.profile import LatencyProfile, ProfileRow
from tessera_core.simulate.arrivals import gamma, poisson
from tessera_core.simulate.controlled import ControlledEnsemble, control, control_ensemble
from tessera_core.simulate.station import Station, simulate

MOST = Setpoint(64, 8)


def batch_ms(rows: int, instances: int) -> float:
    return 2.0 + 0.5 * rows


@given(
    st.integers(0, 1000),
    st.floats(50.0, 3000.0),
    st.integers(1, 16),
    st.integers(1, 4),
    st.floats(5.0, 60.0),
)
@settings(deadline=None, max_examples=60)
def test_a_setting_that_stays_is_a_station(
    seed: int, rate_per_s: float, cap: int, instances: int, slo_ms: float
):
    arrivals = poisson(rate_per_s, 2.0, np.random.default_rng(seed))
    policy = Static(Setpoint(cap, instances))
    found = control(policy, [(0.0, Goal(slo_ms, MOST))], batch_ms, arrivals, 10.0)
    times = tuple(batch_ms(rows, instances) for rows in range(1, cap + 1))
    expected = simulate(Station(times, instances), arrivals, slo_ms)
    np.testing.assert_allclose(found.latency_ms, expected.latency_ms)
    assert found.good == np.count_nonzero(expected.latency_ms <= slo_ms)


def test_a_policy_is_asked_when_it_wants_to_be_and_what_it_sets_holds():
    arrivals = np.arange(0.0, 60_000.0, 5.0)
    found = control(Clipper(), [(0.0, Goal(100.0, MOST))], batch_ms, arrivals, 60.0)
    changes = [decision.at_s for decision in found.decisions[1:]]
    assert changes == [INTERVAL_S * (n + 1) for n in range(len(changes))]
    assert [decision.setpoint.cap for decision in found.decisions[:3]] == [1, 5, 9]


def test_a_goal_that_changes_holds_for_those_that_come_later():
    arrivals = np.arange(0.0, 2000.0, 100.0)
    goals = [(0.0, Goal(50.0, MOST)), (1.0, Goal(2.0, MOST))]
    found = control(Static(Setpoint(1, 1)), goals, batch_ms, arrivals, 3.0)
    assert set(found.slo_ms[:10]) == {50.0}
    assert set(found.slo_ms[10:]) == {2.0}
    assert np.isfinite(found.latency_ms[:10]).all()
    assert np.isinf(found.latency_ms[10:]).all()
    assert found.goodput_per_s(0.0, 1.0) == 10.0
    assert found.goodput_per_s(1.0, 2.0) == 0.0


def crowded_ms(rows: int, instances: int) -> float:
    return 10.0 * instances


@pytest.mark.parametrize(("busy_only", "took"), [(False, [40.0] * 3), (True, [10.0, 20.0, 10.0])])
def test_idle_instances_cost_something_or_nothing(busy_only: bool, took: list[float]):
    """The second comes while the first is in service, the third when nothing is."""
    arrivals = np.array([0.0, 5.0, 200.0])
    goals = [(0.0, Goal(100.0, MOST))]
    policy = Static(Setpoint(1, 4))
    found = control(policy, goals, crowded_ms, arrivals, 1.0, busy_only=busy_only)
    assert found.latency_ms.tolist() == took


def test_goals_have_to_begin_at_the_start():
    with pytest.raises(ValueError, match="second 0"):
        control(Static(Setpoint(1, 1)), [(1.0, Goal(50.0, MOST))], batch_ms, np.array([0.0]), 1.0)


def crowding(slower: float) -> LatencyProfile:
    """Instances gain until the device is busy with two of them."""
    cells = [
        (rows, n, slower * max(4.0 + 0.2 * rows, n * (1.5 + 0.15 * rows)))
        for rows in (1, 2, 4, 8, 16, 32, 64)
        for n in (1, 2, 4)
    ]
    return LatencyProfile(
        tuple(ProfileRow(rows, n, ms, ms, 1e3 * n * rows / ms, 100.0 * n) for rows, n, ms in cells)
    )


MEMBERS = tuple(crowding(slower) for slower in (0.9, 1.0, 1.1))


def three_under_joint(
    arrivals: np.ndarray, percent: float, slo_ms: float, end_s: float
) -> ControlledEnsemble:
    most = Setpoint(64, 4)
    return control_ensemble(
        [lambda share, profile=profile: Joint(profile, share) for profile in MEMBERS],
        percent,
        [[(0.0, Goal(slo_ms, most))]] * len(MEMBERS),
        [profile.service_ms for profile in MEMBERS],
        arrivals,
        end_s,
    )


@pytest.mark.parametrize("percent", [95.0, 99.0])
@pytest.mark.parametrize("rate_per_s", [300.0, 1500.0, 2500.0])
def test_an_ensemble_whose_members_follow_their_part_of_the_percentile_reaches_its_own(
    percent: float, rate_per_s: float
):
    settle_s, end_s = 5.0, 65.0
    arrivals = poisson(rate_per_s, end_s, np.random.default_rng(7))
    found = three_under_joint(arrivals, percent, 18.0, end_s)
    # What comes in the last moments has no answer yet.
    assert 100 * found.within(settle_s, end_s - 1.0) >= percent


def test_each_member_is_given_its_part_of_the_percentile():
    given_to: list[float] = []

    def policy(share: float) -> Static:
        given_to.append(share)
        return Static(Setpoint(8, 1))

    goals = [[(0.0, Goal(50.0, MOST))]] * 3
    arrivals = poisson(200.0, 5.0, np.random.default_rng(3))
    found = control_ensemble([policy] * 3, 99.0, goals, [batch_ms] * 3, arrivals, 10.0)
    assert given_to == pytest.approx([100 * 0.99 ** (1 / 3)] * 3)
    # Equal members have the same queue, so the ensemble is as any of them.
    assert found.latency_ms.tolist() == found.members[0].latency_ms.tolist()
    assert found.within(0.0, 5.0) == found.members[0].good / len(arrivals)
    assert found.within(6.0, 7.0) == 1.0


def test_an_ensemble_is_as_late_as_its_latest_member():
    def slow(rows: int, instances: int) -> float:
        return 30.0

    goals = [[(0.0, Goal(50.0, MOST))]] * 2
    arrivals = gamma(40.0, 4.0, 20.0, np.random.default_rng(3))
    policies = [lambda share: Static(Setpoint(1, 1))] * 2
    found = control_ensemble(policies, 99.0, goals, [batch_ms, slow], arrivals, 30.0)
    quick, late = found.members
    assert np.isinf(late.latency_ms).any()
    assert np.isfinite(quick.latency_ms).all()
    assert (found.latency_ms == np.maximum(quick.latency_ms, late.latency_ms)).all()
    assert found.within(0.0, 20.0) == late.good / len(arrivals)
