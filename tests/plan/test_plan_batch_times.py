"""The line that stands for measured batch times promises no rate that the measurement does not have."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.gpu.devices import FULL, DeviceClass
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_core.plan.curves import Curves

PLACE = DeviceClass("NVIDIA-L4", FULL, sm_count=0, memory_mib=20_000)
BATCHES = (1, 2, 4, 8, 16, 32)


def profile(times: dict[int, float]) -> LatencyProfile:
    return LatencyProfile(
        tuple(ProfileRow(b, 1, ms, 1.1 * ms, 1e3 * b / ms, 100.0) for b, ms in times.items())
    )


def queues(measured: LatencyProfile, most: int = 64) -> dict[int, tuple[float, ...]]:
    """Times of batches of 1 .. cap, by cap."""
    curves = Curves([PLACE], {("sha256:a", PLACE.product, PLACE.slice): measured}, 1.0)
    return {
        point.cap: point.queue.batch_times_ms()
        for column in curves.columns("sha256:a", 0, 1, most)
        for point in column.points
    }


@given(
    st.lists(st.floats(0.5, 100), min_size=len(BATCHES), max_size=len(BATCHES)),
    st.integers(0, len(BATCHES) - 1),
)
def test_full_batches_take_what_was_measured_and_smaller_ones_no_less(
    times: list[float], first: int
) -> None:
    measured = profile(dict(zip(BATCHES[first:], times[first:], strict=True)))
    for cap, modelled in queues(measured).items():
        assert modelled[-1] == pytest.approx(measured.service_ms(cap), rel=1e-5)
        for batch, ms in enumerate(modelled, 1):
            assert ms >= measured.service_ms(batch) * (1 - 1e-5)


def test_times_that_bend_upwards_are_not_averaged() -> None:
    # Flat up to 8 rows, then steep: a straight line through all of it would finish 32 rows in 48 ms.
    measured = profile({1: 12, 2: 13, 4: 13, 8: 16, 16: 29, 32: 60})
    assert queues(measured)[32][-1] == pytest.approx(60)


def test_an_affine_profile_is_taken_as_it_is() -> None:
    measured = profile({b: 2.0 + 0.5 * b for b in BATCHES})
    for cap, modelled in queues(measured).items():
        assert modelled == pytest.approx([2.0 + 0.5 * b for b in range(1, cap + 1)])
        assert all(two - one == pytest.approx(0.5) for one, two in pairwise(modelled))
