"""How far apart batches of several instances start."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from tessera_core.batching.policy import Lengths
from tessera_core.batching.spacing import Spacing
from tessera_core.simulate.arrivals import poisson
from tessera_core.simulate.lengths import AtOnce, simulate_lengths


def test_the_first_batch_waits_for_nothing() -> None:
    assert Spacing().due(full=False) == -inf


def test_the_next_one_keeps_its_distance_unless_it_is_full() -> None:
    spacing = Spacing()
    spacing.started(10.0, 8.0, 4)
    assert spacing.due(full=False) == 12.0
    assert spacing.due(full=True) == -inf


def test_one_instance_alone_never_waits() -> None:
    spacing = Spacing()
    spacing.started(10.0, 8.0, 4)
    spacing.started(11.0, 8.0, 1)
    assert spacing.due(full=False) == -inf


@pytest.mark.parametrize("load", [0.3, 0.6, 0.9])
def test_instances_whose_batches_take_long_however_small_do_not_fall_into_step(load: float) -> None:
    cap, instances, batch_ms = 16, 7, 10.0
    rate_per_s = load * 1e3 * cap * instances / batch_ms
    times = poisson(rate_per_s, 8_000 / rate_per_s, np.random.default_rng(2))
    p99_ms = [
        simulate_lengths(
            AtOnce([1.0], cap, Lengths(1.0, cap, 0), lambda _: batch_ms, spaced),
            lambda *_: batch_ms,
            instances,
            times,
            np.zeros(len(times), dtype=np.int64),
        ).percentile_ms(99, 0.1)
        for spaced in (1, instances)
    ]
    # A whole batch time of waiting is there in step; apart, a seventh of it is, and what chance adds.
    assert p99_ms[1] < batch_ms * (1 + 2 / instances) < p99_ms[0] + batch_ms / instances
