"""Media are preprocessed before the members are asked: two queues one after the other."""

from __future__ import annotations

from dataclasses import replace
from math import exp, factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.clusters import cluster, cpu_node, measured, service
from tessera_core.api import ModelService
from tessera_core.api.stages import STAGE, stage_of
from tessera_core.perf import ServiceModel
from tessera_core.plan import ClusterState, plan
from tessera_core.simulate import Station, simulate
from tessera_core.simulate.arrivals import poisson
from tessera_core.simulate.cluster import WARM_UP, Outcome, replay
from tessera_core.simulate.scenarios import Queue, Quorum, Scenario, Servers, scenarios


def queue(member: str, *models: ServiceModel, share: float = 1.0) -> Queue:
    return Queue(member, (), tuple(Servers(model, model.cap or 1) for model in models), share)


def one_by_one(ms: float, instances: int = 1) -> ServiceModel:
    """Each row takes as long as any other, and no two are in a batch."""
    return ServiceModel(ms, 0.0, 1, instances)


def tandem(stage: ServiceModel, *members: ServiceModel, target_ms: float = 50.0) -> Scenario:
    queues = tuple((queue(f"m{index}", each),) for index, each in enumerate(members))
    return Scenario("s", 1.0, target_ms, 99.0, queues, stage=(queue(STAGE, stage),))


def replayed(scenario: Scenario, arrivals_ms: np.ndarray, as_served: bool = False) -> Outcome:
    return replay(scenario, arrivals_ms, np.random.default_rng(0), as_served)


gaps = st.lists(st.sampled_from([0.0, 0.125, 0.5, 1.0, 4.0]), min_size=1, max_size=60)
times = st.sampled_from([0.25, 0.75, 1.0, 2.5])


@given(gaps, times, times, st.integers(1, 3))
def test_servers_of_constant_times_in_a_row_wait_as_at_the_slowest_alone(
    gaps: list[float], first_ms: float, second_ms: float, servers: int
) -> None:
    # Friedman 1965, "Reduction methods for tandem queuing systems": also in whichever order they are.
    arrivals = np.cumsum(gaps)
    found = replayed(
        tandem(one_by_one(first_ms, servers), one_by_one(second_ms, servers)), arrivals
    )
    slow, quick = max(first_ms, second_ms), min(first_ms, second_ms)
    alone = simulate(Station((slow,), servers), arrivals).latency_ms
    expected = alone[int(WARM_UP * len(arrivals)) :] + quick
    np.testing.assert_allclose(found.latency_ms, expected, atol=1e-9)


@given(
    gaps,
    st.lists(st.builds(ServiceModel, times, times, st.integers(1, 4)), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([2.0, 6.0, 30.0]),
    st.none() | st.just(Quorum(1, ())),
)
@settings(deadline=None)
def test_preprocessing_that_takes_no_time_changes_nothing(
    gaps: list[float],
    members: list[ServiceModel],
    as_served: bool,
    target_ms: float,
    quorum: Quorum | None,
) -> None:
    arrivals = np.cumsum(gaps)
    none_waits = one_by_one(1e-12, len(arrivals))
    staged = replace(tandem(none_waits, *members, target_ms=target_ms), quorum=quorum)
    plain = replace(staged, stage=())
    # What would be as late as it may be to the last bit is left out.
    staged, plain = (replace(each, overhead_ms=2.0**-10) for each in (staged, plain))
    found, expected = (replayed(each, arrivals, as_served) for each in (staged, plain))
    np.testing.assert_allclose(found.latency_ms, expected.latency_ms, atol=1e-6)
    stage, *others = found.loads
    assert (stage.queue.member, stage.dropped) == (STAGE, 0)
    assert [each.dropped for each in others] == [each.dropped for each in expected.loads]


def waits_at_most(ms: float, rate_per_ms: float, each_ms: float) -> float:
    """P(waiting time <= ``ms``) in M/D/1: Erlang 1909."""
    terms = []
    for k in range(int(ms / each_ms) + 1):
        x = rate_per_ms * (k * each_ms - ms)
        terms.append(x**k / factorial(k) * exp(-x))
    return (1 - rate_per_ms * each_ms) * sum(terms)


@pytest.mark.parametrize("first_ms", [4.0, 3.0])
def test_the_distribution_is_the_exact_one_of_poisson_arrivals(first_ms: float) -> None:
    rate_per_ms, second_ms = 0.2, 7.0 - first_ms
    arrivals = poisson(1e3 * rate_per_ms, 3000.0, np.random.default_rng(5))
    found = replayed(tandem(one_by_one(first_ms), one_by_one(second_ms)), arrivals).latency_ms
    for ms in (0.0, 2.0, 5.0, 10.0, 20.0):
        exact = waits_at_most(ms, rate_per_ms, 4.0)
        assert np.mean(found <= 7.0 + ms + 1e-9) == pytest.approx(exact, abs=0.006)


def test_what_the_members_could_not_answer_in_time_is_not_preprocessed() -> None:
    scenario = tandem(one_by_one(5.0), one_by_one(4.0), target_ms=12.0)
    found = replayed(scenario, np.array([0.0, 0.0]), as_served=True)
    assert found.latency_ms.tolist() == [9.0, np.inf]
    stage, member = found.loads
    assert (stage.dropped, member.dropped) == (1, 0)


def test_all_members_wait_for_the_same_preprocessing() -> None:
    scenario = tandem(one_by_one(2.0), one_by_one(1.0), one_by_one(3.0))
    found = replayed(scenario, np.arange(0.0, 1000.0, 10.0))
    assert set(found.latency_ms) == {5.0}
    assert [each.queue.member for each in found.loads] == [STAGE, "m0", "m1"]


def test_a_request_that_overtakes_another_in_preprocessing_is_answered_first() -> None:
    # Two nodes of one core each, of which one takes nine times as long.
    slow, quick = queue(STAGE, one_by_one(9.0)), queue(STAGE, one_by_one(1.0))
    nodes = (replace(slow, share=0.5), replace(quick, share=0.5))
    scenario = Scenario("s", 1.0, 50.0, 99.0, ((queue("m", one_by_one(0.5)),),), stage=nodes)
    found = replayed(scenario, np.arange(0.0, 4000.0, 20.0))
    assert set(found.latency_ms) == {1.5, 9.5}
    together = replayed(scenario, np.repeat(np.arange(0.0, 4000.0, 40.0), 2), as_served=True)
    assert np.isfinite(together.latency_ms).all()
    assert together.latency_ms.min() == 1.5


def test_the_spread_of_preprocessing_is_part_of_every_latency() -> None:
    plain = tandem(one_by_one(2.0), one_by_one(1.0))
    noisy = replace(plain, stage=(queue(STAGE, replace(one_by_one(2.0), spread_ms=3.0)),))
    arrivals = np.arange(0.0, 1000.0, 10.0)
    assert set(replayed(noisy, arrivals).latency_ms - replayed(plain, arrivals).latency_ms) == {3.0}


def test_progress_counts_preprocessing() -> None:
    told: list[None] = []
    scenario = tandem(one_by_one(2.0), one_by_one(1.0))
    replay(scenario, np.arange(9.0), np.random.default_rng(0), done=lambda: told.append(None))
    assert len(told) == 2


def media(cores: int, ms: float = 5.0, **spec: object) -> ClusterState:
    """A service of images, and a node whose cores do all of it; decoding takes ``ms`` for each."""
    one: ModelService = service(
        "s", "ab", preprocess={"image": {"size": [224, 224], "resize": 256}}, **spec
    )  # type: ignore[arg-type]
    assert one.spec.preprocess is not None
    digest = stage_of(one.spec.preprocess).model.digest
    assert digest is not None
    decoding = replace(measured("any", 1, alpha_ms=ms, tau0_ms=0.01), digest=digest)
    members = [measured(name, 1, 0.5, 1.0) for name in "ab"]
    return cluster([cpu_node("n", cores)], [one], [*members, decoding])


@pytest.mark.parametrize("load", [0.2, 0.6, 1.0])
def test_what_is_predicted_holds_for_both_together(load: float) -> None:
    state = media(16, rps=600.0, target="120ms")
    found = plan(state)
    (planned,) = found.services
    assert planned.short is None
    (scenario,) = scenarios(found, state, load)
    assert [each.member for each in scenario.stage] == [STAGE]
    assert [queues[0].member for queues in scenario.members] == ["a", "b"]
    assert scenario.predicted_ms is not None
    if load == 1.0:
        assert scenario.predicted_ms == pytest.approx(planned.latency_ms)
    arrivals = poisson(scenario.rate_per_s, 100.0, np.random.default_rng(1))
    simulated = replayed(scenario, arrivals).percentile_ms(99.0)
    # Both parts are hardly ever long at a time, and each is held to half of the failures.
    assert 0.5 * scenario.predicted_ms < simulated <= scenario.predicted_ms


def test_a_bottleneck_in_preprocessing_shows() -> None:
    state = media(4, rps=1000.0, target="200ms")
    found = plan(state)
    (planned,) = found.services
    assert planned.short is not None
    (scenario,) = scenarios(found, state)
    arrivals = poisson(scenario.rate_per_s, 30.0, np.random.default_rng(1))
    result = replayed(scenario, arrivals, as_served=True).result()
    assert not result.met
    assert result.busiest.queue.member == STAGE
    assert result.busiest.utilisation > 0.95
    cores = sum(each.model.instances for queue in scenario.stage for each in queue.servers)
    assert result.goodput_per_s == pytest.approx(cores * 200, rel=0.1)
    stage, *members = result.loads
    assert stage.dropped > 0.3 * len(arrivals)
    assert sum(each.dropped for each in members) < 0.01 * len(arrivals)
