"""An ensemble under load: every request goes to all member queues, and its latency is its slowest needed member's.

Members on separate servers see the same arrivals, so their queues are long together; the simulation has
that correlation, which the product bound of ``perf.ensemble`` leaves out on the safe side.

What one member refuses or drops is withdrawn from the queues of the others, as the dispatcher does, once no answer can be
made without that member. Then members are not independent, and go through time together: an event is an arrival or the end
of a batch, and the cost is per request and member.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf

import numpy as np
from numpy.typing import NDArray

from tessera_core.simulate.station import (
    Gate,
    Served,
    Servers,
    Station,
    noise_of,
    simulate,
    summary,
    times_of,
)

Vector = NDArray[np.float64]
Counts = NDArray[np.int64]

_ROUNDING_MS = 1e-6
"""Of deadlines that are sums."""


def simulate_ensemble(
    stations: Sequence[Station],
    arrivals_ms: Vector,
    min_members: int | None = None,
    required: frozenset[int] = frozenset(),
) -> Vector:
    """Latency of each request, ms, shape (requests,): when ``min_members`` (None: all) have answered.

    ``required``: positions of members without which there is no answer; they count towards the minimum.

    Raises ``ValueError`` for no members, a quorum outside 1..members or an unknown required position.
    """
    quorum = _quorum(len(stations), min_members, required)
    latencies = np.stack([simulate(station, arrivals_ms).latency_ms for station in stations])
    answered = np.partition(latencies, quorum - 1, axis=0)[quorum - 1]
    if required:
        answered = np.maximum(answered, latencies[sorted(required)].max(axis=0))
    return np.asarray(answered, dtype=np.float64)


def simulate_members(
    members: Sequence[Sequence[Sequence[Station]]],
    taken: Counts,
    arrivals_ms: Vector,
    slo_ms: float | Vector,
    admission: bool = False,
    min_members: int | None = None,
    required: frozenset[int] = frozenset(),
) -> tuple[tuple[Served, ...], ...]:
    """What became of the requests of every queue, by member and queue.

    ``members``: the stations of each queue of each. ``taken``: which queue of each member a request goes to, shape
    (members, requests). ``arrivals_ms``: shape (requests,), in the order of deadlines, which need not be that of arrival.
    ``slo_ms``, ``admission``: as in :func:`tessera_core.simulate.station.simulate`. A request is
    withdrawn when a ``required`` member lost it, or fewer than ``min_members`` (None: all) are left.

    Raises ``ValueError`` as :func:`simulate_ensemble` does, for an SLO that is not positive, and for deadlines that descend.
    """
    fewest = _quorum(len(members), min_members, required)
    allowed = np.broadcast_to(np.asarray(slo_ms, dtype=np.float64), arrivals_ms.shape)
    if allowed.size and not allowed.min() > 0:
        raise ValueError(f"slo_ms: must be positive, found {allowed.min()}")
    deadlines_ms = arrivals_ms + allowed
    if (np.diff(deadlines_ms) < -_ROUNDING_MS).any():
        raise ValueError("arrivals_ms: must be in the order of deadlines")
    run = _Together(members, taken, arrivals_ms, deadlines_ms, admission, fewest, required)
    run.to_the_end()
    return tuple(
        tuple(
            queue.served(arrivals_ms, taken[member] == position)
            for position, queue in enumerate(each for each in run.queues if each.member == member)
        )
        for member in range(len(members))
    )


def _quorum(members: int, min_members: int | None, required: frozenset[int]) -> int:
    quorum = members if min_members is None else min_members
    if not 1 <= quorum <= members:
        raise ValueError(f"min_members: must be from 1 to {members} members, found {quorum}")
    if not required <= frozenset(range(members)):
        raise ValueError(f"required: positions must be below {members}, found {sorted(required)}")
    return quorum


class _Queue:
    """One queue of a member. Requests are numbers, in the order of their deadlines."""

    def __init__(
        self, member: int, stations: Sequence[Station], requests: int, admission: bool
    ) -> None:
        self.member = member
        self.stations = tuple(stations)
        self.gate = Gate(stations) if admission else None
        self.servers = Servers(stations)
        self.waits = bytearray(requests)
        """Whether each request is in the queue."""
        self.rows = 0
        self.refused = 0
        self._dropped = 0
        self._line: list[int] = []
        """A heap; withdrawn ones among them, until they surface."""
        self._times, self._noise = [*map(times_of, stations)], [*map(noise_of, stations)]
        self._batches = [-1] * requests
        self._ends: list[float] = []
        self._sizes: list[int] = []
        self._takers: list[int] = []
        self._noise_ms = 0.0

    def push(self, request: int) -> None:
        heappush(self._line, request)
        self.waits[request] = 1
        self.rows += 1

    def withdraw(self, request: int) -> None:
        """Where it waits; else nothing is to be done."""
        if self.waits[request]:
            self.waits[request] = 0
            self.rows -= 1

    def take(self, now: float, deadlines: Sequence[float]) -> tuple[float, list[int]]:
        """Give a batch to a free server: when it ends, ``inf`` where nothing is left to run, and what was dropped."""
        taker = self.servers.taker(now)
        times, noise = self._times[taker], self._noise[taker]
        size = min(self.rows, len(times) - 1)
        dropped = []
        while size and deadlines[self._head()] < now + times[size]:
            dropped.append(self._pop())
            size = min(self.rows, len(times) - 1)
        self._dropped += len(dropped)
        if self.gate is not None:
            self.gate.took(now, self.rows - size, len(times) - 1)
        if not size:
            return inf, dropped
        for _ in range(size):
            self._batches[self._pop()] = len(self._ends)
        took = times[size] if noise is None else times[size] * noise[size]()
        self._noise_ms += took - times[size]
        self._ends.append(now + took)
        self._sizes.append(size)
        self._takers.append(taker)
        self.servers.start(now + took)
        return now + took, dropped

    def _head(self) -> int:
        while not self.waits[self._line[0]]:
            heappop(self._line)
        return self._line[0]

    def _pop(self) -> int:
        request = self._head()
        heappop(self._line)
        self.waits[request] = 0
        self.rows -= 1
        return request

    def served(self, arrivals_ms: Vector, mine: NDArray[np.bool_]) -> Served:
        """Of the requests that went here; ``mine``: which, of all."""
        batches = np.array(self._batches, dtype=np.int64)[mine]
        # Those that were never asked for among them.
        withdrawn = int(np.count_nonzero(batches < 0)) - self.refused - self._dropped
        return summary(
            self.stations,
            arrivals_ms[mine],
            batches,
            self._ends,
            np.array(self._sizes, dtype=np.int64),
            self._takers,
            self._noise_ms,
            self.refused,
            withdrawn,
        )


class _Together:
    """All queues of an ensemble, in time."""

    def __init__(
        self,
        members: Sequence[Sequence[Sequence[Station]]],
        taken: Counts,
        arrivals_ms: Vector,
        deadlines_ms: Vector,
        admission: bool,
        fewest: int,
        required: frozenset[int],
    ) -> None:
        requests = len(arrivals_ms)
        self.queues = [
            _Queue(member, stations, requests, admission)
            for member, queues in enumerate(members)
            for stations in queues
        ]
        first = np.cumsum([0, *map(len, members)])[:-1]
        self._ways: list[list[int]] = (taken + first[:, None]).T.tolist()
        """By request and member: the queue."""
        order = np.argsort(arrivals_ms, kind="stable")
        self._order: list[int] = order.tolist()
        """Who comes first."""
        self._arrivals = [*arrivals_ms[order].tolist(), inf]
        """In that order."""
        self._deadlines: list[float] = deadlines_ms.tolist()
        self._spare = [len(members) - fewest] * requests
        """By request: members that may still lose it."""
        self._required = required
        self._busy: list[tuple[float, int]] = []
        """A heap: when a batch ends, and its queue."""

    def to_the_end(self) -> None:
        arrivals, busy, queues = self._arrivals, self._busy, self.queues
        coming, total = 0, len(arrivals) - 1
        while busy or coming < total:
            now = min(arrivals[coming], busy[0][0] if busy else inf)
            ready: set[int] = set()
            while busy and busy[0][0] <= now:
                ready.add(heappop(busy)[1])
            while coming < total and arrivals[coming] <= now:
                ready.update(self._offer(self._order[coming], now))
                coming += 1
            for number in sorted(ready):
                queue = queues[number]
                while queue.rows and queue.servers.free_from() <= now:
                    end, dropped = queue.take(now, self._deadlines)
                    if end < inf:
                        heappush(busy, (end, number))
                    for request in dropped:
                        self._lose(request, queue.member)

    def _offer(self, request: int, now: float) -> list[int]:
        """The queues that took it, which may have a free server; none once it is lost."""
        took = []
        for number in self._ways[request]:
            queue = self.queues[number]
            busy_ms = queue.servers.free_from() - now
            # An idle instance refuses nothing.
            if (
                busy_ms <= 0
                or queue.gate is None
                or queue.gate.admits(now, self._deadlines[request] - now, busy_ms, queue.rows)
            ):
                queue.push(request)
                took.append(number)
            else:
                queue.refused += 1
                if self._lose(request, queue.member):
                    return []
        return took

    def _lose(self, request: int, member: int) -> bool:
        """``member`` will not answer: whether the request is withdrawn from the others."""
        self._spare[request] -= 1
        if self._spare[request] >= 0 and member not in self._required:
            return False
        for number in self._ways[request]:
            self.queues[number].withdraw(request)
        return True
