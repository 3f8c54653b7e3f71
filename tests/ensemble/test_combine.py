"""Combination rules against slow, obvious references, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tessera_core.api.modelservice import Combine
from tessera_core.api.tensors import Datatype, Tensor
from tessera_core.ensemble.combine import combine
from tessera_core.ensemble.metadata import CombineError, result_metadata

Array = np.ndarray[Any, np.dtype[Any]]

DATATYPES = {
    np.dtype(np.bool_): Datatype.BOOL,
    np.dtype(np.int8): Datatype.INT8,
    np.dtype(np.int64): Datatype.INT64,
    np.dtype(np.uint8): Datatype.UINT8,
    np.dtype(np.float16): Datatype.FP16,
    np.dtype(np.float32): Datatype.FP32,
    np.dtype(np.float64): Datatype.FP64,
    np.dtype(np.object_): Datatype.BYTES,
}
TOLERANCE = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-12}
COMBINING = [rule for rule in Combine if rule is not Combine.NONE]


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def members(
    count: int, shape: tuple[int, ...], dtype: str = "float32", seed: int = 0
) -> list[Array]:
    generator = np.random.default_rng(seed)
    return [(generator.normal(size=shape) * 4).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("rule", "reference"),
    [
        (Combine.MEAN, lambda stack: stack.mean(axis=0)),
        (Combine.MAX, lambda stack: stack.max(axis=0)),
        (Combine.MEDIAN, lambda stack: np.median(stack, axis=0)),
        (Combine.SOFT_VOTE, lambda stack: softmax(stack).mean(axis=0)),
    ],
)
def test_elementwise_rules_equal_their_definition(
    rule: Combine, reference: Any, count: int, dtype: str
) -> None:
    outputs = members(count, (8, 10), dtype)
    result = combine(rule, outputs)
    assert result.dtype == dtype
    expected = reference(np.stack(outputs).astype(np.float64))
    np.testing.assert_allclose(result, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_weighted_mean_divides_by_the_weights_that_answered(dtype: str) -> None:
    outputs = members(2, (4, 3), dtype)
    expected = (0.5 * outputs[0].astype(float) + 0.2 * outputs[1].astype(float)) / 0.7
    result = combine(Combine.WEIGHTED_MEAN, outputs, [0.5, 0.2])
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_half_precision_accumulates_in_single_precision() -> None:
    large = np.full((1, 2), 60000, np.float16)
    assert combine(Combine.MEAN, [large, large, large]).tolist() == [[60000, 60000]]
    assert combine(Combine.MEDIAN, [large, large, large, large]).tolist() == [[60000, 60000]]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool"])
def test_integers_average_in_double_precision(dtype: str) -> None:
    one, zero = np.ones((2, 3), dtype), np.zeros((2, 3), dtype)
    for rule in (Combine.MEAN, Combine.MEDIAN):
        assert combine(rule, [one, zero]).dtype == np.float64
        assert (combine(rule, [one, zero]) == 0.5).all()
    highest = np.full((1, 1), np.iinfo(np.int8).max, np.int8)
    assert combine(Combine.MEAN, [highest, highest]).tolist() == [[127.0]]


def test_max_keeps_the_datatype() -> None:
    result = combine(Combine.MAX, [np.array([[1, 5]], np.int8), np.array([[3, 2]], np.int8)])
    assert result.dtype == np.int8
    assert result.tolist() == [[3, 5]]


def test_soft_vote_does_not_overflow_on_large_logits() -> None:
    logits = np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32)
    np.testing.assert_allclose(combine(Combine.SOFT_VOTE, [logits, logits]), [[1, 0], [0, 1]])


def test_soft_vote_gives_a_masked_class_nothing() -> None:
    logits = np.array([[0.0, -np.inf, 0.0]], np.float32)
    assert combine(Combine.SOFT_VOTE, [logits, logits]).tolist() == [[0.5, 0.0, 0.5]]


def test_concat_joins_the_last_axis_in_member_order() -> None:
    first, second = np.array([[1, 2], [3, 4]]), np.array([[5], [6]])
    assert combine(Combine.CONCAT, [first, second]).tolist() == [[1, 2, 5], [3, 4, 6]]
    assert combine(Combine.CONCAT, [second, first]).tolist() == [[5, 1, 2], [6, 3, 4]]
    words = np.array([[b"a"], [b"b"]], dtype=object)
    assert combine(Combine.CONCAT, [words, words]).tolist() == [[b"a", b"a"], [b"b", b"b"]]


def one_hot(labels: list[int], height: float = 1.0) -> Array:
    return np.eye(4, dtype=np.float32)[labels] * np.float32(height)


def test_majority_vote_takes_the_most_frequent_argmax_of_each_row() -> None:
    outputs = [one_hot([0, 1, 2]), one_hot([0, 2, 2]), one_hot([1, 2, 2])]
    result = combine(Combine.MAJORITY_VOTE, outputs)
    assert result.dtype == np.int64
    assert result.tolist() == [0, 2, 2]


def test_a_tied_vote_goes_to_the_highest_total_score() -> None:
    assert combine(Combine.MAJORITY_VOTE, [one_hot([1], 2.0), one_hot([3], 5.0)]).tolist() == [3]
    assert combine(Combine.MAJORITY_VOTE, [one_hot([3], 2.0), one_hot([1], 5.0)]).tolist() == [1]


def test_scores_that_tie_in_integers_tie_exactly() -> None:
    # One vote each; classes 0 and 1 total 6, but in thirds they sum to 2 - 2^-52 and 2.
    outputs = [np.array([[2.0, 0, 1]]), np.array([[3.0, 4, 0]]), np.array([[1.0, 2, 3]])]
    assert combine(Combine.MAJORITY_VOTE, outputs).tolist() == [0]


@pytest.mark.parametrize(
    "scores", [([0.0, 9, -np.inf], [0.0, -np.inf, 9]), ([0.0, np.nan, 0], [0.0, 0, np.nan])]
)
def test_leaders_without_a_finite_score_still_beat_the_others(
    scores: tuple[list[float], list[float]],
) -> None:
    # Classes 1 and 2 lead with a weight of 2 each; class 0 has 1 and the only finite total.
    outputs = [np.array([each]) for each in (*scores, [5.0, 1, 1])]
    assert combine(Combine.WEIGHTED_VOTE, outputs, [2, 2, 1]).tolist() == [1]


def test_a_class_without_votes_never_wins_by_score() -> None:
    # Class 0 has the highest total but is nobody's first choice.
    outputs = [np.array([[9.0, 10.0, 0.0]]), np.array([[9.0, 0.0, 10.0]])]
    assert combine(Combine.MAJORITY_VOTE, outputs).tolist() == [1]


def test_a_vote_tied_in_votes_and_scores_goes_to_the_smallest_label() -> None:
    assert combine(Combine.MAJORITY_VOTE, [one_hot([3]), one_hot([1])]).tolist() == [1]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_integers_without_a_class_axis_are_labels(shape: tuple[int, ...], dtype: str) -> None:
    labels = [np.array(each, dtype).reshape(shape) for each in ([5, 1, 7], [5, 2, 3], [4, 2, 5])]
    result = combine(Combine.MAJORITY_VOTE, labels)
    assert result.dtype == np.int64
    # The last row ties three ways: no scores, so the smallest label.
    assert result.tolist() == [5, 2, 3]


def test_negative_labels_are_labels_too() -> None:
    labels = [np.array([-1, 4]), np.array([-1, 4]), np.array([9, -2])]
    assert combine(Combine.MAJORITY_VOTE, labels).tolist() == [-1, 4]


def test_integer_scores_with_a_class_axis_are_counted_by_argmax() -> None:
    assert combine(Combine.MAJORITY_VOTE, [np.array([[1, 9, 3]], np.int8)]).tolist() == [1]


def test_weighted_vote_counts_weights_and_not_heads() -> None:
    outputs = [one_hot([0]), one_hot([1]), one_hot([1])]
    assert combine(Combine.WEIGHTED_VOTE, outputs, [5, 2, 2]).tolist() == [0]
    assert combine(Combine.WEIGHTED_VOTE, outputs, [3, 2, 2]).tolist() == [1]


def test_weights_that_are_equal_but_for_rounding_tie() -> None:
    labels = [np.array([7]), np.array([7]), np.array([2])]
    assert combine(Combine.WEIGHTED_VOTE, labels, [0.1, 0.2, 0.3]).tolist() == [2]


def test_a_vote_over_positions_gives_one_label_each() -> None:
    scores = np.zeros((2, 3, 4), np.float32)
    scores[..., 1] = 1
    assert combine(Combine.MAJORITY_VOTE, [scores, scores]).tolist() == [[1, 1, 1], [1, 1, 1]]


@given(
    hnp.arrays(np.float32, (4, 6, 5), elements=st.integers(0, 3).map(np.float32)),
    st.lists(st.integers(0, 4), min_size=4, max_size=4).filter(any),
)
def test_votes_equal_a_row_by_row_count(stack: Array, weights: list[int]) -> None:
    result = combine(Combine.WEIGHTED_VOTE, list(stack), weights)
    for row in range(stack.shape[1]):
        votes, scores = [0] * 5, [0.0] * 5
        for member, weight in zip(stack, weights, strict=True):
            votes[int(np.argmax(member[row]))] += weight
            scores = [
                total + weight * float(score)
                for total, score in zip(scores, member[row], strict=True)
            ]
        leaders = [label for label in range(5) if votes[label] == max(votes)]
        assert result[row] == max(leaders, key=lambda label: (scores[label], -label))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", COMBINING)
def test_a_poisoned_row_leaves_the_other_rows_alone(rule: Combine, poison: float) -> None:
    outputs = members(4, (3, 5))
    weights = [1.0, 2.0, 3.0, 4.0] if rule.is_weighted else None
    clean = combine(rule, outputs, weights)
    outputs[1][1, :] = poison
    poisoned = combine(rule, outputs, weights)
    np.testing.assert_array_equal(poisoned[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("rule", COMBINING)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_inputs_stay_as_they_are_and_the_result_is_a_new_array(rule: Combine, count: int) -> None:
    outputs = members(count, (4, 6))
    copies = [output.copy() for output in outputs]
    for output in outputs:
        output.flags.writeable = False
    result = combine(rule, outputs, [1.0] * count if rule.is_weighted else None)
    for output, copy in zip(outputs, copies, strict=True):
        np.testing.assert_array_equal(output, copy)
        assert not np.shares_memory(result, output)


@pytest.mark.parametrize("rule", COMBINING)
def test_rows_are_independent_of_the_batch_they_are_in(rule: Combine) -> None:
    outputs = members(3, (7, 6), seed=3)
    weights = [0.2, 0.3, 0.5] if rule.is_weighted else None
    whole = combine(rule, outputs, weights)
    for row in range(7):
        alone = combine(rule, [output[row : row + 1] for output in outputs], weights)
        np.testing.assert_array_equal(alone[0], whole[row])


@pytest.mark.parametrize("rule", COMBINING)
def test_a_batch_without_rows_gives_a_result_without_rows(rule: Combine) -> None:
    outputs = members(3, (0, 6))
    result = combine(rule, outputs, [1.0, 1.0, 1.0] if rule.is_weighted else None)
    assert result.shape[0] == 0


@pytest.mark.parametrize(
    "rule", [Combine.MEAN, Combine.MAX, Combine.SOFT_VOTE, Combine.MAJORITY_VOTE]
)
def test_a_member_of_another_shape_or_datatype_is_named(rule: Combine) -> None:
    with pytest.raises(
        CombineError, match=r"mlp: found float32\[4, 9\], expected float32\[4, 10\]"
    ):
        combine(rule, [np.ones((4, 10), "f4"), np.ones((4, 9), "f4")], members=["cnn", "mlp"])
    with pytest.raises(CombineError, match=r"member 2: found float64\[4, 10\]"):
        combine(rule, [np.ones((4, 10), "f4")] * 2 + [np.ones((4, 10), "f8")])
    with pytest.raises(CombineError) as caught:
        combine(rule, [np.ones((4, 10), "f4"), np.ones((3, 10), "f4")], members=["cnn", "mlp"])
    assert (caught.value.member, caught.value.found) == ("mlp", "float32[3, 10]")


def test_broadcastable_shapes_are_still_a_mismatch() -> None:
    with pytest.raises(CombineError):
        combine(Combine.MEAN, [np.ones((4, 10), "f4"), np.ones((4, 1), "f4")])
    with pytest.raises(CombineError):
        combine(Combine.MEAN, [np.ones((4, 10), "f4"), np.ones((4, 10, 1), "f4")])


@pytest.mark.parametrize(
    ("rule", "output", "expected"),
    [
        (Combine.NONE, np.ones((2, 3)), "no call"),
        (Combine.MEAN, np.array([[b"a"]], dtype=object), "numbers"),
        (Combine.MEAN, np.float32(1).reshape(()), "a leading rows axis"),
        (Combine.MAJORITY_VOTE, np.ones(3, "f4"), "scores"),
        (Combine.MAJORITY_VOTE, np.ones((3, 1), "f4"), "classes ≥ 2"),
        (Combine.SOFT_VOTE, np.ones(3, "f4"), "logits"),
        (Combine.SOFT_VOTE, np.ones((3, 0), "f4"), "logits"),
        (Combine.CONCAT, np.ones(3, "f4"), "an axis after rows"),
    ],
)
def test_an_output_that_does_not_fit_the_rule_is_refused(
    rule: Combine, output: Array, expected: str
) -> None:
    with pytest.raises(CombineError, match=expected):
        combine(rule, [output, output])


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], None]
)
@pytest.mark.parametrize("rule", [Combine.WEIGHTED_MEAN, Combine.WEIGHTED_VOTE])
def test_bad_weights_are_refused(rule: Combine, weights: list[float] | None) -> None:
    with pytest.raises(CombineError, match="weights"):
        combine(rule, [np.ones((2, 2)), np.ones((2, 2))], weights)


def test_weights_for_a_rule_without_weights_and_no_outputs_are_refused() -> None:
    with pytest.raises(CombineError, match="found weights, expected none"):
        combine(Combine.MEAN, [np.ones((2, 2))], [1.0])
    with pytest.raises(CombineError, match="no outputs"):
        combine(Combine.MEAN, [])


@st.composite
def any_outputs(draw: st.DrawFn) -> list[Array]:
    """One to four arrays of any datatype whose row shapes are mostly, not always, the same."""
    rows = draw(st.integers(1, 3))
    dimensions = st.lists(st.integers(1, 3), max_size=2)
    shape, other = draw(dimensions), draw(dimensions)
    dtype, stranger = (draw(st.sampled_from(list(DATATYPES))) for _ in range(2))
    odd = draw(st.sampled_from(["none", "none", "shape", "dtype"]))
    outputs = [np.ones((rows, *shape), dtype) for _ in range(draw(st.integers(1, 4)))]
    if odd == "shape":
        outputs[-1] = np.ones((rows, *other), dtype)
    elif odd == "dtype":
        outputs[-1] = outputs[-1].astype(stranger)
    return outputs


@given(st.sampled_from(list(Combine)), any_outputs())
def test_published_metadata_is_what_combine_returns_or_both_refuse(
    rule: Combine, outputs: list[Array]
) -> None:
    names = [f"m{index}" for index in range(len(outputs))]
    tensors = [Tensor("y", DATATYPES[output.dtype], output.shape[1:]) for output in outputs]
    weights = [1.0] * len(outputs) if rule.is_weighted else None
    refusals = []
    for call in (
        lambda: combine(rule, outputs, weights, members=names),
        lambda: result_metadata(rule, tensors, names),
    ):
        try:
            call()
        except CombineError as error:
            refusals.append(error.member)
    assert not refusals or refusals[1:] == refusals[:1], "only one of the two refused"
    if not refusals:
        result = combine(rule, outputs, weights)
        expected = Tensor("y", DATATYPES[result.dtype], result.shape[1:])
        assert result_metadata(rule, tensors, names) == expected


@given(data=st.data(), rule=st.sampled_from(COMBINING))
def test_rows_combined_together_are_bit_for_bit_those_combined_alone(
    data: st.DataObject, rule: Combine
):
    """Requests may be combined in one batch or one by one, and must not be told apart by it."""
    rows, classes, count = (data.draw(st.integers(low, 6)) for low in (1, 2, 2))
    outputs = members(count, (rows, classes), seed=data.draw(st.integers(0, 1000)))
    weights = [1.0 + index for index in range(count)] if rule.is_weighted else None
    together = combine(rule, outputs, weights)
    first = 0
    while first < rows:
        last = data.draw(st.integers(first + 1, rows))
        alone = combine(rule, [output[first:last] for output in outputs], weights)
        assert together[first:last].tobytes() == alone.tobytes()
        first = last
