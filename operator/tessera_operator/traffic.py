"""How much traffic each service has, from counters of many servers that start anew now and then. Time is an argument.

The rate that is planned is the most that any minute of the last ten had, rounded up to steps of 10 %: growth is
followed at once, a lull is not taken for the end of the day, and a rate that wavers changes no plan. A spec's hint
counts as if it had been measured when it was written. No traffic is a measurement like any other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import ceil, log

from tessera_core.api import ModelService, RuntimeNode
from tessera_core.perf.histogram import BOUNDS_S, percentile_s

RATE_S = 60.0
"""Over which a rate is counted."""
REPORT_S = 30.0
"""How often an agent whose counters move reports."""
PEAK_S = 600.0
"""For which a peak counts."""
SCALED_TO_ZERO = "ScaledToZero"
"""Reason of the condition of a service that sleeps; it goes on sleeping when the operator is restarted."""
Counts = tuple[int, ...]
"""Requests by latency."""
_BUCKETS = len(BOUNDS_S) + 1
_PARTS = 50
"""That a window is counted in: what leaves it leaves it part by part."""
_STEP = 1.1
_AWAKE = 1e-3
"""Requests per second of a service that is to run although none came for a while."""


@dataclass(slots=True)
class _Part:
    """What was counted in one part of a window."""

    since_s: float
    good: int
    total: int
    buckets: list[int]


@dataclass(frozen=True, slots=True)
class _Report:
    """Requests that one node answered between two times."""

    since_s: float
    until_s: float
    total: int

    def within(self, since_s: float, until_s: float) -> float:
        """Of its requests those between two times, as if they had come evenly."""
        inside_s = min(until_s, self.until_s) - max(since_s, self.since_s)
        return max(0.0, inside_s) / (self.until_s - self.since_s) * self.total


@dataclass(frozen=True, slots=True)
class Window:
    """What a service did over its SLO's window."""

    seconds: float
    good: int
    total: int
    p50_s: float | None
    p99_s: float | None
    requests_per_second: float
    """Over the last minute."""


@dataclass(slots=True)
class _Service:
    since_s: float
    generation: int
    hint: float
    hint_s: float
    active_s: float
    """When a request came last, or the service was created."""
    counted: deque[_Part] = field(default_factory=deque)
    recent: dict[str, deque[_Report]] = field(default_factory=dict)
    """What each node reported for its last minute."""
    peaks: deque[tuple[float, float]] = field(default_factory=deque)
    """(since when, requests per second), of which each holds until the next one."""

    def count(
        self, node: str, now_s: float, part_s: float, good: int, total: int, buckets: Counts
    ) -> None:
        self.active_s = now_s
        reports = self.recent.setdefault(node, deque())
        # A node is silent while nothing comes: what it reports then came since its last pause at the earliest.
        since_s = max(reports[-1].until_s if reports else 0.0, now_s - REPORT_S)
        reports.append(_Report(min(since_s, now_s - 1e-3), now_s, total))
        if not self.counted or now_s - self.counted[-1].since_s >= part_s:
            self.counted.append(_Part(now_s, 0, 0, []))
        part = self.counted[-1]
        part.good, part.total = part.good + good, part.total + total
        part.buckets = _added(part.buckets, buckets)

    def forget(self, now_s: float) -> None:
        """Leave what counts in no rate any more."""
        for node, reports in list(self.recent.items()):
            while reports and reports[0].until_s <= now_s - REPORT_S - RATE_S:
                reports.popleft()
            if not reports:
                del self.recent[node]

    def rate(self, now_s: float) -> float:
        """Requests per second over the last minute, or for how long the service is known.

        Over the last one of which all nodes have told: with a minute of its own for each, requests that move from one
        node to another would count twice, and bring the other node back for them.
        """
        until_s = min((_until_s(each, now_s) for each in self.recent.values()), default=now_s)
        counted = sum(
            each.within(until_s - RATE_S, until_s)
            for reports in self.recent.values()
            for each in reports
        )
        return counted / min(RATE_S, max(REPORT_S, until_s - self.since_s))


class Traffic:
    """Counters of all services. Not thread-safe."""

    def __init__(self) -> None:
        self._services: dict[str, _Service] = {}
        self._last: dict[tuple[str, str], tuple[int, int, Counts]] = {}
        """By (node, service): good and all requests, and those by latency."""
        self._unheld: Collection[str] = ()

    def note(
        self,
        services: Iterable[ModelService],
        nodes: Iterable[RuntimeNode],
        now_s: float,
        unheld: Collection[str] = (),
    ) -> None:
        """Take over the counters of all ``nodes``. ``unheld``: services that do not fall asleep, as nobody holds their
        requests then.
        """
        self._unheld = unheld
        known = {service.served_name: service for service in services}
        for name, service in known.items():
            self._note_spec(name, service, now_s)
        for name in self._services.keys() - known.keys():
            del self._services[name]
        present: dict[tuple[str, str], tuple[int, int, Counts]] = {}
        for node in nodes:
            for each in node.status.services:
                key = node.metadata.name, each.name
                # Other buckets than one's own, of an agent of another version, say nothing here.
                buckets = each.latency_buckets if len(each.latency_buckets) == _BUCKETS else ()
                present[key] = each.good, each.total, buckets
                found, last = self._services.get(each.name), self._last.get(key)
                if found is None:
                    continue
                if each.held:
                    found.active_s = now_s
                if last is None:
                    continue  # since when it counts is not known
                if each.total < last[1]:
                    last = 0, 0, ()  # the server was restarted
                if each.total > last[1]:
                    found.count(
                        key[0],
                        now_s,
                        _window_s(known[each.name]) / _PARTS,
                        max(0, each.good - last[0]),
                        each.total - last[1],
                        tuple(
                            max(0, new - old)
                            for new, old in zip_longest(buckets, last[2], fillvalue=0)
                        ),
                    )
        self._last = present
        for name, found in self._services.items():
            found.forget(now_s)
            while found.counted and found.counted[0].since_s < now_s - _window_s(known[name]):
                found.counted.popleft()
            rate = found.rate(now_s)
            if not found.peaks or found.peaks[-1][1] != rate:
                found.peaks.append((now_s, rate))
            # The last one before the time that counts holds until the first one in it.
            while len(found.peaks) > 1 and found.peaks[1][0] < now_s - PEAK_S:
                found.peaks.popleft()

    def planned_rate(self, service: ModelService, now_s: float) -> float:
        """Requests per second to plan for; 0: nobody has asked for so long that it may sleep."""
        found = self._services[service.served_name]
        scaling = service.spec.scaling
        may_sleep = scaling.min_replicas == 0 and service.served_name not in self._unheld
        if may_sleep and now_s - found.active_s >= scaling.idle_timeout_s:
            return 0.0
        rate = max((rate for _, rate in found.peaks), default=0.0)
        if now_s - found.hint_s < PEAK_S:
            rate = max(rate, found.hint)
        awake = _AWAKE if scaling.min_replicas == 0 else 0.0
        return max(awake, _rounded_up(rate))

    def next_change_s(self, service: ModelService, now_s: float) -> float | None:
        """Seconds until the service falls asleep if nobody asks; None: it does not."""
        scaling = service.spec.scaling
        if scaling.min_replicas:
            return None
        left = self._services[service.served_name].active_s + scaling.idle_timeout_s - now_s
        return left if left > 0 else None

    def window(self, service: ModelService, now_s: float) -> Window:
        """What was measured over the window of the first objective."""
        found = self._services[service.served_name]
        window_s = _window_s(service)
        inside = [each for each in found.counted if each.since_s >= now_s - window_s]
        buckets: list[int] = []
        for each in inside:
            buckets = _added(buckets, each.buckets)
        return Window(
            seconds=min(window_s, now_s - found.since_s),
            good=sum(each.good for each in inside),
            total=sum(each.total for each in inside),
            p50_s=percentile_s(buckets, 50),
            p99_s=percentile_s(buckets, 99),
            requests_per_second=found.rate(now_s),
        )

    def _note_spec(self, name: str, service: ModelService, now_s: float) -> None:
        generation = service.metadata.generation or 0
        hint = service.spec.traffic.requests_per_second
        found = self._services.get(name)
        if found is None:
            slept = any(
                each.type == "Ready" and each.reason == SCALED_TO_ZERO
                for each in service.status.conditions
            )
            active_s = float("-inf") if slept else now_s
            self._services[name] = found = _Service(now_s, generation, hint, now_s, active_s)
            if service.status.slo is not None:
                # As an operator that was restarted knows it.
                found.peaks.append((now_s, service.status.slo.requests_per_second))
        elif found.generation != generation:
            found.generation = generation
            if hint != found.hint:
                found.hint, found.hint_s = hint, now_s


def _until_s(reports: Sequence[_Report], now_s: float) -> float:
    """Until when what a node answered is known: a node that did not report in time answered nothing."""
    return max(reports[-1].until_s, now_s - REPORT_S)


def _window_s(service: ModelService) -> float:
    return service.spec.slo.objectives[0].window_s


def _added(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip_longest(one, other, fillvalue=0)]


def _rounded_up(rate: float) -> float:
    """To the next power of 1.1."""
    return _STEP ** ceil(log(rate, _STEP) - 1e-9) if rate > 0 else 0.0
