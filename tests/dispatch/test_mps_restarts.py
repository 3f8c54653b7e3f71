"""How often an MPS daemon is started again before its place does without."""

from __future__ import annotations

import pytest

from tessera_runtime.dispatch.mps import FAILURES_WITHIN_S, MOST_FAILURES, gives_up


@pytest.mark.parametrize(
    ("failures", "now", "found"),
    [
        ([], 0.0, False),
        ([0.0] * (MOST_FAILURES - 1), 0.0, False),
        ([0.0] * MOST_FAILURES, 0.0, True),
        ([0.0] * MOST_FAILURES, FAILURES_WITHIN_S - 1, True),
        ([0.0] * MOST_FAILURES, FAILURES_WITHIN_S, False),
        ([0.0, *[FAILURES_WITHIN_S / 2] * (MOST_FAILURES - 1)], FAILURES_WITHIN_S, False),
    ],
)
def test_a_place_does_without_mps_while_its_last_failures_are_close_together(
    failures: list[float], now: float, found: bool
):
    assert gives_up(failures, now) is found
