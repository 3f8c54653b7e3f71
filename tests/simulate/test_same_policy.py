"""The simulator against the policy that the dispatcher runs: the same batches, drops and refusals, event by event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.batching.admission import Admission
from tessera_core.batching.policy import EdfQueue
from tessera_core.simulate import Station, simulate
from tessera_runtime.dispatch.member import Member
from tessera_runtime.target import ServiceTime


@dataclass(frozen=True)
class Ran:
    station: int
    requests: tuple[int, ...]
    end_ms: float


@dataclass(frozen=True)
class Log:
    batches: list[Ran]
    refused: int


def dispatched(
    stations: Sequence[Station],
    arrivals: Sequence[float],
    deadlines: Sequence[float],
    admission: bool,
) -> Log:
    """The dispatcher's queue, asked at every moment at which something comes or a server is free."""
    queue: EdfQueue[int] = EdfQueue(limit=10**9)
    of = [index for index, station in enumerate(stations) for _ in range(station.instances)]
    free = list(range(len(of)))
    """Servers, as the dispatcher keeps them: the one that finished last is the last, and is given a batch first."""
    busy: list[tuple[float, int]] = []
    gate = Admission()
    batches: list[Ran] = []
    refused = coming = 0
    moments = sorted(set(arrivals))
    while moments:
        now = moments.pop(0)
        for over in sorted(each for each in busy if each[0] <= now):
            busy.remove(over)
            free.append(over[1])
        while coming < len(arrivals) and arrivals[coming] <= now:
            left = deadlines[coming] - arrivals[coming]
            fills = queue.rows + 1 > max(len(station.batch_ms) for station in stations)
            if (
                not admission
                or free
                or gate.admits(now, left, done_ms(stations, busy, queue.rows, now), fills)
            ):
                queue.push(coming, deadlines[coming], 1)
            else:
                refused += 1
            coming += 1
        while queue and free:
            server = free[-1]
            times = stations[of[server]].batch_ms
            taken = queue.take(now, len(times), lambda rows, times=times: times[int(rows) - 1])
            gate.took(now, queue.rows, len(times))
            if taken.batch:
                end = now + times[taken.rows - 1]
                batches.append(Ran(of[server], taken.batch, end))
                busy.append((end, free.pop()))
                moments = sorted({*moments, end})
    return Log(batches, refused)


def done_ms(
    stations: Sequence[Station], busy: list[tuple[float, int]], waiting: int, now: float
) -> float:
    """Asked of a member of the dispatcher whose instances run batches that end when ``busy`` says, all in ms."""
    (station,) = stations
    times, cap = station.batch_ms, len(station.batch_ms)
    alpha = times[1] - times[0] if cap > 1 else 0.0
    law = ServiceTime(alpha_ms=alpha, tau0_ms=times[0] - alpha)
    asked = Member("m", cap, cap, law)
    for end, _ in busy:
        began = (end - times[0]) / 1e3
        asked.lanes.attach(
            SimpleNamespace(leaving=False, device="", batch=("one",), rows=1, work=1.0, began=began)
        )
    for _ in range(waiting):
        asked.queue.push(None, 1.0, 1)
    return 1e3 * asked.done_s(1, now / 1e3)


# Sums of these are exact in binary, so that both sides see the same ties.
gaps = st.lists(st.sampled_from([0.0, 0.125, 0.5, 1.0, 4.0]), min_size=1, max_size=60)
slos = st.lists(st.sampled_from([1.0, 2.5, 4.0, 7.5, 16.0, 64.0]), min_size=1, max_size=7)
stations = st.builds(
    lambda alpha, tau0, cap, count: Station(
        tuple(tau0 + alpha * rows for rows in range(1, cap + 1)), count
    ),
    st.sampled_from([0.125, 0.25, 0.75]),
    st.sampled_from([0.5, 2.0]),
    st.integers(1, 6),
    st.integers(1, 3),
)


def agree(
    pool: Sequence[Station], arrivals: np.ndarray, slo_ms: np.ndarray, admission: bool = False
) -> None:
    log = dispatched(pool, arrivals.tolist(), (arrivals + slo_ms).tolist(), admission)
    served = simulate(pool, arrivals, slo_ms, admission)
    members = [frozenset(np.flatnonzero(served.batches == n)) for n in range(len(log.batches))]
    assert members == [frozenset(each.requests) for each in log.batches]
    assert served.batch_sizes.tolist() == [len(each.requests) for each in log.batches]
    assert served.stations.tolist() == [each.station for each in log.batches]
    ended = np.full(len(arrivals), inf)
    for each in log.batches:
        ended[list(each.requests)] = each.end_ms
    assert served.latency_ms.tolist() == (ended - arrivals).tolist()
    assert served.refused == log.refused
    answered = sum(len(each.requests) for each in log.batches)
    assert served.dropped == len(arrivals) - answered - log.refused


@given(gaps, slos, st.lists(stations, min_size=1, max_size=3))
@settings(deadline=None, max_examples=300)
def test_mixed_deadlines_on_several_stations(
    gaps: list[float], slos: list[float], pool: list[Station]
) -> None:
    arrivals = np.cumsum(gaps)
    agree(pool, arrivals, np.resize(slos, len(gaps)))


@given(gaps, st.sampled_from([1.0, 2.5, 4.0, 7.5]), st.lists(stations, min_size=1, max_size=3))
@settings(deadline=None, max_examples=200)
def test_one_slo_on_several_stations(gaps: list[float], slo: float, pool: list[Station]) -> None:
    agree(pool, np.cumsum(gaps), np.full(len(gaps), slo))


@given(gaps, slos, stations)
@settings(deadline=None, max_examples=200)
def test_refusals_are_those_of_a_member_of_the_dispatcher(
    gaps: list[float], slos: list[float], station: Station
) -> None:
    # Off the points where a request is expected exactly at its limit: two ways of rounding decide those.
    slo_ms = np.resize(slos, len(gaps)) * 1.000123
    agree([station], np.cumsum(gaps), slo_ms, admission=True)


def test_under_overload_what_full_batches_carry_is_answered_in_time() -> None:
    station = Station(tuple(2.0 + 0.5 * rows for rows in range(1, 9)))
    arrivals = np.arange(0.0, 4000.0, 0.4)
    admitted = simulate(station, arrivals, 20.0, admission=True)
    assert admitted.refused > 0
    assert admitted.within(20.0) == pytest.approx(0.4 * 8 / 6.0, rel=0.05)


def test_requests_without_a_time_are_not_refused() -> None:
    with pytest.raises(ValueError, match="admission: needs slo_ms"):
        simulate(Station((1.0,)), np.array([1.0]), admission=True)
