"""Several servers of different speed on one queue: what rate they carry, in closed form.

Problem: the slices on which a member runs are fed from one queue, and they differ: a 3g takes twice the rows
of a 1g in the same time. Simulating every combination that a planner may think of is out of the question,
and no exact law is known.

Approach: let servers i take batches of at most b_i rows in h_i = h_i(b_i), so that together they finish
M = sum b_i/h_i rows per ms. The latency that a share q of the rows do not exceed is at most about

    H  +  kappa * h  +  ln(1/(1-q)) / (2 * M) * (c * rho / (1 - rho) + (c - 1) / 3),      rho = rate / M

H, the longest full batch, is the service itself. The last term is the backlog. Under heavy traffic the rows in
line fall off exponentially, with the variance c of the arrivals (1: Poisson; deterministic batches add none)
over twice the spare rate M - rate (Kingman 1962). It is counted in rows, whatever the batch size: that is what
makes one queue better than one per slice. A burst waits for itself even where there is no load: (c - 1) / 3.

The middle term is the wait for a server that ends its batch, h = n / sum(1/h_i) being their harmonic mean.
Servers whose batch times follow the rows end their batches evenly spread, one every h/n. Where a batch takes
its time whatever its size, they drift together until a row waits for a whole one. In between, with f the
constant share of a batch (tau0/h; 1 for batches of one row),

    kappa = f + (1 - f) / n.

The form of kappa and the third were read off simulations of random sets: 2 to 40 servers, equal or not, caps 1
to 256, f 0 to 0.95, percentiles 90 to 99.97, budgets 1.5 to 5 H. Simulated at the rate that ``shared_rate``
gives, the percentile over the budget was

    arrivals                 sets    median (below full load)    above 1    1.02     1.05     worst
    Poisson                  4000    0.71 (0.83)                 0.4 %      0.2 %    0        1.03
    gamma, c 1.5 to 16       3000    0.77 (0.82)                 0.7 %      0.2 %    0.03 %   1.07

One server alone is solved exactly elsewhere (``batch_queue``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log, sqrt

from tessera_core.perf.capacity import FULLEST_LOAD as FULLEST_LOAD
from tessera_core.perf.service import MS_PER_S

_BURST = 1 / 3
"""Rows of a burst that wait for each other at no load, in c - 1."""


@dataclass(frozen=True, slots=True)
class Server:
    """Equal servers on the queue: batches of at most ``cap`` rows take ``batch_ms`` when full."""

    cap: int
    batch_ms: float
    tau0_ms: float
    """The part of ``batch_ms`` that does not depend on the rows."""
    spread_ms: float = 0.0
    """Tail of the batch time itself, p99 - p50."""
    instances: int = 1

    @property
    def rows_per_ms(self) -> float:
        """Rows finished when every batch is full."""
        return self.instances * self.cap / self.batch_ms

    @property
    def constant_share(self) -> float:
        """Share of ``batch_ms`` that is there whatever the rows, 0..1."""
        return 1.0 if self.cap == 1 else self.tau0_ms / self.batch_ms


def kappa(constant_share: float, servers: int) -> float:
    """Wait for one of ``servers`` to become free, in batch times, where the queue is never empty."""
    return constant_share + (1 - constant_share) / servers


def _fixed_ms(servers: Sequence[Server]) -> float:
    """What does not depend on the rate: the longest batch, its tail, and the wait for a free server."""
    count = sum(each.instances for each in servers)
    per_ms = sum(each.instances / each.batch_ms for each in servers)
    share = sum(each.instances * each.constant_share for each in servers) / count
    longest = max(each.batch_ms + each.spread_ms for each in servers)
    return longest + kappa(share, count) * count / per_ms


def _backlog(percentile: float) -> float:
    """Rows in line at ``percentile`` under Poisson arrivals, in rho / (1 - rho)."""
    return log(100 / (100 - percentile)) / 2


def _rate(most: float, slack_ms: float, percentile: float, burstiness: float) -> float:
    """Rows per SECOND whose backlog ``most`` rows per ms clear within ``slack_ms``."""
    variance = max(1.0, burstiness)
    rows = slack_ms * most / _backlog(percentile) - _BURST * (variance - 1)
    if slack_ms <= 0 or rows <= 0:
        return 0.0
    odds = rows / variance  # rho / (1 - rho)
    return min(odds / (1 + odds), FULLEST_LOAD) * most * MS_PER_S


def shared_rate(
    servers: Sequence[Server], budget_ms: float, percentile: float, burstiness: float = 1.0
) -> float:
    """Rows per SECOND at which ``percentile`` % finish within ``budget_ms``; 0 when full batches do not fit.

    Two servers at least; never above ``FULLEST_LOAD`` of what they finish.
    """
    most = sum(each.rows_per_ms for each in servers)
    return _rate(most, budget_ms - _fixed_ms(servers), percentile, burstiness)


def equal_rate(
    server: Server, budget_ms: float, percentile: float, burstiness: float = 1.0
) -> float:
    """:func:`shared_rate` of the instances of one ``server`` alone, of which there are two at least."""
    turns = 1 + kappa(server.constant_share, server.instances)
    slack = budget_ms - server.spread_ms - turns * server.batch_ms
    return _rate(server.rows_per_ms, slack, percentile, burstiness)


def shared_latency(
    servers: Sequence[Server], rate_per_s: float, percentile: float, burstiness: float = 1.0
) -> float:
    """Latency in ms that ``percentile`` % of the rows do not exceed; ``inf`` beyond ``FULLEST_LOAD``."""
    most = sum(each.rows_per_ms for each in servers)
    load = rate_per_s / MS_PER_S / most
    if load > FULLEST_LOAD * (1 + 1e-9):
        return inf
    variance = max(1.0, burstiness)
    rows = variance * load / (1 - load) + _BURST * (variance - 1)
    return _fixed_ms(servers) + _backlog(percentile) * rows / most


def finish_rate_needed(
    rate_per_s: float, slack_ms: float, percentile: float, burstiness: float = 1.0
) -> float:
    """Rows per SECOND that servers must finish so that ``rate_per_s`` waits ``slack_ms`` > 0 for its backlog.

    The inverse of :func:`shared_rate` where the fixed part of the latency is given: the M that solves
    backlog(M) = slack, a quadratic equation.
    """
    rate = rate_per_s / MS_PER_S
    variance = max(1.0, burstiness)
    per_row = slack_ms / _backlog(percentile)
    burst = _BURST * (variance - 1)
    half = (per_row * rate + burst) / 2
    most = (half + sqrt(half * half + per_row * rate * (variance - burst))) / per_row
    return max(most, rate / FULLEST_LOAD) * MS_PER_S
