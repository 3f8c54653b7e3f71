"""What a served member can promise: maximum rate at an SLO, and latency at a rate.

These are the functions that the planner, the controllers and the simulator's checks call. Rates are ROWS
PER SECOND over all instances behind one queue, latencies milliseconds from arrival to end of the batch,
percentiles are in percent (99, not 0.99). ``burstiness`` is the squared coefficient of variation of the
gaps between arrivals: 1 is Poisson, and what is smoother than Poisson is treated as Poisson.

One instance is solved exactly (``batch_queue``; no table: a solution takes milliseconds). Several instances
on one queue take the exact law of one and a simulated ratio (``pooling``), which errs low in the rate. ``exact=True`` asks for the
reference instead of that shortcut: the whole queue simulated with a fixed seed, about a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf, isfinite, log, sqrt

from tessera_core.perf.batch_queue import BatchQueue
from tessera_core.perf.pooling import covered, ratio, simulated_latency
from tessera_core.perf.service import MS_PER_S, ServiceModel

FULLEST_LOAD = 0.98
"""Share of capacity that ``max_rate`` never exceeds: beyond it queues take minutes to settle whatever the model says."""
_RATE_TOLERANCE = 2e-3
_LEAST_LOAD = 1e-5
_MOST_STEPS = 40
_NEVER = 1e-6
LEAST_RATE = 1e-12
"""Rows per second; below, no row ever meets another, and logarithms of the rate are not taken."""


def utilisation(service: ServiceModel, rate_per_s: float) -> float:
    """Load as a share of the largest rate the service could finish; stable below 1."""
    _check_rate(rate_per_s)
    return rate_per_s / service.capacity_per_s


def mean_latency(
    service: ServiceModel,
    rate_per_s: float,
    burstiness: float = 1.0,
    service_cv2: float = 0.0,
    exact: bool = False,
) -> float:
    """Mean latency, ms; ``inf`` where the queue has no steady state.

    ``service_cv2``: squared coefficient of variation of batch times around alpha*b + tau0 (Poisson only).
    """
    _check_rate(rate_per_s)
    if rate_per_s < LEAST_RATE:
        return service.batch_ms(1)
    if _simulate_instead(service, None, exact) and not service_cv2:
        return _simulated(service, rate_per_s, None, burstiness)
    queue = _one_server(service, rate_per_s, burstiness, service_cv2)
    if queue is None:
        return inf
    return queue.mean_ms * _shared(service, rate_per_s, None, burstiness)


def latency_percentile(
    service: ServiceModel,
    rate_per_s: float,
    percentile: float,
    burstiness: float = 1.0,
    exact: bool = False,
) -> float:
    """Latency that ``percentile`` % of the rows do not exceed, ms; ``inf`` where there is no steady state."""
    _check_rate(rate_per_s)
    _check_percentile(percentile)
    if rate_per_s < LEAST_RATE:
        return service.batch_ms(1) + service.spread_ms
    if _simulate_instead(service, percentile, exact):
        return _simulated(service, rate_per_s, percentile, burstiness) + service.spread_ms
    queue = _one_server(service, rate_per_s, burstiness)
    if queue is None:
        return inf
    together = queue.percentile_ms(percentile) * _shared(
        service, rate_per_s, percentile, burstiness
    )
    return max(together, service.batch_ms(1)) + service.spread_ms


@lru_cache(maxsize=16384)
def max_rate(
    service: ServiceModel,
    slo_ms: float,
    percentile: float,
    burstiness: float = 1.0,
    exact: bool = False,
) -> float:
    """Largest rate, rows per SECOND over all instances, at which ``percentile`` % finish within ``slo_ms``.

    0 when not even a lone row does. Never above ``FULLEST_LOAD`` of capacity. The search errs low, by
    0.2 % at most.

    Raises ``ValueError`` for an SLO or burstiness that is not positive, or a percentile outside [1, 100).
    """
    if not (isfinite(slo_ms) and slo_ms > 0):
        raise ValueError(f"slo_ms: must be a positive number of ms, found {slo_ms}")
    _check_percentile(percentile)
    budget = slo_ms - service.spread_ms
    if budget < service.batch_ms(1):
        return 0.0
    allowed = 1 - percentile / 100

    def excess(rate_per_s: float) -> float:
        """Positive when the rate is too high; smooth, so that few steps find its zero."""
        queue = _one_server(service, rate_per_s, burstiness)
        if queue is None:
            return inf
        late = queue.late(budget / _shared(service, rate_per_s, percentile, burstiness))
        return log(max(late / allowed, _NEVER))

    def simulated_excess(rate_per_s: float) -> float:
        return log(_simulated(service, rate_per_s, percentile, burstiness) / budget)

    top = FULLEST_LOAD * service.capacity_per_s
    # A batch of time budget/2 waits for one like it: Nexus's rule, near the answer and cheap to compute.
    fluid = (1 - 2 * service.tau0_ms / budget) / service.alpha_ms * MS_PER_S * service.instances
    guess = min(max(fluid, 0.02 * top), top)
    simulate = _simulate_instead(service, percentile, exact)
    return _last_below_zero(simulated_excess if simulate else excess, guess, top)


def _last_below_zero(excess: Callable[[float], float], guess: float, top: float) -> float:
    """Largest rate up to ``top`` whose excess is not positive, or 0: bracket, then false position (Illinois)."""
    low = high = guess
    below = above = excess(guess)
    while above <= 0:
        if high >= top:
            return top
        low, below, high = high, above, min(top, 1.25 * high)
        above = excess(high)
    while below > 0:
        high, above, low = low, below, 0.75 * low if low > 0.3 * guess else 0.3 * low
        if low < _LEAST_LOAD * top:
            return 0.0
        below = excess(low)
    for _ in range(_MOST_STEPS):
        if high - low <= _RATE_TOLERANCE * high:
            break
        share = 0.5 if above == inf else min(max(below / (below - above), 0.02), 0.98)
        middle = low + share * (high - low)
        value = excess(middle)
        if value > 0:
            high, above, below = middle, value, below / 2
        else:
            low, below, above = middle, value, above / 2
    return low


def _one_server(
    service: ServiceModel, rate_per_s: float, burstiness: float, service_cv2: float = 0.0
) -> BatchQueue | None:
    rate = rate_per_s / MS_PER_S / service.instances
    return BatchQueue.solve(service, rate, _overdispersion(burstiness), service_cv2)


def _simulate_instead(service: ServiceModel, percentile: float | None, exact: bool) -> bool:
    return service.instances > 1 and (exact or not covered(service, percentile))


def _shared(
    service: ServiceModel, rate_per_s: float, percentile: float | None, burstiness: float
) -> float:
    """Latency on the shared queue over that of one server at the same load."""
    if service.instances == 1:
        return 1.0
    poisson = ratio(service, rate_per_s, percentile)
    # A burst fills all servers at once, so bursty arrivals gain less from sharing; simulations at CV²
    # of 2, 4 and 16 stay below this.
    return poisson if poisson >= 1 else 1 - (1 - poisson) / sqrt(_overdispersion(burstiness))


def _simulated(
    service: ServiceModel, rate_per_s: float, percentile: float | None, burstiness: float
) -> float:
    if utilisation(service, rate_per_s) > FULLEST_LOAD * (1 + 1e-9):
        return inf
    return simulated_latency(service, rate_per_s, percentile, _overdispersion(burstiness))


def _overdispersion(burstiness: float) -> float:
    """Variance over mean of the arrivals; within 1 % of Poisson, or below it, is Poisson."""
    if not (isfinite(burstiness) and burstiness > 0):
        raise ValueError(f"burstiness: must be a positive number, found {burstiness}")
    return burstiness if burstiness > 1.01 else 1.0


def _check_rate(rate_per_s: float) -> None:
    if not (isfinite(rate_per_s) and rate_per_s >= 0):
        raise ValueError(
            f"rate_per_s: must be a number of rows per second >= 0, found {rate_per_s}"
        )


def _check_percentile(percentile: float) -> None:
    if not 1 <= percentile < 100:
        raise ValueError(f"percentile: must be in percent, from 1 to below 100, found {percentile}")
