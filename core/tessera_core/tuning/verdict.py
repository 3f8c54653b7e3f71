"""Whether a variant takes the place of the untuned model.

Promoted is what answers alike and is faster at the share that serves: p99 or throughput better by :data:`GAIN` there, in the
median over sizes of batches, the other not worse by as much. A gain with one size counts as none unless it was there in more
of its turns than chance would have it (:data:`MOST_CHANCE`). What was measured at other shares decides nothing, since it is not
what serves, but a loss there is said: the share may change.

Every figure of a variant stands beside one of the untuned model of the same minutes: both ran in turns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

GAIN = 0.03
"""Least improvement that is worth another way of running a model."""

MOST_CHANCE = 0.05
"""How likely two that are equally fast may win so many turns: the one-sided sign test (Gibbons and Chakraborti, *Nonparametric
Statistical Inference*, section 5.4). On a busy machine p99 of a variant that changes nothing is 10 % shorter now and then.
"""

SHARES = (0.5, 1.0, 2.0)
"""Of the serving share, that are measured where there are such."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one way to run a model, with full batches back to back."""

    p50_ms: float
    p99_ms: float
    throughput: float
    """Rows a second."""


@dataclass(frozen=True, slots=True)
class Paired:
    """A variant and the untuned model in turns, on one share, with one size of batch."""

    share: float
    """Over the serving share: 1 is that."""
    batch: int
    instances: int
    variant: Figures
    untuned: Figures
    turns: int
    """That either had."""
    p99_wins: int
    """Turns in which the variant's p99 was shorter."""
    throughput_wins: int

    @property
    def p99_ratio(self) -> float:
        """Below 1: the variant's is shorter."""
        return self.variant.p99_ms / self.untuned.p99_ms

    @property
    def throughput_ratio(self) -> float:
        """Above 1: the variant's is more."""
        return self.variant.throughput / self.untuned.throughput


class Reason(StrEnum):
    """CamelCase, as conditions have them."""

    FASTER = "Faster"
    NOT_FASTER = "NotFaster"
    DIFFERS = "AnswersDiffer"
    FAILED = "Failed"
    NOT_MEASURED = "NotMeasured"


@dataclass(frozen=True, slots=True)
class Verdict:
    variant: str
    promote: bool
    reason: Reason
    words: str
    """For the user."""
    p99_ratio: float = math.nan
    """At the serving share, median over the sizes of batches; NaN where it was not measured."""
    throughput_ratio: float = math.nan
    losses: tuple[str, ...] = ()
    """Where else it is slower than untuned, in words."""


def judge(
    variant: str, problem: str, error: float, tolerance: float, cells: Sequence[Paired]
) -> Verdict:
    """``error``: the worst difference from the untuned answers, relative to their scale. ``problem``: why it could not be
    built or run, empty if it could.
    """
    if problem:
        return Verdict(variant, False, Reason.FAILED, problem)
    if not error <= tolerance:  # NaN is refused as well
        words = f"answers differ by {error:.2g} of their scale; allowed: {tolerance:.2g}"
        return Verdict(variant, False, Reason.DIFFERS, words)
    ratios = {
        share: _ratios([cell for cell in cells if cell.share == share])
        for share in sorted({cell.share for cell in cells})
    }
    if 1.0 not in ratios:
        return Verdict(variant, False, Reason.NOT_MEASURED, "was not measured at the serving share")
    p99, throughput = ratios[1.0]
    losses = tuple(
        f"at {share:g} of the share: {_words(*ratio)}"
        for share, ratio in ratios.items()
        if share != 1.0 and _worse(*ratio)
    )
    words = _words(p99, throughput)
    if not _better(p99, throughput) or _worse(p99, throughput):
        return Verdict(variant, False, Reason.NOT_FASTER, words, p99, throughput, losses)
    if not _better(*_certain([cell for cell in cells if cell.share == 1.0])):
        words = f"{words}, which may be chance: not in enough turns with enough sizes of batches"
        return Verdict(variant, False, Reason.NOT_FASTER, words, p99, throughput, losses)
    if losses:
        words = f"{words}; slower {'; '.join(losses)}"
    return Verdict(variant, True, Reason.FASTER, words, p99, throughput, losses)


def best(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The promoted one with the shortest p99, then the most throughput, then the first by its text; None without any."""
    promoted = [verdict for verdict in verdicts if verdict.promote]
    return min(
        promoted,
        key=lambda each: (round(each.p99_ratio, 3), -each.throughput_ratio, each.variant),
        default=None,
    )


def chance(wins: int, turns: int) -> float:
    """How likely it is to win so many turns or more against somebody who is equally fast."""
    return sum(math.comb(turns, count) for count in range(wins, turns + 1)) / 2.0**turns


def _ratios(cells: Sequence[Paired]) -> tuple[float, float]:
    return (
        median(cell.p99_ratio for cell in cells),
        median(cell.throughput_ratio for cell in cells),
    )


def _certain(cells: Sequence[Paired]) -> tuple[float, float]:
    """The same ratios, where a gain that may be chance counts as none."""

    def counted(ratio: float, gains: bool, wins: int, turns: int) -> float:
        return 1.0 if gains and chance(wins, turns) > MOST_CHANCE else ratio

    return (
        median(
            counted(cell.p99_ratio, cell.p99_ratio < 1.0, cell.p99_wins, cell.turns)
            for cell in cells
        ),
        median(
            counted(
                cell.throughput_ratio,
                cell.throughput_ratio > 1.0,
                cell.throughput_wins,
                cell.turns,
            )
            for cell in cells
        ),
    )


def _better(p99: float, throughput: float) -> bool:
    return p99 <= 1 - GAIN or throughput >= 1 + GAIN


def _worse(p99: float, throughput: float) -> bool:
    return p99 >= 1 + GAIN or throughput <= 1 - GAIN


def _words(p99: float, throughput: float) -> str:
    return f"p99 {p99:.2f} and throughput {throughput:.2f} of untuned"
