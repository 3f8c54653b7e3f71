"""Combination rules: the members' answers for one output become one answer, a whole batch at a time.

Problem: this runs once per batch on the dispatcher's thread, mostly on small arrays (three members of [8,10]),
where stacking and generic reductions cost more than the arithmetic.

Approach: plain in-place adds over the members' own arrays in a fixed order (so that equal answers give
equal bits), one accumulator, no stack unless the rule needs order statistics. Inputs are never written
and the result never shares memory with them, because members' arrays live in recycled arenas.

Arithmetic: FP16 and FP32 accumulate in FP32, FP64 and integers in FP64; floating results have the inputs'
datatype, integers give FP64 where the result may lie between them. NaN and infinities follow IEEE 754
and stay in their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_core.api.modelservice import Combine
from tessera_core.ensemble.metadata import VOTES, CombineError

Array = npt.NDArray[Any]

_TIE = 1e-9
"""Votes closer than this share of all weight are a tie: weights such as 0.1 + 0.2 are not exact."""


def combine(
    rule: Combine,
    outputs: Sequence[Array],
    weights: Sequence[float] | None = None,
    *,
    members: Sequence[str] = (),
) -> Array:
    """One output of the ensemble from the same output of each member that answered.

    Args:
        rule: how; ``Combine.NONE`` is not a combination and is refused.
        outputs: one [rows, …] array per member, equal in shape and dtype (Concat: but for the last axis).
        weights: one per output, finite, ≥ 0, not all 0; for the weighted rules and only for them. They are
            divided by their sum, so that a partial answer is an average over the members that answered.
        members: names for error messages; positions are used when absent.

    Returns:
        A new array with the rows of the inputs:

        - Mean, WeightedMean, Max, Median: elementwise. Median of an even count averages the middle two.
        - SoftVote: mean of the members' softmax over the last axis (logits in, probabilities out;
          members that already give probabilities want Mean).
        - MajorityVote, WeightedVote: INT64 labels [rows, …] without the class axis: the most voted argmax
          over the last axis; ties go to the highest total (weighted) score, then to the smallest label.
          Integers [rows] or [rows,1] are labels already: [rows] comes out, ties go to the smallest.
        - Concat: along the last axis in the order of ``outputs``; the caller ensures that all answered.

    Raises:
        CombineError: outputs that do not fit together or do not fit the rule; wrong weights.

    """
    _check(rule, outputs, weights, members)
    with np.errstate(all="ignore"):
        return _RULES[rule](outputs, weights if weights is not None else ())


def _mean(outputs: Sequence[Array], _: Sequence[float]) -> Array:
    total = _sum(outputs, _accumulator(outputs[0]))
    total /= len(outputs)
    return _as_input(total, outputs[0])


def _weighted_mean(outputs: Sequence[Array], weights: Sequence[float]) -> Array:
    dtype = _accumulator(outputs[0])
    whole = sum(weights)
    total = np.multiply(outputs[0], weights[0] / whole, dtype=dtype)
    for output, weight in zip(outputs[1:], weights[1:], strict=True):
        total += np.multiply(output, weight / whole, dtype=dtype)
    return _as_input(total, outputs[0])


def _soft_vote(outputs: Sequence[Array], _: Sequence[float]) -> Array:
    dtype = _accumulator(outputs[0])
    total: Array | None = None
    for output in outputs:
        # Shifting by the maximum keeps exp within range and changes nothing in exact arithmetic.
        powers = np.subtract(output, output.max(axis=-1, keepdims=True), dtype=dtype)
        np.exp(powers, out=powers)
        powers /= powers.sum(axis=-1, keepdims=True)
        total = powers if total is None else np.add(total, powers, out=total)
    assert total is not None, "checked on entry"
    total /= len(outputs)
    return _as_input(total, outputs[0])


def _max(outputs: Sequence[Array], _: Sequence[float]) -> Array:
    if len(outputs) == 1:
        return outputs[0].copy()
    largest: Array = np.maximum(outputs[0], outputs[1])
    for output in outputs[2:]:
        np.maximum(largest, output, out=largest)
    return largest


def _median(outputs: Sequence[Array], _: Sequence[float]) -> Array:
    if len(outputs) <= 2:
        return _mean(outputs, ())
    if len(outputs) == 3:
        # The common ensemble, ten times faster than np.median: the larger of the pair's minimum and
        # whichever is smaller, the pair's maximum or the third. Both propagate NaN.
        first, second, third = outputs
        middle: Array = np.minimum(np.maximum(first, second), third)
        np.maximum(np.minimum(first, second), middle, out=middle)
    else:
        middle = np.median(np.stack(outputs).astype(_accumulator(outputs[0]), copy=False), axis=0)
    return _as_input(middle.astype(_accumulator(outputs[0]), copy=False), outputs[0])


def _concat(outputs: Sequence[Array], _: Sequence[float]) -> Array:
    return np.concatenate(outputs, axis=-1)


def _vote(outputs: Sequence[Array], weights: Sequence[float]) -> Array:
    # Weights stay as they were given: dividing by their sum would round integers that tie exactly.
    heads = np.asarray(weights, np.float64) if len(weights) else np.ones(len(outputs))
    first = outputs[0]
    if _are_labels(first):
        labels = np.stack([output.reshape(-1) for output in outputs]).astype(np.int64, copy=False)
        return _elected(labels, _leading(labels, heads))
    labels = np.stack([output.argmax(axis=-1) for output in outputs]).reshape(len(outputs), -1)
    leading = _leading(labels, heads)
    if _is_tie(labels, leading):
        leading &= _best_scored(outputs, labels, leading, heads)
    return _elected(labels, leading).reshape(first.shape[:-1])


def _leading(labels: Array, weights: Array) -> Array:
    """Which of ``labels`` [members, positions] have the most weight behind them at their position."""
    support = weights @ (labels == labels[:, None])
    return np.asarray(support >= support.max(axis=0) - _TIE * weights.sum())


def _elected(labels: Array, leading: Array) -> Array:
    """The smallest leading label of each position, INT64 [positions]."""
    return np.asarray(np.where(leading, labels, np.iinfo(np.int64).max).min(axis=0))


def _is_tie(labels: Array, leading: Array) -> bool:
    # Labels are argmaxes here, so 0 is the least of them.
    return bool((np.where(leading, labels, 0).max(axis=0) != _elected(labels, leading)).any())


def _best_scored(outputs: Sequence[Array], labels: Array, leading: Array, weights: Array) -> Array:
    """Which leading labels have the highest total score; only these few classes' scores are read."""
    positions = np.arange(labels.shape[1])
    totals = np.zeros(labels.shape)
    for output, weight in zip(outputs, weights, strict=True):
        rows = output.reshape(-1, output.shape[-1])
        totals += weight * rows[positions, labels].astype(np.float64, copy=False)
    # NaN would equal nothing: it counts as the lowest score, so that one of the leaders still wins.
    totals[~leading | np.isnan(totals)] = -np.inf
    return np.asarray(totals == totals.max(axis=0))


_RULES: dict[Combine, Callable[[Sequence[Array], Sequence[float]], Array]] = {
    Combine.MEAN: _mean,
    Combine.WEIGHTED_MEAN: _weighted_mean,
    Combine.SOFT_VOTE: _soft_vote,
    Combine.MAJORITY_VOTE: _vote,
    Combine.WEIGHTED_VOTE: _vote,
    Combine.MAX: _max,
    Combine.MEDIAN: _median,
    Combine.CONCAT: _concat,
}


def _sum(outputs: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    if len(outputs) == 1:
        return outputs[0].astype(dtype)
    total: Array = np.add(outputs[0], outputs[1], dtype=dtype)
    for output in outputs[2:]:
        np.add(total, output, out=total)
    return total


_FP32 = np.dtype(np.float32)
_FP64 = np.dtype(np.float64)


def _accumulator(output: Array) -> np.dtype[Any]:
    return _FP32 if output.dtype.kind == "f" and output.dtype.itemsize <= 4 else _FP64


def _as_input(total: Array, output: Array) -> Array:
    return total.astype(output.dtype, copy=False) if output.dtype.kind == "f" else total


def _are_labels(output: Array) -> bool:
    return output.dtype.kind in "iu" and (output.ndim == 1 or output.shape[1:] == (1,))


def _check(
    rule: Combine,
    outputs: Sequence[Array],
    weights: Sequence[float] | None,
    members: Sequence[str],
) -> None:
    if not outputs:
        raise CombineError(rule, "ensemble", "no outputs", "at least one")
    if rule.is_weighted != (weights is not None):
        found, expected = ("weights", "none") if weights is not None else ("no weights", "weights")
        raise CombineError(rule, "weights", found, expected)
    # NaN fails every comparison, so it is refused together with the infinities.
    if weights is not None and not (
        len(weights) == len(outputs)
        and all(0 <= weight < np.inf for weight in weights)
        and sum(weights) > 0
    ):
        expected = f"{len(outputs)} finite numbers ≥ 0, not all 0"
        raise CombineError(rule, "weights", str(list(weights)), expected)
    first = outputs[0]
    if refusal := _refusal(rule, first):
        raise CombineError(rule, _name(members, 0), _describe(first), refusal)
    skip = first.ndim - 1 if rule is Combine.CONCAT else first.ndim
    for index, output in enumerate(outputs):
        if (
            output.dtype != first.dtype
            or output.ndim != first.ndim
            or output.shape[:skip] != first.shape[:skip]
        ):
            expected = _describe(first) + (" up to its last axis" if skip < first.ndim else "")
            raise CombineError(rule, _name(members, index), _describe(output), expected)


def _refusal(rule: Combine, output: Array) -> str:
    """What ``rule`` asks of each output alone and does not find; empty when it is content."""
    if rule is Combine.NONE:
        return "no call: outputs are kept apart"
    if output.ndim == 0:
        return "a leading rows axis"
    if rule is Combine.CONCAT:
        return "" if output.ndim > 1 else "an axis after rows to join along"
    if output.dtype.kind not in "fiub":
        return "numbers"
    if rule is Combine.SOFT_VOTE and (output.ndim < 2 or output.shape[-1] == 0):
        return "logits [rows,…,classes]"
    if rule in VOTES and not _are_labels(output) and (output.ndim < 2 or output.shape[-1] < 2):
        return "scores [rows,…,classes ≥ 2] or integer labels [rows]"
    return ""


def _name(members: Sequence[str], index: int) -> str:
    return members[index] if index < len(members) else f"member {index}"


def _describe(output: Array) -> str:
    return f"{output.dtype}{list(output.shape)}"
