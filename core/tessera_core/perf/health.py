"""Whether a served member is as fast as its profile says: mean latency measured, beside what it should be.

Problem: batches that take longer than their profile make every plan wrong, and latency alone does not show it: it also
follows the rate. Nor do batch times alone, for what a request waits beside them is not in them.

Approach: for one server that takes all that wait, under Poisson arrivals, the mean latency is known exactly from the rate,
the profile's line tau(b) = alpha*b + tau0, and the mean batch, which is counted (Inoue 2021; :func:`mean_ms`). All of that
is in counters that only grow, so whoever samples them once a second can lay the two beside each other. Where an
assumption does not hold the identity says nothing, and the reason is told instead of a ratio.

The arithmetic knows nothing of a cap or of drops, so both are judged: a batch that stays two standard deviations below
the cap hardly ever reaches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from math import inf, isfinite, sqrt

from tessera_core.perf.counters import Counters, gone_back
from tessera_core.perf.service import MS_PER_S, ServiceModel

FEWEST_ANSWERS = 200
"""In a window; below it the mean is that of a few batches."""
FEWEST_INTERVALS = 20
"""Between samples; below it their burstiness is known to no better than a factor of two."""
LOST = 0.001
"""Of the arrivals, that may go unanswered: their latencies are those that the mean lacks."""
BURSTINESS = (0.5, 1.5)
"""What passes for Poisson: gaps of a squared variation of 0.25 make the mean 3 % shorter, of 4 some 10 % longer."""
SURE = 2.0
"""Standard deviations of an estimate within which the truth is taken to be."""
SERVED_LOAD = 0.95
"""Share of what the server finishes at most, from which a window is too short to be a steady state."""


class Unmet(StrEnum):
    """Why measured and predicted latency cannot be laid beside each other."""

    SEVERAL_INSTANCES = "SeveralInstances"
    TOO_FEW_SAMPLES = "TooFewSamples"
    TOO_FEW_ANSWERS = "TooFewAnswers"
    REQUESTS_LOST = "RequestsLost"
    BURSTY = "Bursty"
    """Or smoother than independent arrivals: a closed loop, or requests of many rows at once."""
    OVERLOADED = "Overloaded"
    CAP_REACHED = "CapReached"


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """What was measured, beside what the profile predicts for the arrivals that really came."""

    measured_ms: float | None
    """Mean latency; None without answers."""
    predicted_ms: float | None
    """None where an assumption is unmet."""
    unmet: Unmet | None

    @property
    def ratio(self) -> float | None:
        """Measured over predicted: above 1 the member is slower than its profile, or waits for something else."""
        if self.predicted_ms is None or self.measured_ms is None:
            return None
        return self.measured_ms / self.predicted_ms


def model_health(
    samples: Sequence[Counters],
    service: ServiceModel,
    service_cv2: float = 0.0,
    overhead_ms: float = 0.0,
) -> ModelHealth:
    """Compare over the time from the first sample to the last, ascending, of one server that was not restarted.

    A row is what counts alone. Where all requests have r rows, count requests and give their line, alpha*r.

    ``service``: line, cap and instances on the device. ``service_cv2``: squared coefficient of variation of a batch's
    time around its mean. ``overhead_ms``: part of every measured latency outside queue and batch.

    Raises ValueError where a counter or the clock goes back, or for a negative variation or overhead.
    """
    for name, value in {"service_cv2": service_cv2, "overhead_ms": overhead_ms}.items():
        if not (isfinite(value) and value >= 0):
            raise ValueError(f"{name}: must be a number >= 0, found {value}")
    for one, two in pairwise(samples):
        _check_growth(one, two)
    if len(samples) <= FEWEST_INTERVALS:
        return ModelHealth(None, None, Unmet.TOO_FEW_SAMPLES)
    first, last = samples[0], samples[-1]
    answered = last.answered - first.answered
    measured_ms = (last.latency_s - first.latency_s) * MS_PER_S / answered if answered else None
    arrived = last.arrived - first.arrived
    batches = last.batches - first.batches
    if last.lost - first.lost > LOST * arrived:
        return ModelHealth(measured_ms, None, Unmet.REQUESTS_LOST)
    if min(answered, arrived) < FEWEST_ANSWERS or not batches:
        return ModelHealth(measured_ms, None, Unmet.TOO_FEW_ANSWERS)
    rate_per_s = arrived / (last.at_s - first.at_s)
    mean_batch = (last.batched - first.batched) / batches
    poisson = _like_poisson(samples)
    unmet = _unmet(service, rate_per_s, mean_batch, service_cv2) if poisson else Unmet.BURSTY
    if unmet is not None:
        return ModelHealth(measured_ms, None, unmet)
    predicted_ms = mean_ms(service, rate_per_s, mean_batch, service_cv2) + overhead_ms
    return ModelHealth(measured_ms, predicted_ms, None)


def mean_ms(
    service: ServiceModel, rate_per_s: float, mean_batch: float, service_cv2: float = 0.0
) -> float:
    """Mean latency, ms, of one server without a cap under Poisson arrivals of ``rate_per_s`` rows per SECOND:

        E[W] = alpha + tau0 + (1 + 2*rho) / (2*lambda) * (E[B²]/E[B] - 1),    rho = lambda*alpha

    Inoue 2021, equation for the mean; ``mean_batch`` is E[B]. Batch times may vary around the line by ``service_cv2``:
    that changes the second moment alone. ``inf`` where that has none.
    """
    rate = rate_per_s / MS_PER_S
    if (1 + service_cv2) * (rate * service.alpha_ms) ** 2 >= 1:
        return inf
    biased = _biased_batch(service, rate, mean_batch, service_cv2)
    return service.batch_ms(1) + (1 + 2 * rate * service.alpha_ms) / (2 * rate) * (biased - 1)


def burstiness(samples: Sequence[Counters]) -> float:
    """Variance over mean of the arrivals between samples, of which there are three at least; 1 is Poisson.

    From differences of neighbouring rates (von Neumann 1941), so that a rate that drifts is not taken for bursts: its
    queue is in a steady state all the time. Intervals may differ. Not from the gaps between arrivals: a server reads what
    came in turns, so that its gaps vary far more than those of who asks, on a scale that hardly moves the mean.
    """
    spans = [two.at_s - one.at_s for one, two in pairwise(samples)]
    rates = [
        (two.arrived - one.arrived) / s
        for (one, two), s in zip(pairwise(samples), spans, strict=True)
    ]
    mean = (samples[-1].arrived - samples[0].arrived) / sum(spans)
    if not mean:
        return 1.0
    steps = [
        (rates[i + 1] - rates[i]) ** 2 / (1 / spans[i] + 1 / spans[i + 1])
        for i in range(len(rates) - 1)
    ]
    return sum(steps) / len(steps) / mean


def _like_poisson(samples: Sequence[Counters]) -> bool:
    """Such a measurement of Poisson arrivals has a variance of 3/n for n differences of neighbouring counts; squares
    around a mean would give 2/n.
    """
    noise = SURE * sqrt(3 / (len(samples) - 2))
    least, most = BURSTINESS
    return least - noise <= burstiness(samples) <= most + noise


def _unmet(
    service: ServiceModel, rate_per_s: float, mean_batch: float, service_cv2: float
) -> Unmet | None:
    if service.instances > 1:
        return Unmet.SEVERAL_INSTANCES
    load = rate_per_s / service.capacity_per_s
    growth = rate_per_s / MS_PER_S * service.alpha_ms
    if load >= SERVED_LOAD or (1 + service_cv2) * growth**2 >= SERVED_LOAD:
        return Unmet.OVERLOADED
    if service.cap is not None:
        biased = _biased_batch(service, rate_per_s / MS_PER_S, mean_batch, service_cv2)
        deviation = sqrt(max(0.0, mean_batch * (biased - mean_batch)))
        if mean_batch + SURE * deviation > service.cap:
            return Unmet.CAP_REACHED
    return None


def _biased_batch(
    service: ServiceModel, rate: float, mean_batch: float, service_cv2: float
) -> float:
    """E[B²]/E[B]: the mean batch that a row finds itself in; ``rate`` in rows per ms.

    From E[B(B-1)] = lambda² * k * E[tau(B)²], k = 1 + cv2: the rows of a batch came, Poisson, during the one before.
    """
    k = 1 + service_cv2
    rho, idle = rate * service.alpha_ms, rate * service.tau0_ms
    return (1 + k * (2 * rho * idle + idle**2 / mean_batch)) / (1 - k * rho**2)


def _check_growth(one: Counters, two: Counters) -> None:
    name = gone_back(one, two)
    if name is None and two.at_s == one.at_s:
        name = "at_s"
    if name is not None:
        before, after = getattr(one, name), getattr(two, name)
        raise ValueError(
            f"{name}: found {after} after {before}, but it only grows; begin anew where a server restarted"
        )
