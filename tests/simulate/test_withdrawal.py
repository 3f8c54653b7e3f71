"""Members of an ensemble go through time together: what one of them loses does not keep the others busy."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.api.modelservice import OnTimeout
from tessera_core.batching.policy import EdfQueue, Entry
from tessera_core.ensemble.quorum import Fail, MemberState, decide
from tessera_core.perf import ServiceModel
from tessera_core.simulate import Station, simulate
from tessera_core.simulate.arrivals import poisson
from tessera_core.simulate.cluster import replay
from tessera_core.simulate.ensemble import simulate_members
from tessera_core.simulate.scenarios import Queue, Quorum, Scenario, Servers


def at(*times: float) -> np.ndarray:
    return np.array(times)


def each_one_queue(members: Sequence[Station], arrivals: np.ndarray) -> np.ndarray:
    return np.zeros((len(members), len(arrivals)), dtype=np.int64)


def test_what_one_member_drops_leaves_the_queue_of_the_other() -> None:
    slow, quick = Station((5.0,)), Station((3.0,))
    arrivals = at(0, 0.5, 1)
    taken = each_one_queue((slow, quick), arrivals)
    (one,), (other,) = simulate_members([[[slow]], [[quick]]], taken, arrivals, 6.0)
    # At 5 the slow one gives up both that wait; of these the quick one has begun the first, at 3.
    assert one.latency_ms.tolist() == [5, inf, inf]
    assert (one.dropped, one.withdrawn) == (2, 0)
    assert other.latency_ms.tolist() == [3, 5.5, inf]
    assert (other.dropped, other.withdrawn) == (0, 1)


def test_what_one_member_refuses_is_asked_of_no_other() -> None:
    slow, quick = Station((8.0,)), Station((2.0,))
    arrivals = at(0, 1, 2, 3)
    for members in ([slow, quick], [quick, slow]):
        found = simulate_members(
            [[[each]] for each in members],
            each_one_queue(members, arrivals),
            arrivals,
            12.0,
            admission=True,
        )
        by_member = dict(zip(members, found, strict=True))
        (busy,), (other,) = by_member[slow], by_member[quick]
        assert busy.latency_ms.tolist() == [8, inf, inf, inf]
        assert busy.refused == 3
        assert other.latency_ms.tolist() == [2, inf, inf, inf]
        assert (other.refused, other.dropped) == (0, 0)


def test_a_quorum_goes_on_without_what_an_optional_member_lost() -> None:
    slow, quick = Station((5.0,)), Station((3.0,))
    arrivals = at(0, 0.5, 1)
    taken = each_one_queue((slow, quick), arrivals)
    members = [[[slow]], [[quick]]]
    _, (other,) = simulate_members(members, taken, arrivals, 9.0, min_members=1)
    assert other.latency_ms.tolist() == [3, 5.5, 8]
    _, (needed,) = simulate_members(
        members, taken, arrivals, 6.0, min_members=1, required=frozenset({0})
    )
    assert needed.latency_ms.tolist() == [3, 5.5, inf]


gaps = st.lists(st.sampled_from([0.0, 0.125, 0.5, 1.0, 4.0]), min_size=1, max_size=50)
stations = st.builds(
    lambda alpha, tau0, cap, count: Station(
        tuple(tau0 + alpha * rows for rows in range(1, cap + 1)), count
    ),
    st.sampled_from([0.125, 0.25, 0.75]),
    st.sampled_from([0.5, 2.0]),
    st.integers(1, 5),
    st.integers(1, 2),
)
slos = st.sampled_from([1.0, 2.5, 4.0, 7.5, 64.0])


def dispatched(
    members: Sequence[Station],
    arrivals: Sequence[float],
    deadlines: Sequence[float],
    fewest: int,
    required: frozenset[int],
) -> tuple[list[list[float]], list[int]]:
    """By member, when each request is done, and how many were dropped: the dispatcher's queues, and its rule for when a
    request is of no use any more.
    """
    queues: list[EdfQueue[int]] = [EdfQueue(limit=10**9) for _ in members]
    entries: list[dict[int, Entry[int] | None]] = [{} for _ in members]
    free = [each.instances for each in members]
    busy: list[tuple[float, int]] = []
    failed: dict[int, set[int]] = {}
    ends = [[inf] * len(arrivals) for _ in members]
    dropped = [0] * len(members)

    def lost(request: int, member: int) -> None:
        failed.setdefault(request, set()).add(member)
        states = {
            str(index): MemberState.FAILED if index in failed[request] else MemberState.PENDING
            for index in range(len(members))
        }
        names = frozenset(map(str, required))
        if isinstance(decide(states, 0.0, 1.0, names, fewest, OnTimeout.FAIL), Fail):
            for queue, mine in zip(queues, entries, strict=True):
                if (entry := mine.get(request)) is not None:
                    queue.withdraw(entry)

    moments = sorted(set(arrivals))
    while moments:
        now = moments.pop(0)
        for over in [each for each in busy if each[0] <= now]:
            busy.remove(over)
            free[over[1]] += 1
        for request, came in enumerate(arrivals):
            if came == now:
                for queue, mine in zip(queues, entries, strict=True):
                    mine[request] = queue.push(request, deadlines[request], 1)
        for index, (queue, member) in enumerate(zip(queues, members, strict=True)):
            times = member.batch_ms
            while queue and free[index]:
                taken = queue.take(now, len(times), lambda rows, times=times: times[int(rows) - 1])
                for request in taken.batch:
                    ends[index][request] = now + times[taken.rows - 1]
                if taken.batch:
                    busy.append((now + times[taken.rows - 1], index))
                    free[index] -= 1
                    moments = sorted({*moments, busy[-1][0]})
                dropped[index] += len(taken.dropped)
                for request in taken.dropped:
                    lost(request, index)
    return ends, dropped


@given(gaps, slos, st.lists(stations, min_size=1, max_size=3), st.booleans(), st.data())
@settings(deadline=None, max_examples=300)
def test_every_member_does_what_the_dispatchers_queue_would(
    gaps: list[float], slo_ms: float, members: list[Station], overtaken: bool, data: st.DataObject
) -> None:
    arrivals = np.cumsum(gaps)
    deadlines = arrivals + slo_ms
    if overtaken:
        # In another order than that of deadlines, of which no two are the same then.
        deadlines += 2.0**-20 * np.arange(len(gaps))
        late = st.lists(st.sampled_from([0.0, 0.25, 0.875]), min_size=len(gaps), max_size=len(gaps))
        arrivals = arrivals + data.draw(late)
    fewest = data.draw(st.integers(1, len(members)))
    required = data.draw(st.frozensets(st.integers(0, len(members) - 1)))
    expected, dropped = dispatched(members, arrivals.tolist(), deadlines.tolist(), fewest, required)
    found = simulate_members(
        [[[each]] for each in members],
        each_one_queue(members, arrivals),
        arrivals,
        deadlines - arrivals,
        min_members=fewest,
        required=required,
    )
    assert [served.dropped for (served,) in found] == dropped
    for (served,), ends in zip(found, expected, strict=True):
        assert served.latency_ms.tolist() == (np.array(ends) - arrivals).tolist()


@given(
    gaps,
    slos,
    st.lists(st.lists(stations, min_size=1, max_size=2), min_size=1, max_size=3),
    st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_one_member_is_a_queue_by_itself(
    gaps: list[float], slo_ms: float, queues: list[list[Station]], admission: bool
) -> None:
    arrivals = np.cumsum(gaps)
    taken = np.arange(len(arrivals))[None] % len(queues)
    (found,) = simulate_members([queues], taken, arrivals, slo_ms, admission)
    for position, (stations, served) in enumerate(zip(queues, found, strict=True)):
        alone = simulate(stations, arrivals[taken[0] == position], slo_ms, admission)
        assert served.latency_ms.tolist() == alone.latency_ms.tolist()
        assert served.stations.tolist() == alone.stations.tolist()
        assert (served.refused, served.dropped) == (alone.refused, alone.dropped)
        assert served.busy_ms == pytest.approx(alone.busy_ms)


def test_noise_is_that_of_the_queue_by_itself() -> None:
    station = Station((2.0, 3.0), 2, noise=((0.5, 1.5), (2.0, 1.0, 0.75)))
    arrivals = poisson(900.0, 2.0, np.random.default_rng(1))
    taken = each_one_queue([station], arrivals)
    ((found,),) = simulate_members([[[station]]], taken, arrivals, 9.0)
    alone = simulate(station, arrivals, 9.0)
    assert found.latency_ms == pytest.approx(alone.latency_ms)
    assert found.busy_ms == pytest.approx(alone.busy_ms)


def overloaded(quorum: Quorum | None = None) -> Scenario:
    """The first member finishes half of what comes, the second nine tenths."""
    narrow, wide = ServiceModel(1.0, 2.0, 8), ServiceModel(0.5, 1.0, 8)
    members = tuple(
        (Queue(name, (), (Servers(model, 8),)),) for name, model in (("a", narrow), ("b", wide))
    )
    return Scenario("s", 1.6e3, 40.0, 99.0, members, quorum=quorum)


def test_an_overloaded_member_takes_load_off_the_others() -> None:
    scenario = overloaded()
    rng = np.random.default_rng(2)
    arrivals = poisson(scenario.rate_per_s, 20.0, rng)
    together = replay(scenario, arrivals, rng, as_served=True)
    narrow, wide = together.loads
    alone = simulate(Station(ServiceModel(0.5, 1.0, 8).batch_times_ms()), arrivals, 40.0, True)
    assert narrow.dropped > 0.4 * len(arrivals)
    assert wide.dropped < 0.01 * len(arrivals)
    assert wide.utilisation < 0.9 * alone.utilisation
    # Nearly everything that the narrow one finishes is an answer.
    assert together.within == pytest.approx(0.5, rel=0.05)


def test_it_does_not_where_answers_are_made_without_it() -> None:
    scenario = overloaded(Quorum(1, (1,)))
    rng = np.random.default_rng(2)
    arrivals = poisson(scenario.rate_per_s, 20.0, rng)
    assert replay(scenario, arrivals, rng, as_served=True).within > 0.95


@pytest.mark.parametrize(
    ("slo_ms", "min_members", "required", "message"),
    [
        (0.0, None, frozenset(), "slo_ms"),
        (np.array([2.0, 1.0]), None, frozenset(), "in the order of deadlines"),
        (1.0, 2, frozenset(), "min_members"),
        (1.0, None, frozenset({1}), "required"),
    ],
)
def test_what_cannot_be_is_named(
    slo_ms: float | np.ndarray,
    min_members: int | None,
    required: frozenset[int],
    message: str,
) -> None:
    station = Station((1.0,))
    with pytest.raises(ValueError, match=message):
        simulate_members(
            [[[station]]],
            np.zeros((1, 2), dtype=np.int64),
            at(0, 0),
            slo_ms,
            min_members=min_members,
            required=required,
        )
