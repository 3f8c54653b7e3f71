"""The comparison of a plan with its simulation, without processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from support.clusters import cluster, cpu_node, measured, service
from tessera_core.perf import ServiceModel, latency_percentile
from tessera_core.plan import ClusterState, Goal, Plan, Policy, plan
from tessera_core.plan.predict import latency_at
from tessera_core.simulate.arrivals import gamma
from tessera_core.simulate.cluster import Outcome, Result, replay
from tessera_core.simulate.devices import device_loads
from tessera_core.simulate.scenarios import Queue, Quorum, Scenario, Servers, scenarios


def queue(member: str, *models: ServiceModel, share: float = 1.0) -> Queue:
    return Queue(member, (), tuple(Servers(model, model.cap or 1) for model in models), share)


QUICK = ServiceModel(0.1, 1.0, 16)
FAST = queue("fast", QUICK)
SLOW = queue("slow", ServiceModel(0.1, 500.0, 16))


def outcome(
    scenario: Scenario, seed: int = 0, requests: int = 20_000, as_served: bool = False
) -> Outcome:
    rng = np.random.default_rng(seed)
    rate = scenario.rate_per_s
    return replay(scenario, gamma(rate, scenario.burstiness, requests / rate, rng), rng, as_served)


def both(quorum: Quorum | None) -> Scenario:
    return Scenario("s", 10.0, 50.0, 99.0, ((FAST,), (SLOW,)), quorum=quorum)


def test_an_answer_waits_for_all_members_unless_a_quorum_may_be_short() -> None:
    assert outcome(both(None)).within == 0


def test_at_the_deadline_a_quorum_answers_without_the_late_member() -> None:
    found = outcome(both(Quorum(1, (0,))))
    assert found.within == 1
    # It does not answer before: until the deadline the late member could still come.
    assert found.latency_ms.min() == 50.0


def test_a_late_member_that_is_required_makes_the_answer_late() -> None:
    assert outcome(both(Quorum(1, (1,)))).within == 0


def test_overhead_and_measured_spread_are_part_of_every_latency() -> None:
    plain = Scenario("s", 100.0, 50.0, 99.0, ((FAST,),))
    spread = queue("fast", replace(QUICK, spread_ms=3.0))
    slower = replace(plain, members=((spread,),), overhead_ms=2.0)
    np.testing.assert_allclose(outcome(slower).latency_ms, outcome(plain).latency_ms + 5.0)


def test_the_spread_is_that_of_the_server_that_ran_the_batch() -> None:
    servers = queue("fast", QUICK, ServiceModel(0.1, 2.0, 16, spread_ms=100.0))
    latency = outcome(Scenario("s", 1000.0, 50.0, 99.0, ((servers,),))).latency_ms
    slow = latency > 100.0
    assert 0.05 < slow.mean() < 0.95
    assert latency[slow].min() == pytest.approx(102.1)
    assert latency[~slow].max() < 20.0


def test_a_member_on_two_nodes_divides_its_requests_by_what_each_carries() -> None:
    parts = (replace(FAST, share=0.75), replace(FAST, share=0.25))
    found = outcome(Scenario("s", 800.0, 50.0, 99.0, (parts,)))
    large, small = (load.utilisation for load in found.loads)
    # The busier one batches more, so it is less than three times as busy.
    assert 1.5 * small < large < 3 * small


def test_progress_is_told_once_per_member() -> None:
    told: list[None] = []
    rng = np.random.default_rng(0)
    replay(both(None), np.arange(100.0), rng, done=lambda: told.append(None))
    assert len(told) == 2


def two_shared_members() -> tuple[Plan, ClusterState]:
    state = cluster(
        [cpu_node("n1", cores=2), cpu_node("n2", cores=2)],
        [
            service("pair", ("a", "b"), rps=150.0, target="60ms"),
            service(
                "rows", ("c",), rps=20.0, traffic={"requestsPerSecond": 20, "itemsPerRequest": 4}
            ),
        ],
        [measured(name, 2) for name in "abc"],
    )
    return plan(state), state


def test_scenarios_are_predicted_as_the_planner_predicts_them() -> None:
    found, state = two_shared_members()
    assert any(each.shares_with for each in found.assignments), "the case needs shared slices"
    made = {each.service: each for each in scenarios(found, state)}
    assert set(made) == {"vision.pair", "vision.rows"}
    for each in found.services:
        assert made[each.service].predicted_ms == pytest.approx(each.latency_ms)


def spread_out(nodes: int, cores: int) -> tuple[Plan, ClusterState]:
    """One member on every core there is."""
    state = cluster(
        [cpu_node(f"n{index}", cores=cores) for index in range(nodes)],
        [service("wide", rps=10.0, target="30ms")],
        [measured("m", 1)],
        policy=Policy(objective=Goal.MAXIMISE_RATE),
    )
    found = plan(state)
    assert len(found.assignments) == nodes * cores
    return found, state


def test_the_instances_on_one_node_share_a_queue_and_nodes_have_their_own() -> None:
    (scenario,) = scenarios(*spread_out(nodes=2, cores=3))
    ((one, other),) = scenario.members
    assert (one.share, other.share) == (0.5, 0.5)
    assert sorted(one.where) == ["n0/cpu cpu-1@0", "n0/cpu cpu-1@1", "n0/cpu cpu-1@2"]
    (servers,) = one.servers
    assert servers.model.instances == 3


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("load", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_what_is_predicted_for_a_shared_queue_is_what_is_simulated(nodes: int, load: float) -> None:
    found, state = spread_out(nodes, cores=3)
    (planned,) = found.services
    factor = load * planned.max_requests_per_second / planned.requests_per_second
    (scenario,) = scenarios(found, state, rate_factor=factor)
    (at_most,) = scenarios(found, state, rate_factor=factor / load)
    simulated = outcome(scenario, 5, 100_000).percentile_ms(99.0)
    assert scenario.predicted_ms is not None
    assert 0.9 * simulated <= scenario.predicted_ms <= 1.3 * simulated
    assert at_most.predicted_ms is not None
    assert scenario.predicted_ms <= at_most.predicted_ms <= planned.target_ms


def test_the_rate_factor_scales_what_is_predicted() -> None:
    state = cluster([cpu_node("n1")], [service("one", rps=200.0)], [measured("m", 4)])
    found = plan(state)
    (doubled,) = scenarios(found, state, rate_factor=2.0)
    assert doubled.rate_per_s == 400.0
    expected = latency_at(found, state, "vision.one", 400.0)
    assert doubled.predicted_ms == pytest.approx(expected)


def test_a_burstiness_that_is_asked_for_is_predicted_and_simulated() -> None:
    state = cluster([cpu_node("n1")], [service("one", rps=200.0)], [measured("m", 4)])
    found = plan(state)
    (own,), (bursty,) = scenarios(found, state), scenarios(found, state, burstiness=8.0)
    assert (own.burstiness, bursty.burstiness) == (1.0, 8.0)
    assert own.predicted_ms is not None
    assert bursty.predicted_ms is not None
    assert bursty.predicted_ms > 1.2 * own.predicted_ms
    assert outcome(bursty).percentile_ms(99.0) > 1.2 * outcome(own).percentile_ms(99.0)


def test_beyond_what_the_servers_finish_nothing_is_predicted() -> None:
    state = cluster([cpu_node("n1")], [service("one", rps=200.0)], [measured("m", 4)])
    (overloaded,) = scenarios(plan(state), state, rate_factor=1e3)
    assert overloaded.predicted_ms is None


def test_a_service_without_traffic_is_not_simulated() -> None:
    state = cluster([cpu_node("n1")], [service("quiet", rps=0.0)], [measured("m", 4)])
    found = plan(state)
    assert found.services
    assert scenarios(found, state) == ()


def test_requests_of_several_rows_fill_batches_with_all_their_rows() -> None:
    state = cluster(
        [cpu_node("n1")],
        [service("rows", traffic={"requestsPerSecond": 50, "itemsPerRequest": 8})],
        [measured("m", 4)],
    )
    (scenario,) = scenarios(plan(state), state)
    (load,) = outcome(scenario).loads
    assert 8 <= load.mean_batch <= load.queue.servers[0].cap


def test_one_poisson_queue_is_predicted_within_noise() -> None:
    scenario = Scenario("s", 3000.0, 50.0, 99.0, ((FAST,),))
    found = outcome(scenario, 1, 200_000)
    expected = latency_percentile(QUICK, 3000.0, 99.0)
    assert found.percentile_ms(99.0) == pytest.approx(expected, rel=0.03)


def test_a_run_too_short_for_any_request_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(ValueError, match="s: no request came"):
        replay(both(None), np.array([]), np.random.default_rng(0))


def test_as_served_an_overload_is_answered_as_far_as_the_servers_go() -> None:
    overload = Scenario("s", 2 * QUICK.capacity_per_s, 20.0, 99.0, ((FAST,),))
    assert outcome(overload).within < 0.01
    served = outcome(overload, as_served=True).result()
    assert served.goodput_per_s == pytest.approx(QUICK.capacity_per_s, rel=0.1)
    assert served.within == pytest.approx(0.5, rel=0.1)
    assert served.p50_ms <= 20.0 or np.isinf(served.p50_ms)
    assert np.isinf(served.p99_ms)
    (load,) = served.loads
    assert load.dropped == pytest.approx(10_000, rel=0.2)


def test_as_served_a_quorum_answers_at_the_deadline_without_what_was_dropped() -> None:
    found = outcome(both(Quorum(1, (0,))), as_served=True)
    assert set(found.latency_ms) == {50.0}


def test_what_is_kept_are_the_figures_of_all_requests() -> None:
    found = outcome(Scenario("s", 3000.0, 50.0, 95.0, ((FAST,),)))
    kept = found.result()
    assert kept.requests == len(found.latency_ms)
    assert kept.rate_per_s == pytest.approx(3000.0, rel=0.02)
    assert (kept.p50_ms, kept.p95_ms) == (found.percentile_ms(50), found.percentile_ms(95))
    assert kept.tail_ms == kept.p95_ms
    assert list(kept.curve_ms) == sorted(kept.curve_ms)
    assert kept.curve_ms[0] == found.latency_ms.min()
    assert kept.p99_ms in kept.curve_ms


def results(found: Plan, state: ClusterState) -> list[Result]:
    return [outcome(each).result() for each in scenarios(found, state)]


def test_a_device_is_as_busy_as_its_instances_are() -> None:
    found, state = spread_out(nodes=2, cores=3)
    (scenario,) = scenarios(found, state, rate_factor=3e3)
    result = outcome(scenario).result()
    for each in device_loads(found, state, [result]):
        assert each.members == ("vision.wide/m",)
        assert each.busy == pytest.approx(result.busiest.utilisation, rel=0.05)
        assert each.rows_per_s == pytest.approx(15_000, rel=0.2)


def test_the_parts_of_a_device_count_by_their_size() -> None:
    state = cluster([cpu_node("n1", cores=4)], [service("half", rps=100.0)], [measured("m", 2)])
    (result,) = results(plan(state), state)
    (device,) = device_loads(plan(state), state, [result])
    assert device.busy == pytest.approx(result.busiest.utilisation / 2)
    assert device.rows_per_s == pytest.approx(100.0, rel=0.05)


def test_members_that_take_turns_keep_a_part_busy_together_and_never_more_than_whole() -> None:
    found, state = two_shared_members()
    made = results(found, state)
    shared = [load for result in made for load in result.loads if load.parts]
    # Its turns include those of others; what a part is busy with is the member's own.
    assert all(part.busy <= load.utilisation for load in shared for part in load.parts)
    assert any(part.busy < 0.9 * load.utilisation for load in shared for part in load.parts)
    devices = device_loads(found, state, made)
    assert all(0 <= each.busy <= 1 for each in devices)
    assert {member for each in devices for member in each.members} == {
        "vision.pair/a",
        "vision.pair/b",
        "vision.rows/c",
    }
