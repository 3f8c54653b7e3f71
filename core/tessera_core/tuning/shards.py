"""The candidates of one model spread over tuning workers, and what they found merged.

A candidate is the unit: it is built, checked and measured as a whole, by whoever takes it, so that a worker may be stopped
between any two and another goes on. Merging is a join of a semilattice: it does not matter in which order, how often or in
which groups outcomes arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar


class Outcome(Protocol):
    """What is known of one candidate."""

    @property
    def variant(self) -> str: ...

    @property
    def problem(self) -> str:
        """Empty where it was built, checked and measured."""
        ...


T = TypeVar("T", bound=Outcome)


def share_out(candidates: Sequence[str], workers: int) -> tuple[tuple[str, ...], ...]:
    """Candidates of each worker, in turns, so that all have promising ones first. Raises ValueError without workers."""
    if workers < 1:
        raise ValueError(f"{workers} workers; allowed: 1 or more")
    return tuple(tuple(candidates[first::workers]) for first in range(workers))


def remaining(candidates: Iterable[str], known: Mapping[str, Outcome]) -> tuple[str, ...]:
    """What is still to be done, in order."""
    return tuple(each for each in candidates if each not in known)


def merge(*parts: Mapping[str, T]) -> dict[str, T]:
    """All outcomes by variant, sorted. Of several of one variant, one that was measured is kept before one that was not,
    and of equals the least by its text: whichever is as good as the other, but all must choose the same.
    """
    merged: dict[str, T] = {}
    for part in parts:
        for name, outcome in part.items():
            present = merged.get(name)
            if present is None or _rank(outcome) < _rank(present):
                merged[name] = outcome
    return dict(sorted(merged.items()))


def _rank(outcome: Outcome) -> tuple[bool, str]:
    return bool(outcome.problem), repr(outcome)
