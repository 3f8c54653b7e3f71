"""When an instance that runs a variant is not to serve on."""

from __future__ import annotations

import numpy as np
import pytest

from tessera_runtime.dispatch.probation import IN_A_ROW, MOST_OF_RECENT, RECENT, Probation

RIGHT = (np.ones((2, 3), np.float32),)
WRONG = (np.ones((2, 3), np.float32), np.array([[1.0, np.nan]], np.float32))


def test_one_failure_after_the_other_is_too_much() -> None:
    probation = Probation("torch/bf16")
    for _ in range(IN_A_ROW - 1):
        probation.failed("no kernel")
    assert probation.problem == ""
    probation.failed("no kernel")
    assert probation.problem == f"{IN_A_ROW} batches in a row failed: no kernel"


def test_failures_between_which_others_succeed_are_forgiven_until_they_are_many() -> None:
    probation = Probation("torch/bf16")
    for _ in range(MOST_OF_RECENT - 1):
        probation.failed("no kernel")
        probation.answered(RIGHT)
    assert probation.problem == ""
    probation.failed("no kernel")
    assert f"{MOST_OF_RECENT} of the last" in probation.problem


def test_failures_of_long_ago_are_forgotten() -> None:
    probation = Probation("torch/bf16")
    for _ in range(10 * MOST_OF_RECENT):
        probation.failed("no kernel")
        for _ in range(RECENT // 4):
            probation.answered(RIGHT)
    assert probation.problem == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_finite_number_counts_as_failure(value: float) -> None:
    probation = Probation("torch/bf16")
    for _ in range(IN_A_ROW):
        probation.answered((np.full((4, 2), value, np.float32),))
    assert "not a finite number" in probation.problem


def test_all_outputs_are_looked_at() -> None:
    probation = Probation("torch/bf16")
    for _ in range(IN_A_ROW):
        probation.answered(WRONG)
    assert probation.problem


def test_integers_and_texts_are_always_finite() -> None:
    probation = Probation("torch/bf16")
    for _ in range(RECENT):
        probation.answered((np.ones(3, np.int64), np.array([b"a"], dtype=object)))
    assert probation.problem == ""


def test_the_first_reason_is_kept() -> None:
    probation = Probation("torch/bf16")
    probation.unfit("it could not be loaded")
    for _ in range(IN_A_ROW):
        probation.failed("no kernel")
    assert probation.problem == "it could not be loaded"
