import numpy as np
import pytest

from tessera_runtime.dispatch.tuner import NOT_FINITE, difference


def off(wanted, found, dtype="f4") -> float:
    return difference({"y": np.array(wanted, dtype)}, {"y": np.array(found, dtype)})


@pytest.mark.parametrize(
    ("wanted", "found", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.4, -4.0], 0.1),
        ([0.0, 0.0], [0.0, 0.25], 0.25),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([1.0, 1.0], [np.nan, 1.0], NOT_FINITE),
        ([1.0, 1.0], [np.inf, 1.0], NOT_FINITE),
        ([np.inf, 1.0], [-np.inf, 1.0], NOT_FINITE),
        ([np.nan, 1.0], [0.0, 1.0], NOT_FINITE),
    ],
)
def test_numbers_differ_relative_to_the_largest(wanted, found, error) -> None:
    assert off(wanted, found) == pytest.approx(error)


def test_of_integers_and_truth_values_the_part_that_differs_counts() -> None:
    assert off([1, 2, 3, 4], [1, 2, 3, 900], "i8") == 0.25
    assert off([True, False], [True, False], "?") == 0.0


def test_the_worst_output_counts() -> None:
    one = {"a": np.ones(2, "f4"), "b": np.array([1, 2])}
    other = {"a": np.ones(2, "f4"), "b": np.array([1, 3])}
    assert difference(one, other) == 0.5


def test_another_shape_is_no_answer() -> None:
    assert off([[1.0]], [1.0]) == NOT_FINITE
