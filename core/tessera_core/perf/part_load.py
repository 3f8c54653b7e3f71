"""Latency of servers on one queue below their largest rate.

Problem: the law of ``shared_queue`` takes batches for full, which they are only near the largest rate. At a
tenth of it, it promises some ten times what a request really takes.

Approach: ask the servers one by one. All are equally loaded, so each gets the part of the stream that
corresponds to what it finishes; its queue by itself is looked up (``quick``), and the result multiplied by
what a shared queue changes for as many equal servers (``pooling``). The slowest counts. For equal servers
that is within the error of those tables, 5 % in general; for random sets of two and three speeds the median is
10 % above simulation, one in twenty more than 5 % below. Bursts (see ``capacity``) gain less from sharing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log2, sqrt

from tessera_core.perf.capacity import FULLEST_LOAD
from tessera_core.perf.pooling import CAPS, INSTANCES, PERCENTILES, ratio
from tessera_core.perf.quick import quick_latency
from tessera_core.perf.service import MS_PER_S, ServiceModel
from tessera_core.perf.shared_queue import Server

_MORE_SERVERS = 0.12
"""Added to the latency per doubling of the servers beyond those of the table, where it ends: read off
simulations of 12 to 64 servers."""


def part_load_latency(
    servers: Sequence[Server], rate_per_s: float, percentile: float, burstiness: float = 1.0
) -> float:
    """Latency in ms that ``percentile`` % of the rows do not exceed; ``inf`` beyond ``FULLEST_LOAD``.

    ``rate_per_s``: rows per SECOND over all ``servers``, of which there are two at least.
    """
    load = rate_per_s / MS_PER_S / sum(each.rows_per_ms for each in servers)
    if load > FULLEST_LOAD * (1 + 1e-9):
        return inf
    load = min(load, FULLEST_LOAD)
    count = sum(each.instances for each in servers)
    return max(_of_one(each, count, load, percentile, burstiness) for each in servers)


def _of_one(server: Server, count: int, load: float, percentile: float, burstiness: float) -> float:
    """Latency of the rows that ``server`` takes, one of ``count``, ms."""
    alpha = (server.batch_ms - server.tau0_ms) / server.cap
    alone = ServiceModel(alpha, server.tau0_ms, server.cap)
    latency = quick_latency(alone, load * alone.capacity_per_s, percentile, burstiness)
    listed = ServiceModel(
        alpha, server.tau0_ms, min(server.cap, CAPS[-1]), min(count, INSTANCES[-1])
    )
    tail = min(max(percentile, PERCENTILES[0]), PERCENTILES[-1])
    change = ratio(listed, load * listed.capacity_per_s, tail)
    if change < 1:  # a burst fills all servers at once: it gains less from sharing
        change = 1 - (1 - change) / sqrt(max(burstiness, 1.0))
    if count > INSTANCES[-1]:
        change *= 1 + _MORE_SERVERS * log2(count / INSTANCES[-1])
    return max(latency * change, alone.batch_ms(1)) + server.spread_ms
