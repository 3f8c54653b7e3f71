"""How much traffic each service has, from counters of many servers that start anew now and then. Time is an argument.

The rate that is planned is the most that any minute of the last ten had, rounded up to steps of 10 %: growth is
followed at once, a lull is not taken for the end of the day, and a rate that wavers changes no plan. A spec's hint
counts as if it had been measured when it was written. No traffic is a measurement like any other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil, log

from tessera_core.api import ModelService, RuntimeNode
from tessera_core.perf.histogram import BOUNDS_S, percentile_s

RATE_S = 60.0
"""Over which a rate is counted: agents report at most every 30 s."""
PEAK_S = 600.0
"""For which a peak counts."""
SCALED_TO_ZERO = "ScaledToZero"
"""Reason of the condition of a service that sleeps; it goes on sleeping when the operator is restarted."""
_STEP = 1.1
_AWAKE = 1e-3
"""Requests per second of a service that is to run although none came for a while."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted at one moment since the one before."""

    at_s: float
    good: int
    total: int
    buckets: tuple[int, ...]


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
    counted: deque[Counted] = field(default_factory=deque)
    peaks: deque[tuple[float, float]] = field(default_factory=deque)


class Traffic:
    """Counters of all services. Not thread-safe."""

    def __init__(self) -> None:
        self._services: dict[str, _Service] = {}
        self._last: dict[tuple[str, str], tuple[int, int, tuple[int, ...]]] = {}

    def note(
        self, services: Iterable[ModelService], nodes: Iterable[RuntimeNode], now_s: float
    ) -> None:
        """Take over the counters of all ``nodes``."""
        known = {service.served_name: service for service in services}
        for name, service in known.items():
            self._note_spec(name, service, now_s)
        for name in self._services.keys() - known.keys():
            del self._services[name]
        present: dict[tuple[str, str], tuple[int, int, tuple[int, ...]]] = {}
        for node in nodes:
            for each in node.status.services:
                key = node.metadata.name, each.name
                present[key] = each.good, each.total, each.latency_buckets
                found = self._services.get(each.name)
                if found is None:
                    continue
                if each.held:
                    found.active_s = now_s
                last = self._last.get(key)
                if last is not None and last[1] != each.total:
                    if each.total < last[1] or len(last[2]) != len(each.latency_buckets):
                        last = 0, 0, (0,) * len(each.latency_buckets)  # the server was restarted
                    found.active_s = now_s
                    buckets = tuple(
                        max(0, new - old)
                        for new, old in zip(each.latency_buckets, last[2], strict=True)
                    )
                    found.counted.append(
                        Counted(now_s, max(0, each.good - last[0]), each.total - last[1], buckets)
                    )
        self._last = present
        for name, found in self._services.items():
            rate = self._rate(found, now_s)
            if not found.peaks or found.peaks[-1][1] != rate:
                found.peaks.append((now_s, rate))
            window_s = max(RATE_S, known[name].spec.slo.objectives[0].window_s)
            while found.counted and found.counted[0].at_s < now_s - window_s:
                found.counted.popleft()
            # The last one before the window holds until the first one in it.
            while len(found.peaks) > 1 and found.peaks[1][0] < now_s - PEAK_S:
                found.peaks.popleft()

    def planned_rate(self, service: ModelService, now_s: float) -> float:
        """Requests per second to plan for; 0: nobody has asked for so long that it may sleep."""
        found = self._services[service.served_name]
        scaling = service.spec.scaling
        if scaling.min_replicas == 0 and now_s - found.active_s >= scaling.idle_timeout_s:
            return 0.0
        rate = max((rate for _, rate in found.peaks), default=0.0)
        if now_s - found.hint_s < PEAK_S or (not found.counted and now_s - found.since_s < PEAK_S):
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
        window_s = service.spec.slo.objectives[0].window_s
        inside = [each for each in found.counted if each.at_s >= now_s - window_s]
        buckets = [0] * (len(BOUNDS_S) + 1)
        for each in inside:
            if len(each.buckets) == len(buckets):
                buckets = [a + b for a, b in zip(buckets, each.buckets, strict=True)]
        return Window(
            seconds=min(window_s, now_s - found.since_s),
            good=sum(each.good for each in inside),
            total=sum(each.total for each in inside),
            p50_s=percentile_s(buckets, 50),
            p99_s=percentile_s(buckets, 99),
            requests_per_second=self._rate(found, now_s),
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
            self._services[name] = _Service(now_s, generation, hint, now_s, active_s)
        elif found.generation != generation:
            found.generation = generation
            if hint != found.hint:
                found.hint, found.hint_s = hint, now_s

    @staticmethod
    def _rate(found: _Service, now_s: float) -> float:
        seconds = min(RATE_S, now_s - found.since_s)
        if seconds <= 0:
            return 0.0
        return sum(each.total for each in found.counted if each.at_s > now_s - RATE_S) / max(
            seconds, RATE_S / 2
        )


def _rounded_up(rate: float) -> float:
    """To the next power of 1.1, in three digits."""
    if rate <= 0:
        return 0.0
    return float(f"{_STEP ** ceil(log(rate, _STEP) - 1e-9):.3g}")
