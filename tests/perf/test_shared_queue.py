"""The closed form of a shared queue: its inverses, what it depends on which way, and against simulation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tessera_core.perf.shared_queue import (
    FULLEST_LOAD,
    Server,
    equal_rate,
    finish_rate_needed,
    kappa,
    shared_latency,
    shared_rate,
)

percentiles = st.floats(90, 99.99)
bursts = st.sampled_from([1.0, 1.5, 4.0, 16.0])


@st.composite
def _servers(draw: st.DrawFn) -> Server:
    batch_ms = draw(st.floats(1, 100))
    share = draw(st.floats(0, 0.95))
    return Server(
        draw(st.integers(1, 256)),
        batch_ms,
        share * batch_ms,
        draw(st.sampled_from([0.0, 0.5])),
        draw(st.integers(1, 4)),
    )


pools = st.lists(_servers(), min_size=2, max_size=5)


@given(servers=pools, budget=st.floats(1, 400), percentile=percentiles, burst=bursts)
def test_latency_at_the_rate_of_a_budget_is_the_budget(
    servers: list[Server], budget: float, percentile: float, burst: float
) -> None:
    rate = shared_rate(servers, budget, percentile, burst)
    assume(rate > 0)
    latency = shared_latency(servers, rate, percentile, burst)
    most = 1000 * sum(each.rows_per_ms for each in servers)
    assert rate <= FULLEST_LOAD * most * (1 + 1e-12)
    if rate < 0.999 * FULLEST_LOAD * most:
        assert latency == pytest.approx(budget)
    else:
        assert latency <= budget * (1 + 1e-9)


@given(
    servers=pools,
    budget=st.floats(1, 400),
    more=st.floats(1, 2),
    percentile=percentiles,
    burst=bursts,
)
def test_a_longer_budget_a_lower_percentile_and_calmer_arrivals_carry_no_less(
    servers: list[Server], budget: float, more: float, percentile: float, burst: float
) -> None:
    rate = shared_rate(servers, budget, percentile, burst)
    assert shared_rate(servers, budget * more, percentile, burst) >= rate
    assert shared_rate(servers, budget, percentile / more, burst) >= rate
    assert shared_rate(servers, budget, percentile, burst / more) >= rate


@given(server=_servers(), budget=st.floats(1, 400), percentile=percentiles, burst=bursts)
def test_one_more_equal_server_adds_at_least_its_share(
    server: Server, budget: float, percentile: float, burst: float
) -> None:
    rates = [
        shared_rate([server] * count, budget, percentile, burst) / count for count in (2, 3, 8)
    ]
    for fewer, more in pairwise(rates):
        assert more >= fewer * (1 - 1e-12)


@given(
    server=_servers(),
    instances=st.integers(2, 40),
    budget=st.floats(1, 400),
    percentile=percentiles,
    burst=bursts,
)
def test_instances_of_one_part_are_as_many_servers(
    server: Server, instances: int, budget: float, percentile: float, burst: float
) -> None:
    one = Server(server.cap, server.batch_ms, server.tau0_ms, server.spread_ms)
    part = Server(server.cap, server.batch_ms, server.tau0_ms, server.spread_ms, instances)
    alone = equal_rate(part, budget, percentile, burst)
    for same in ([part], [one] * instances):
        assert shared_rate(same, budget, percentile, burst) == pytest.approx(alone, rel=1e-6)


@given(
    servers=pools,
    slack=st.floats(0.01, 300),
    percentile=percentiles,
    burst=bursts,
)
def test_the_finish_rate_needed_is_what_servers_of_that_rate_have(
    servers: list[Server], slack: float, percentile: float, burst: float
) -> None:
    fixed = shared_latency(servers, 0.0, percentile)
    rate = shared_rate(servers, fixed + slack, percentile, burst)
    assume(rate > 1e-6)
    most = 1000 * sum(each.rows_per_ms for each in servers)
    assert finish_rate_needed(rate, slack, percentile, burst) == pytest.approx(most, rel=1e-6)


def test_nothing_is_carried_where_batches_or_bursts_alone_take_the_budget() -> None:
    pair = [Server(8, 10.0, 4.0, instances=2)]
    turn = 10.0 * (1 + kappa(0.4, 2))
    assert shared_rate(pair, turn, 99.0) == equal_rate(pair[0], turn, 99.0) == 0.0
    assert shared_rate(pair, turn + 1, 99.0) > 0.0
    assert shared_rate(pair, turn + 1, 99.0, burstiness=50.0) == 0.0


def test_a_queue_beyond_its_fullest_load_has_no_latency() -> None:
    pair = [Server(8, 10.0, 4.0), Server(16, 10.0, 4.0)]
    most = 1000 * FULLEST_LOAD * (8 + 16) / 10.0
    assert shared_latency(pair, most, 99.0) < inf
    assert shared_latency(pair, 1.001 * most, 99.0) == inf


def test_batches_of_one_row_are_waited_for_whole() -> None:
    assert Server(1, 10.0, 0.0).constant_share == 1.0
    assert Server(2, 10.0, 4.0).constant_share == 0.4
    assert kappa(1.0, 7) == 1.0
    assert kappa(0.0, 4) == 0.25


def _simulated(
    servers: Sequence[Server],
    rate_per_s: float,
    percentile: float,
    burstiness: float,
    rows: int,
    rng: np.random.Generator,
) -> float:
    """Latency percentile, ms, of one first-in-first-out queue of ``rows`` gamma arrivals.

    A free server takes what waits, at most its cap; of several the one that finishes first.
    """
    gap = 1000 / rate_per_s
    arrivals = np.cumsum(rng.gamma(1 / burstiness, burstiness * gap, rows))
    times = arrivals.tolist()
    each = [
        (one.cap, (one.batch_ms - one.tau0_ms) / one.cap, one.tau0_ms)
        for one in servers
        for _ in range(one.instances)
    ]
    free_at = [0.0] * len(each)
    most = max(one.cap for one in servers)
    ends, sizes = [], []
    head = 0
    while head < rows:
        clock = max(times[head], min(free_at))
        waiting = bisect_right(times, clock, head, min(head + most, rows)) - head
        took, size, index = min(
            (alpha * min(waiting, cap) + tau0, -min(waiting, cap), index)
            for index, (cap, alpha, tau0) in enumerate(each)
            if free_at[index] <= clock
        )
        free_at[index] = clock + took
        ends.append(clock + took)
        sizes.append(-size)
        head -= size
    latency = (np.repeat(ends, sizes) - arrivals)[rows // 20 :]
    return float(np.percentile(latency, percentile, method="inverted_cdf"))


def _random_pool(rng: np.random.Generator) -> tuple[list[Server], float]:
    """2 to 16 servers of one to three kinds, and a budget of 1.6 to 3 of their longest batches."""
    longest = exp(rng.uniform(0, log(100)))
    share = rng.uniform(0, 0.9)
    kinds = int(rng.integers(1, 4))
    servers = [
        Server(
            cap=int(exp(rng.uniform(0, log(257)))),
            batch_ms=(batch_ms := longest * rng.uniform(0.6, 1)),
            tau0_ms=share * batch_ms,
            instances=int(rng.integers(1 if kinds > 1 else 2, 6)),
        )
        for _ in range(kinds)
    ]
    return servers, longest * rng.uniform(1.6, 3)


@pytest.mark.parametrize(
    ("burstiness", "percentile", "seed"), [(1.0, 99.0, 1), (1.0, 95.0, 2), (4.0, 99.0, 3)]
)
def test_random_pools_keep_their_budget_at_their_rate_and_use_most_of_it(
    burstiness: float, percentile: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    used: list[float] = []
    while len(used) < 40:
        servers, budget = _random_pool(rng)
        rate = shared_rate(servers, budget, percentile, burstiness)
        most = 1000 * sum(each.rows_per_ms for each in servers)
        # Fuller queues take millions of rows to measure.
        if not 0.05 * most < rate < 0.8 * most:
            continue
        found = _simulated(servers, rate, percentile, burstiness, 40_000, rng)
        used.append(found / budget)
    assert max(used) <= 1.03
    assert np.median(used) >= 0.65


def test_latency_at_low_loads_is_not_far_below_simulation() -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        servers, _budget = _random_pool(rng)
        rate = rng.uniform(0.05, 0.5) * 1000 * sum(each.rows_per_ms for each in servers)
        found = _simulated(servers, rate, 99.0, 1.0, 20_000, rng)
        assert found <= 1.03 * shared_latency(servers, rate, 99.0)
