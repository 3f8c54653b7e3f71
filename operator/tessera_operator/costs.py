"""What services cost and what is idle, as Prometheus is told: counters over time, and the present rates.

Between two rounds everybody is charged for what he held at the first of them. Counters begin at 0 with each leader,
as those of any process that was restarted: ``increase`` and ``rate`` know that. Time is an argument.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tessera_core.plan.cost import CORES, UNIT, Bill, Line, bill, namespace_of
from tessera_core.plan.nodes import running
from tessera_core.plan.state import ClusterState

KEEP_S = 600.0
"""For which the series of a service or pool that is gone are shown: what it cost last is scraped by then."""
_HOUR_S = 3600.0
_OF_POOL = ("namespace", "service", "pool")
_OF_PART = (*_OF_POOL, "profile")

_Labels = tuple[str, ...]
_Family = TypeVar("_Family", CounterMetricFamily, GaugeMetricFamily)


class Meter:
    """The counters of one leader. ``note`` is for one thread, ``collect`` for any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bill = Bill((), ())
        self._since_s = 0.0
        self._state: ClusterState | None = None
        self._slice_hours: dict[_Labels, float] = {}
        """By namespace, service, pool and part."""
        self._cost: dict[_Labels, float] = {}
        """By namespace, service and pool."""
        self._idle: dict[_Labels, float] = {}
        """By pool."""
        self._seen_s: dict[tuple[str, str], float] = {}
        """When a service or pool, which the first word tells apart, was there last."""

    def note(self, state: ClusterState, services: Collection[str], now_s: float) -> None:
        """Charge for the time since the last note; from now on it is ``state`` that is charged.

        ``services``: served names of those that there are.
        """
        found = self._bill if self._is_same(state) else bill(state, running(state))
        with self._lock:
            self._charge(self._bill, (now_s - self._since_s) / _HOUR_S)
            self._charge(found, 0.0)  # who is new begins at 0, and is seen to
            self._forget({*services, *(line.service for line in self._bill.lines)}, found, now_s)
            self._state, self._bill, self._since_s = state, found, now_s

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client asks for it."""
        with self._lock:
            found = self._bill
            slice_hours, cost, idle = dict(self._slice_hours), dict(self._cost), dict(self._idle)
        yield _filled(
            CounterMetricFamily(
                "tessera_gpu_slice_hours",
                "GPU slices times hours that a service held: sevenths of an A100, quarters of an A30",
                labels=_OF_PART,
            ),
            slice_hours,
        )
        yield _filled(
            CounterMetricFamily(
                "tessera_cost",
                "What was held for a service, in the unit of perNodeHour",
                labels=_OF_POOL,
            ),
            cost,
        )
        yield _filled(
            CounterMetricFamily(
                "tessera_idle_cost", "What nobody held, in the unit of perNodeHour", labels=["pool"]
            ),
            idle,
        )
        yield _filled(
            GaugeMetricFamily(
                "tessera_gpu_slices", "GPU slices that a service holds", labels=_OF_PART
            ),
            {_part(line): line.amount.gpu_slices for line in found.lines if line.part != CORES},
        )
        yield _filled(
            GaugeMetricFamily(
                "tessera_cost_per_hour", "What is held for a service costs now", labels=_OF_POOL
            ),
            _rates(found),
        )
        yield _filled(
            GaugeMetricFamily(
                "tessera_idle_cost_per_hour",
                "What nobody holds costs now: parts of used devices, devices of used nodes, nodes",
                labels=["pool", "of"],
            ),
            {
                (each.pool, of): amount / UNIT
                for each in found.pools
                for of, amount in (
                    ("parts", each.idle_parts),
                    ("devices", each.idle_devices),
                    ("nodes", each.idle_nodes),
                )
            },
        )

    def _is_same(self, state: ClusterState) -> bool:
        """Whether ``state`` costs what the last one did: the world keeps what did not change as the very same value."""
        old = self._state
        return (
            old is not None
            and state.nodes is old.nodes
            and state.measured is old.measured
            and state.pools == old.pools
            and state.digests == old.digests
        )

    def _charge(self, held: Bill, hours: float) -> None:
        for line in held.lines:
            if line.part != CORES:
                _add(self._slice_hours, _part(line), hours * line.amount.gpu_slices)
        for key, rate in _rates(held).items():
            _add(self._cost, key, hours * rate)
        for each in held.pools:
            _add(self._idle, (each.pool,), hours * each.idle / UNIT)

    def _forget(self, services: Collection[str], found: Bill, now_s: float) -> None:
        """Leave out what is gone, so that there are never more series than there were services and pools of late."""
        present = {("service", name) for name in services}
        present |= {("service", line.service) for line in found.lines}
        present |= {("pool", each.pool) for each in (*self._bill.pools, *found.pools)}
        self._seen_s.update(dict.fromkeys(present, now_s))
        self._seen_s = {
            key: seen_s for key, seen_s in self._seen_s.items() if now_s - seen_s < KEEP_S
        }

        def known(service: str, pool: str) -> bool:
            return ("service", service) in self._seen_s and ("pool", pool) in self._seen_s

        self._slice_hours = {k: v for k, v in self._slice_hours.items() if known(k[1], k[2])}
        self._cost = {k: v for k, v in self._cost.items() if known(k[1], k[2])}
        self._idle = {k: v for k, v in self._idle.items() if ("pool", *k) in self._seen_s}


def _part(line: Line) -> _Labels:
    return namespace_of(line.service), line.service, line.pool, line.part


def _rates(found: Bill) -> dict[_Labels, float]:
    """Per hour, by namespace, service and pool."""
    rates: dict[_Labels, float] = {}
    for line in found.lines:
        _add(rates, _part(line)[:3], line.amount.cost / UNIT)
    return rates


def _add(to: dict[_Labels, float], key: _Labels, more: float) -> None:
    to[key] = to.get(key, 0.0) + more


def _filled(family: _Family, values: Mapping[_Labels, float]) -> _Family:
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
