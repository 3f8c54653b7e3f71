"""The rate that equal servers on one queue carry at an SLO, looked up: what ``quick`` is for one server.

The looked-up latency of one server at each load is multiplied by the ratio of ``pooling`` at that load; the answer is the
rate at which the product meets the budget. Nine servers and more take the ratio of eight, and of n of them only
sqrt(8/n) of what it makes of the rate. Bursts are taken as ``quick``
takes them, and gain less from sharing (``capacity``). Both the ratio and the closed form of ``shared_queue`` err low, in
different places: the closed form where full batches take most of the budget, the ratio where bursts meet several servers.
So the larger of the two is the answer. Over the rate that simulations of random servers carry (caps 1 to 128, tau0/alpha
1/4 to 256, p99, budgets of 0.8 to 4 full batches, of which those that carry 1 % of capacity at least), that was

    burstiness    instances    sets    lower quartile    median    above 1.02    above 1.05    most
         1        2 to 8       300         0.98          0.996       2.7 %         1.3 %      1.21
         1        9 to 32      100         0.74          1.000       1.0 %         1.0 %      1.25
         2        2 to 8       300         0.73          0.96        0.3 %         0.3 %      1.11
         2        9 to 32      100         0.81          0.99        0             0          1.00
         4        2 to 8       300         0.60          0.94        0.3 %         0.3 %      1.56
        16        2 to 8       300         0.49          0.87        0.7 %         0.3 %      2.40

Where it promised more than 1.2 times as much, that was a fifth of capacity at most.
"""

from __future__ import annotations

from functools import lru_cache
from math import exp, log, sqrt

import numpy as np
from numpy.typing import NDArray

from tessera_core.perf.pooling import INSTANCES, LOADS, covered, ratios_by_load
from tessera_core.perf.quick import as_bursts, careful, latency_curve
from tessera_core.perf.service import MS_PER_S, ServiceModel
from tessera_core.perf.shared_queue import Server, equal_rate

Vector = NDArray[np.float64]


def quick_shared_rate(
    service: ServiceModel, budget_ms: float, percentile: float, burstiness: float = 1.0
) -> float:
    """``max_rate`` of two instances or more looked up: rows per SECOND that meet ``budget_ms`` at ``percentile`` %.

    What the tables lack (no cap or one above 128, percentiles outside 90..99.9) has the closed form alone. Raises
    ``ValueError`` for one instance, and without a cap.
    """
    if service.instances < 2 or service.cap is None:
        raise ValueError(
            f"instances and cap: two servers or more with a cap share a queue, "
            f"found {service.instances} and {service.cap}"
        )
    left = budget_ms - service.spread_ms
    if left < service.batch_ms(1):
        return 0.0
    full_ms = service.batch_ms(service.cap)
    server = Server(service.cap, full_ms, service.tau0_ms, service.spread_ms, service.instances)
    closed = equal_rate(server, budget_ms, percentile, burstiness)
    at_most = min(service.instances, INSTANCES[-1])
    if not covered(
        ServiceModel(service.alpha_ms, service.tau0_ms, service.cap, at_most), percentile
    ):
        return closed
    if burstiness <= 1:
        each = _of_bursts(service, left, percentile, 1, 1.0)
    else:
        some, more = (
            _of_bursts(service, left, percentile, rows, burstiness)
            for rows in (int(burstiness), int(burstiness) + 1)
        )
        each = careful(some, more, burstiness, full_ms)
    unknown = sqrt(at_most / service.instances)
    return max(service.instances * each * unknown, closed)


def _of_bursts(
    service: ServiceModel, left: float, percentile: float, rows: int, burstiness: float
) -> float:
    """Rows per second of each server under a Poisson stream of bursts of ``rows`` rows."""
    assert service.cap is not None
    alpha, tau0, cap = as_bursts(service.alpha_ms, service.tau0_ms, service.cap, rows)
    alone = alpha + tau0
    if left < alone:
        return 0.0
    instances = min(service.instances, INSTANCES[-1])
    shape = (service.cap, service.tau0_ms / service.alpha_ms)
    values, loads = _curve(instances, *shape, percentile, burstiness, cap, tau0 / alpha)
    return rows * exp(np.interp(log(left / alone), values, loads)) / alone * MS_PER_S


@lru_cache(maxsize=8192)
def _curve(
    instances: int,
    cap: int,
    overhead: float,
    percentile: float,
    burstiness: float,
    cap_of_bursts: float,
    overhead_of_bursts: float,
) -> tuple[Vector, Vector]:
    """``latency_curve`` of one of the servers, which share a queue of bursts; rising."""
    values, loads = latency_curve(cap_of_bursts, overhead_of_bursts, percentile)
    largest = log(cap_of_bursts * (1 + overhead_of_bursts) / (cap_of_bursts + overhead_of_bursts))
    poisson = np.interp(
        np.exp(loads - largest), LOADS, ratios_by_load(instances, cap, overhead, percentile)
    )
    shared = np.where(poisson >= 1, poisson, 1 - (1 - poisson) / sqrt(burstiness))
    rising: Vector = np.maximum.accumulate(np.maximum(values + np.log(shared), 0.0))
    return rising, loads
