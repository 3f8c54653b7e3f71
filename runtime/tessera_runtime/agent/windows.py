"""Rates, percentiles and attainment over a window, from counters that only grow."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tessera_core.perf.histogram import percentile_s
from tessera_runtime.target import MemberReport, ServerReport, ServiceReport

ENOUGH_REQUESTS = 200
"""Below it, what the dispatcher does without requests would be counted as theirs."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one service did during a window."""

    seconds: float
    requests_per_second: float
    p50_ms: float | None
    """None: nothing was answered."""
    p99_ms: float | None
    good: int
    total: int
    mean_batch: tuple[tuple[str, float], ...]
    """(member, rows per batch) of members that ran any."""

    @property
    def attainment(self) -> float | None:
        """Share of valid requests answered within the SLO; None without requests: nothing was missed."""
        return self.good / self.total if self.total else None


class Window:
    """The reports of the last ``length_s`` seconds."""

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._reports: deque[ServerReport] = deque()

    def add(self, report: ServerReport) -> None:
        """Note a report. A clock that went back is a new server: what was before says nothing any more."""
        if self._reports and report.monotonic_s < self._reports[-1].monotonic_s:
            self._reports.clear()
        self._reports.append(report)
        # One report from before the window stays: it is what the window is counted from.
        while (
            len(self._reports) > 2
            and self._reports[1].monotonic_s <= report.monotonic_s - self._length_s
        ):
            self._reports.popleft()

    def dispatch_us(self) -> float | None:
        """Processor time of the dispatcher per request of any service, µs; None without enough requests.

        At light load a request pays for its batch alone, so this is more than it will be at full load.
        """
        if len(self._reports) < 2:
            return None
        first, last = self._reports[0], self._reports[-1]
        requests = sum(s.total for s in last.services) - sum(s.total for s in first.services)
        if requests < ENOUGH_REQUESTS:
            return None
        return 1e6 * (last.cpu_s - first.cpu_s) / requests

    def seen(self, name: str) -> Seen | None:
        """What ``name`` did; None before two reports know it."""
        if len(self._reports) < 2:
            return None
        last = self._reports[-1]
        newest = _service(last, name)
        if newest is None:
            return None
        first = last
        oldest: ServiceReport | None = None
        for report in self._reports:
            oldest = _service(report, name)
            if (
                oldest is not None
                and oldest.version == newest.version
                and oldest.total <= newest.total
            ):
                first = (
                    report  # counters of another version, or of a server that restarted, start at 0
                )
                break
        if oldest is None or first is last:
            return None
        seconds = last.monotonic_s - first.monotonic_s
        total = newest.total - oldest.total
        buckets = [
            a - b for a, b in zip(newest.latency_buckets, oldest.latency_buckets, strict=True)
        ]
        return Seen(
            seconds=seconds,
            requests_per_second=total / seconds,
            p50_ms=_ms(percentile_s(buckets, 50)),
            p99_ms=_ms(percentile_s(buckets, 99)),
            good=newest.good - oldest.good,
            total=total,
            mean_batch=tuple(
                (member.name, rows)
                for member in newest.members
                if (rows := _mean_batch(oldest.members, member)) is not None
            ),
        )


def _service(report: ServerReport, name: str) -> ServiceReport | None:
    return next((service for service in report.services if service.name == name), None)


def _mean_batch(before: tuple[MemberReport, ...], now: MemberReport) -> float | None:
    old = next((member for member in before if member.name == now.name), None)
    if old is None or now.batches <= old.batches:
        return None
    return (now.rows - old.rows) / (now.batches - old.batches)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
