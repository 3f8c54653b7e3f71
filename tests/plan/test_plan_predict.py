"""What a placement does at another rate: queues per node, and members that take turns on one part."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

import numpy as np
import pytest

from support.clusters import cluster, cpu_node, measured, service
from tessera_core.perf import ServiceModel
from tessera_core.plan import ClusterState, Goal, Plan, Policy, plan
from tessera_core.plan.predict import latency_at, pools_of, shares_of

SHARED = "vision.pair"
ALPHA, TAU0 = {"a": 0.5, "b": 1.0}, {"a": 3.0, "b": 1.0}


def shared_core() -> tuple[Plan, ClusterState]:
    """Two members that take turns on the only core."""
    state = cluster(
        [cpu_node("n1", cores=1)],
        [service("pair", "ab", rps=20.0, target="150ms")],
        [measured(name, 1, ALPHA[name], TAU0[name]) for name in "ab"],
        policy=Policy(objective=Goal.MAXIMISE_RATE),
    )
    found = plan(state)
    assert len({each.slice for each in found.assignments}) == 1
    return found, state


def round_robin(models: list[ServiceModel], rate_per_s: float) -> float:
    """Simulated p99.5 of the slowest of members that get one batch each in turn, ms."""
    rng = np.random.default_rng(4)
    arrivals = [np.cumsum(rng.exponential(1e3 / rate_per_s, 40_000)).tolist() for _ in models]
    end = min(each[-1] for each in arrivals)
    heads, turn, now = [0] * len(models), 0, 0.0
    latencies: list[list[float]] = [[] for _ in models]
    while now < end:
        order = [(turn + step) % len(models) for step in range(len(models))]
        waiting = [each for each in order if arrivals[each][heads[each]] <= now]
        if not waiting:
            now = min(arrivals[each][heads[each]] for each in order)
            continue
        one = waiting[0]
        cap = models[one].cap
        assert cap is not None
        head = heads[one]
        tail = bisect_right(arrivals[one], now, head, min(head + cap, len(arrivals[one]) - 1))
        now += models[one].batch_ms(tail - head)
        latencies[one] += [now - came for came in arrivals[one][head:tail]]
        heads[one], turn = tail, one + 1
    return max(float(np.percentile(each, 99.5)) for each in latencies)


@pytest.mark.parametrize("load", [0.05, 0.2, 0.5, 0.8])
def test_members_that_take_turns_are_predicted_on_the_safe_side(load: float) -> None:
    found, state = shared_core()
    rate = load * found.services[0].max_requests_per_second
    caps = {each.member: each.batch for each in found.assignments}
    models = [ServiceModel(ALPHA[name], TAU0[name], caps[name]) for name in "ab"]
    predicted = latency_at(found, state, SHARED, rate)
    assert predicted is not None
    expected = round_robin(models, rate) + state.policy.overhead_ms
    assert expected <= predicted <= 3 * expected


def test_the_rate_that_is_promised_keeps_the_target() -> None:
    found, state = shared_core()
    (promised,) = found.services
    rates = np.linspace(0.05, 1.0, 20) * promised.max_requests_per_second
    latencies = [latency_at(found, state, SHARED, float(rate)) for rate in rates]
    assert None not in latencies
    assert latencies == sorted(latencies)
    assert latencies[-1] <= promised.target_ms
    assert latencies[0] < promised.latency_ms, "a plan allows for full batches of the other"


def test_turns_are_as_long_as_the_expected_load_of_other_services_makes_them() -> None:
    def services(other: float) -> tuple:
        return (service("mine", ["a"], rps=20.0), service("other", ["b"], rps=other))

    state = cluster(
        [cpu_node("n1", cores=1)], services(400.0), [measured(name, 1) for name in "ab"]
    )
    found = plan(state)
    assert len(found.assignments) == 2
    quiet = latency_at(found, replace(state, services=services(10.0)), "vision.mine", 20.0)
    busy = latency_at(found, state, "vision.mine", 20.0)
    assert quiet is not None
    assert busy is not None
    assert quiet < busy


def test_a_service_that_is_unknown_or_overloaded_has_no_latency() -> None:
    found, state = shared_core()
    assert latency_at(found, state, "vision.unknown", 1.0) is None
    assert latency_at(found, state, SHARED, 1e6) is None


def test_queues_are_per_node_and_get_what_their_nodes_carry() -> None:
    state = cluster(
        [cpu_node("n1", cores=3), cpu_node("n2", cores=1)],
        [service("wide", rps=10.0)],
        [measured("m", 1)],
        policy=Policy(objective=Goal.MAXIMISE_RATE),
    )
    large, small = pools_of(plan(state), state)
    assert (large.node, small.node) == ("n1", "n2")
    assert (len(large.servers), len(small.servers)) == (3, 1)
    most, least = shares_of((large, small))
    assert most + least == pytest.approx(1.0)
    assert most == pytest.approx(large.rate / (large.rate + small.rate))
    assert all(model.instances == 1 for model in large.models)
