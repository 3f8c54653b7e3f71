"""Closed forms for one server without a cap: quick checks, explanations and comparison, not decisions.

All times ms, rates in rows per SECOND, arrivals Poisson, batch time alpha*b + tau0. Inoue 2021 (Performance
Evaluation 147, Theorem 2) gives the mean bound; the tail forms were calibrated on the exact tail of
``batch_queue``. They hold approximately with a cap of at least 8 below 80 % of the capped capacity.
"""

from __future__ import annotations

from math import inf, sqrt

from tessera_core.perf.service import MS_PER_S, ServiceModel


def mean_bound(service: ServiceModel, rate_per_s: float) -> float:
    """Upper bound of the mean latency, phi = min(phi0, phi1), ms; ``inf`` from rho = 1 on.

    phi0 (from mean batch >= 1) is the smaller at light load, phi1 (from idle time >= 0) at rates above
    1/(alpha + tau0). phi1 reads: half a cycle of wait and one of service, cycle = tau0/(1 - rho).
    """
    alpha, tau0 = service.alpha_ms, service.tau0_ms
    rate = rate_per_s / MS_PER_S
    rho = rate * alpha
    if rho >= 1:
        return inf
    light = (1 + 2 * rate * tau0 + (1 - rate * tau0) / (1 + rho)) / (2 * (1 - rho))
    return min((alpha + tau0) * light, _heavy_mean(service, rho))


def tail_estimate(service: ServiceModel, rate_per_s: float, percentile: float) -> float:
    """Closed form of the 95th or 99th latency percentile, ms: phi1 + z*sigma; ``inf`` from rho = 1 on.

    z is 2 for 95; for 99 it is 3, and 3.3 below tau0/alpha = 5. Rates derived from it are 0.76 to 1.01 of
    the exact ones.

    Raises ``ValueError`` for another percentile, or tau0/alpha < 2 where only the exact tail will do.
    """
    alpha, tau0 = service.alpha_ms, service.tau0_ms
    if percentile not in (95, 99):
        raise ValueError(
            f"percentile: the closed form is calibrated for 95 and 99, found {percentile}"
        )
    if tau0 < 2 * alpha:
        raise ValueError(
            f"tau0_ms/alpha_ms: the closed form needs at least 2, found {tau0 / alpha:.3g}"
        )
    rho = rate_per_s / MS_PER_S * alpha
    if rho >= 1:
        return inf
    cycle = tau0 / (1 - rho)
    variance = alpha * rho * cycle / (1 - rho**2)
    met = cycle + variance / cycle
    sigma2 = (met**2 + variance) / 12 + alpha * rho * met + (0.5 + rho) ** 2 * variance
    z = 2.0 if percentile == 95 else 3.0 if tau0 >= 5 * alpha else 3.3
    return _heavy_mean(service, rho) + z * sqrt(sigma2)


def mean_from_telemetry(
    service: ServiceModel, rate_per_s: float, mean_batch: float, service_cv2: float = 0.0
) -> float:
    """Exact mean latency, ms, from what any server can count: its rate and its mean batch size.

    A measured mean that differs tells that the profile, or the Poisson assumption, is off. ``service_cv2``
    is the squared coefficient of variation of batch times; ``inf`` where (1 + cv2)*rho^2 >= 1.

    Raises ``ValueError`` for a rate that is not positive or a mean batch below 1.
    """
    if rate_per_s <= 0:
        raise ValueError(f"rate_per_s: must be positive, found {rate_per_s}")
    if mean_batch < 1:
        raise ValueError(f"mean_batch: a batch has at least one row, found {mean_batch}")
    alpha, tau0 = service.alpha_ms, service.tau0_ms
    rate, spread = rate_per_s / MS_PER_S, 1 + service_cv2
    rho = rate * alpha
    if spread * rho**2 >= 1:
        return inf
    overhead = rate * tau0
    seen = 1 + spread * (2 * rho * overhead + overhead**2 / mean_batch)
    seen /= 1 - spread * rho**2
    return alpha + tau0 + (1 + 2 * rho) / (2 * rate) * (seen - 1)


def fluid_rate(service: ServiceModel, slo_ms: float) -> float:
    """Rate at which waiting one cycle and being served in the next takes ``slo_ms``, rows per second.

    With n evenly staggered servers the wait is 1/n of a cycle. For one server this is the rule of Nexus,
    twice the batch time within the SLO; it admits 15 to 30 % too much for a p99.
    """
    share = (1 + 1 / service.instances) * service.tau0_ms / slo_ms
    return max(0.0, service.instances * (1 - share) / service.alpha_ms * MS_PER_S)


def half_slo_batch(service: ServiceModel, slo_ms: float) -> int:
    """Largest batch whose time is at most half the SLO (Nexus); 0 when a single row takes longer."""
    rows = int((slo_ms / 2 - service.tau0_ms) / service.alpha_ms)
    return max(0, rows if service.cap is None else min(rows, service.cap))


def _heavy_mean(service: ServiceModel, rho: float) -> float:
    phi1 = 1.5 * service.tau0_ms / (1 - rho)
    return phi1 + service.alpha_ms / 2 * (rho + 2) / (1 - rho**2)
