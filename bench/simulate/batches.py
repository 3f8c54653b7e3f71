"""What single batches took, read off the answers: the server's statistics tell means only.

One server takes batches in the order of arrival, and the answers of a batch come together. So answers that come apart by
less than a part of the shortest batch are those of one; it began when the batch before it had ended or, where none ran,
when its first request had come.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

APART = 0.5
"""Of the time of the shortest batch: answers that come sooner after each other are of one batch."""
SELDOM = 20
"""Fewer batches of one size say little about it."""


def batches_seen(
    sent_ms: Vector, done_ms: Vector, apart_ms: float, wire_ms: float
) -> tuple[NDArray[np.int64], Vector]:
    """Rows of each batch and what it took, ms, in order of time; both of shape (batches,).

    ``sent_ms``, ``done_ms``: of every request, any order, each of one row; NaN where it was not answered.
    """
    answered = ~np.isnan(done_ms)
    order = np.argsort(done_ms[answered], kind="stable")
    sent, done = sent_ms[answered][order], done_ms[answered][order]
    first = np.flatnonzero(np.diff(done, prepend=-np.inf) > apart_ms)
    if not first.size:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    sizes = np.diff(first, append=len(done))
    ends = done[first]
    earliest = np.minimum.reduceat(sent, first)
    began = np.maximum(np.concatenate(([-np.inf], ends[:-1])), earliest + wire_ms)
    return sizes, ends - began


def noise_of(
    sizes: NDArray[np.int64], took_ms: Vector, batch_ms: Sequence[float]
) -> tuple[tuple[float, ...], ...]:
    """What batches took over ``batch_ms`` of their size, for every size; seldom seen ones have those of all.

    Those of more rows than there are sizes were two, and those without a time none: they are left out. Raises ValueError
    where nothing is left.
    """
    known = (sizes <= len(batch_ms)) & (took_ms > 0)
    sizes, factors = sizes[known], took_ms[known] / np.asarray(batch_ms)[sizes[known] - 1]
    if not factors.size:
        raise ValueError("took_ms: no batch was seen")
    by_size = [factors[sizes == size] for size in range(1, len(batch_ms) + 1)]
    return tuple(tuple((mine if len(mine) >= SELDOM else factors).tolist()) for mine in by_size)
