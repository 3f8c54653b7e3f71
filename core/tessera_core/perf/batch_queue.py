"""One server that batches whatever waits: its exact mean latency and exact latency tail.

Poisson rows arrive; a free server takes all that wait, at most ``cap``, oldest first; a batch of b rows
takes h(b) = alpha*b + tau0 (Inoue 2021). The number L left waiting when a batch ends is a Markov chain:

    batch b = min(max(L, 1), cap),   left over r = max(L - cap, 0),   L' = r + Poisson(lambda*h(b))

(from L = 0 the server idles until one row comes). Its stationary law is solved on a finite support, and
everything else follows by conditioning on the batch in service when a row arrives. Without a cap L = A and
this is the published chain of batch sizes.

Large batches make the Poisson laws wide and smooth, so they are then sampled every ``stride`` rows: the
error of such a sum falls like exp(-2*pi^2*(sigma/stride)^2), and the cost of a solution stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log, sqrt

import numpy as np
from numpy.typing import NDArray

from tessera_core.perf.counts import arrivals_during, arrivals_in_gamma_time
from tessera_core.perf.service import ServiceModel

Vector = NDArray[np.float64]

_LOST_MASS = 1e-8
"""Probability that may sit at the end of the support; percentiles up to 99.99 stay exact to 1e-5 of it."""
_MOST_STATES = 2048
"""A chain that needs more is closer to saturation than any estimate is good for."""
_LOST_MIXED_MASS, _MOST_MIXED_STATES = 1e-6, 700
"""The same where batch times vary: tails are heavier, steps are not local, and only the mean is wanted."""
_FULLEST_LOAD = 0.998
"""Load from which a queue counts as having no steady state: it would take hours to reach it."""
_SINGLE_THREAD_FLOPS = 250_000
"""OpenBLAS multiplies on the calling thread below 2^18 multiply-adds."""
_BURST_LEFT = 0.15
"""Part of a burst that follows its first row within one service. A renewal process has 0.5 in the long run;
simulations at CV² of 4 and 16 put it between 0 and 0.25, and 0.15 meets their mean latency at light load."""
_PHASES = 64
"""Points of the service in progress at which an arrival is placed, where its position in line matters."""
_COARSE_PHASES = 16
"""The same for batches below the cap, which are many, so that their errors average out."""


@dataclass(frozen=True, slots=True)
class BatchQueue:
    """A solved queue. Build it with ``BatchQueue.solve``; all times ms, ``rate`` in rows per ms."""

    service: ServiceModel
    rate: float
    burstiness: float
    service_cv2: float
    stride: int
    waiting: Vector
    """P(L = i*stride) just after a batch has ended, shape (states,)."""

    @classmethod
    def solve(
        cls,
        service: ServiceModel,
        rate: float,
        burstiness: float = 1.0,
        service_cv2: float = 0.0,
    ) -> BatchQueue | None:
        """Stationary law of one instance at ``rate`` rows/ms; None when it has none or is too close to that.

        ``burstiness`` >= 1 is the ratio of variance to mean of the arrivals (1: Poisson, exact; above it an
        approximation, see ``counts``). ``service_cv2`` is the squared coefficient of variation of a batch's
        time around h(b). ``service.instances`` is ignored: this is one server.
        """
        if rate <= 0:
            raise ValueError(f"rate: must be positive, found {rate}")
        if burstiness != 1 and service_cv2:
            raise ValueError(
                "burstiness and service_cv2: only one of them can be modelled at a time"
            )
        growth = rate * service.alpha_ms
        cap = service.cap
        load = growth if cap is None else rate * service.batch_ms(cap) / cap
        if load >= _FULLEST_LOAD or service_cv2 * growth**2 >= 1:
            return None
        stride = 1 if service_cv2 else _stride(service, rate, burstiness)
        states = _support(service, rate, burstiness, service_cv2)
        while True:
            size = ceil(states / stride) + 1
            if size > (_MOST_MIXED_STATES if service_cv2 else _MOST_STATES):
                return None
            waiting = _stationary(service, rate, burstiness, service_cv2, size, stride)
            if waiting[-1] <= (_LOST_MIXED_MASS if service_cv2 else _LOST_MASS):
                return cls(service, rate, burstiness, service_cv2, stride, waiting)
            states = ceil(states * 1.5)

    @property
    def _counts(self) -> Vector:
        return np.arange(len(self.waiting), dtype=np.float64) * self.stride

    @property
    def _batches(self) -> Vector:
        """Size of the batch that follows each state."""
        return _batches_after(self._counts, self.service.cap)

    @property
    def mean_batch(self) -> float:
        """Mean rows per batch, E[B]."""
        return float(self.waiting @ self._batches)

    @property
    def busy(self) -> float:
        """Fraction of time the server works. It nears 1 at a small part of capacity: not a scaling signal."""
        return min(self.rate * float(self.waiting @ self._times) / self.mean_batch, 1.0)

    @property
    def _times(self) -> Vector:
        return self.service.alpha_ms * self._batches + self.service.tau0_ms

    @property
    def mean_ms(self) -> float:
        """Mean latency (wait and service), ms: Little's law over one batch cycle of mean_batch/rate."""
        times = self._times
        present = np.maximum(self._counts, 1.0)
        present[0] += self._burst_left
        arrived = self.rate * times**2 * (1 + self.service_cv2) / 2
        return float(self.waiting @ (present * times + arrived)) / self.mean_batch

    @property
    def _burst_left(self) -> float:
        """Mean rows that follow the one that ends an idle spell, beyond those of any such time."""
        return 0.0 if self.burstiness == 1 else _BURST_LEFT * (self.burstiness - self.stride)

    def late(self, latency_ms: float) -> float:
        """P(latency > ``latency_ms``) of a row, exact for constant batch times (``service_cv2`` 0).

        A row that finds the server idle takes h(1). One that meets a batch of time h waits the rest of it,
        V*h with V uniform, and where all fit runs with the N ~ Poisson(rate*h) others of the same service
        in a batch of N + 1. Where they do not fit, its position counts: ``_late_by_position``.
        """
        if self.service_cv2:
            raise ValueError("service_cv2: the tail is known for constant batch times only")
        service, cap = self.service, self.service.cap
        times = self._times
        # Shares of all rows: those that come during each service, and those that end an idle spell.
        coming = self.rate * times
        coming[0] += self._burst_left
        seen = self.waiting * coming / self.mean_batch
        idle = float(self.waiting[0]) / self.mean_batch
        below_cap = len(seen) if cap is None else min(len(seen), cap // self.stride)
        fits = len(seen) if cap is None else cap // self.stride
        met = np.ones(below_cap)
        met[0] += _BURST_LEFT
        others = self._arrivals(times[:below_cap], fits, met)
        joined = service.batch_ms(1) + service.alpha_ms * self.stride * np.arange(fits)
        beyond = 1 - (latency_ms - joined) / times[:below_cap, None]
        np.clip(beyond, 0, 1, out=beyond)
        late = float(seen[:below_cap] @ np.einsum("ij,ij->i", others, beyond))
        late += idle * (service.batch_ms(1) > latency_ms)
        if cap is not None:
            late += self._late_behind_full(latency_ms, seen[below_cap:])
            late += self._late_overflowing(latency_ms, seen[:below_cap], 1 - others.sum(axis=1))
        return min(max(late, 0.0), 1.0)

    def _late_behind_full(self, latency_ms: float, seen: Vector) -> float:
        """Part of ``late`` from rows that meet a full batch with i*stride rows left over, seen[i] each."""
        if not seen.size:
            return 0.0
        assert self.service.cap is not None
        full_ms = self.service.batch_ms(self.service.cap)
        phase = (np.arange(_PHASES) + 0.5) / _PHASES
        fresh = self._arrivals(full_ms * phase, self._reach(full_ms), met=0.5)
        ahead = np.array([np.convolve(law, seen) for law in fresh])
        return self._late_by_position(latency_ms, ahead, full_ms * (1 - phase), False) / _PHASES

    def _late_overflowing(self, latency_ms: float, seen: Vector, overflow: Vector) -> float:
        """Part of ``late`` from rows that meet a batch below the cap but share its time with a cap or more."""
        assert self.service.cap is not None
        weights = seen * overflow
        likely = np.flatnonzero(weights > _LOST_MASS * 10)
        if not likely.size:
            return 0.0
        times = self._times[likely]
        phase = (np.arange(_COARSE_PHASES) + 0.5) / _COARSE_PHASES
        elapsed = np.outer(times, phase).ravel()
        remaining = np.outer(times, 1 - phase).ravel()
        reach = self._reach(self.service.batch_ms(self.service.cap))
        ahead = self._arrivals(elapsed, reach, met=0.5)
        ahead *= np.repeat(seen[likely], _COARSE_PHASES)[:, None]
        return self._late_by_position(latency_ms, ahead, remaining, True) / _COARSE_PHASES

    def _late_by_position(
        self, latency_ms: float, ahead: Vector, remaining_ms: Vector, overflowing: bool
    ) -> float:
        """Sum of P(late) over phases (rows of ``ahead``) and rows ahead in line (columns, stride apart).

        With k rows ahead, m = k // cap full batches go first. The row's own batch then starts after
        remaining + m*h(cap) and holds what is left ahead, itself, and all that came meanwhile, up to the
        cap. ``overflowing`` counts, in batch m = 0, only the cases where more than a cap of rows wait:
        the others have been counted by the caller.
        """
        service = self.service
        assert service.cap is not None
        cap, full_ms = service.cap // self.stride, service.batch_ms(service.cap)
        turns = -(-ahead.shape[1] // cap)
        padded = np.zeros((ahead.shape[0], turns * cap))
        padded[:, : ahead.shape[1]] = ahead
        by_turn = padded.reshape(-1, cap)
        wait = (remaining_ms[:, None] + full_ms * np.arange(turns)).ravel()
        # The row is late iff its batch holds more than `slack` rows, that is iff at least need - k came.
        slack = (latency_ms - wait - service.tau0_ms) / service.alpha_ms
        need = np.floor((slack - 1) / self.stride).astype(np.int64) + 1
        never = slack >= service.cap
        if overflowing:
            first = np.arange(len(wait)) % turns == 0
            need[first], never[first] = cap, slack[first] >= service.cap
        certain = (need <= 0) & ~never
        late = float(by_turn[certain].sum())
        open_ = np.flatnonzero(~never & ~certain)
        open_ = open_[by_turn[open_].sum(axis=1) > _LOST_MASS / 100]
        if open_.size:
            came = np.cumsum(self._arrivals(wait[open_], cap, met=0.5), axis=1)
            enough = need[open_, None] - np.arange(cap)
            too_few = np.take_along_axis(came, np.clip(enough - 1, 0, cap - 1), axis=1)
            late += float((by_turn[open_] * np.where(enough <= 0, 1.0, 1 - too_few)).sum())
        return late

    def _arrivals(self, times_ms: Vector, states: int, met: float | Vector) -> Vector:
        """Counts of other rows in each time, as a row that arrives sees them; shape (len(times_ms), states)."""
        return arrivals_during(self.rate * times_ms, states, self.stride, self.burstiness, met)

    def _reach(self, time_ms: float) -> int:
        """States that the arrivals during a time stay within, but for about 1e-8."""
        return _reach(self.rate * time_ms, self.burstiness, self.stride)

    def percentile_ms(self, percentile: float) -> float:
        """Latency that ``percentile`` % of the rows do not exceed, ms, to 1e-4 relative."""
        allowed = 1 - percentile / 100
        low, high = 0.0, 2 * self.mean_ms
        while self.late(high) > allowed:
            low, high = high, 2 * high
        while high - low > 1e-4 * high:
            middle = (low + high) / 2
            if self.late(middle) > allowed:
                low = middle
            else:
                high = middle
        return high


def _batches_after(counts: Vector, cap: int | None) -> Vector:
    batches: Vector = np.clip(counts, 1.0, inf if cap is None else float(cap))
    return batches


def _reach(mean: float, burstiness: float, stride: int) -> int:
    return ceil((mean + 6 * sqrt(mean * burstiness) + 15 * burstiness) / stride) + 1


def _stride(service: ServiceModel, rate: float, burstiness: float) -> int:
    """Rows per step of the support: fine enough for the arrival law, and a divisor of the cap."""
    cap, growth, least = service.cap, rate * service.alpha_ms, rate * service.tau0_ms
    if burstiness == 1:
        stride = max(1, int(sqrt(least) / 5))
    else:
        typical = min(inf if cap is None else cap, least / (1 - growth) if growth < 1 else inf)
        stride = max(1, int(min(burstiness / 2, typical / 8)))
    while cap is not None and cap % stride:
        stride -= 1
    return stride


def _support(service: ServiceModel, rate: float, burstiness: float, service_cv2: float) -> int:
    """First guess of the largest count that matters. ``solve`` checks it and enlarges it."""
    growth, cap = rate * service.alpha_ms, service.cap
    if growth < 1:
        mean = max(1.0, rate * service.tau0_ms / (1 - growth))
        variance = (mean * burstiness + service_cv2 * mean**2) / (1 - growth**2)
        uncapped = ceil(mean + 8 * sqrt(variance) + 25 * burstiness)
        if cap is None or uncapped <= cap:
            return uncapped
    assert cap is not None
    arrivals = rate * service.batch_ms(cap)
    # What exceeds the cap decays by exp(-theta) per row; theta = 2*drift/variance (Kingman).
    variance = cap * burstiness + service_cv2 * arrivals**2
    decayed = log(1 / _LOST_MASS) * variance / (2 * (cap - arrivals))
    return ceil(cap + 25 * burstiness + max(6 * sqrt(variance), decayed))


def _stationary(
    service: ServiceModel,
    rate: float,
    burstiness: float,
    service_cv2: float,
    size: int,
    stride: int,
) -> Vector:
    """Law of the rows left waiting after a batch, on 0, stride, ..., the last state holding all beyond."""
    counts = np.arange(size, dtype=np.float64) * stride
    full = size if service.cap is None else min(size, service.cap // stride + 1)
    times = service.alpha_ms * _batches_after(counts[:full], service.cap) + service.tau0_ms
    step = np.zeros((size, size))
    if service_cv2:
        step[:full] = arrivals_in_gamma_time(rate * times, size, service_cv2)
    else:
        # The row that ends an idle spell brings the rest of its burst.
        met = np.zeros(full)
        met[0] = _BURST_LEFT
        step[:full] = arrivals_during(rate * times, size, stride, burstiness, met)
    for left in range(1, size - full + 1):
        step[full - 1 + left, left:] = step[full - 1, : size - left]
    step[:, -1] += 1 - step.sum(axis=1)
    if service_cv2:
        return _balance(step, size, size)
    # Full states step up and down like the largest one, so the first `full` rows tell the bandwidth.
    means = rate * times
    wide = 6 * np.sqrt(means * burstiness) + 15 * burstiness
    down = min(float((counts[:full] - means + wide).max()), counts[full - 1]) / stride
    up = float((means + wide - counts[:full]).max()) / stride
    return _balance(step, ceil(down) + 1, ceil(up) + 1)


def _balance(step: Vector, down: int, up: int) -> Vector:
    """Stationary law of the transition matrix ``step``, which is overwritten.

    No step leads more than ``down`` states down; one of more than ``up`` is too unlikely to matter. States are folded away from the top, some at a time: what leaves them re-enters below. Blocks are kept
    so small that a BLAS works on one thread: in a container with a CPU quota, or beside busy neighbours,
    threaded LU was measured 100 times slower than its arithmetic.
    """
    size = len(step)
    block = min(max(1, _SINGLE_THREAD_FLOPS // (min(down, size) * min(up, size))), 16)
    folded: list[tuple[int, int, Vector]] = []
    end = size
    while end > 1:
        start = max(1, end - block)
        above = np.eye(end - start) - step[start:end, start:end]
        near, low = slice(max(0, start - up), start), slice(max(0, start - down), start)
        visits = step[near, start:end] @ np.linalg.inv(above)
        step[near, low] += visits @ step[start:end, low]
        folded.append((start, end, visits))
        end = start
    law = np.zeros(size)
    law[0] = 1.0
    for start, end, visits in reversed(folded):
        law[start:end] = law[start - len(visits) : start] @ visits
    law /= law.sum()
    return law
