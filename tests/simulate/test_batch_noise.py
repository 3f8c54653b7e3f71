"""Drawn batch times: what is asked for, and what the exact law says of a queue whose batch times vary."""

from __future__ import annotations

import numpy as np
import pytest

from tessera_core.perf import ServiceModel
from tessera_core.perf.health import mean_ms
from tessera_core.simulate import Station, simulate
from tessera_core.simulate.arrivals import poisson
from tessera_core.simulate.noise import lognormal

V100 = ServiceModel(0.1438, 1.8874)
"""ResNet-50; Inoue 2021."""


def test_factors_have_the_mean_the_variation_and_the_seed_that_are_asked_for() -> None:
    found = lognormal(3, 0.2, np.random.default_rng(1))
    assert len(found) == 3
    for factors in found:
        assert np.mean(factors) == pytest.approx(1.0)
        assert np.var(factors) == pytest.approx(0.2, rel=0.2)
    assert found == lognormal(3, 0.2, np.random.default_rng(1))
    assert found != lognormal(3, 0.2, np.random.default_rng(2))
    assert set(lognormal(1, 0.0, np.random.default_rng(1))[0]) == {1.0}


@pytest.mark.parametrize("rho", [0.1, 0.4, 0.6])
@pytest.mark.parametrize("cv2", [0.05, 0.25])
def test_the_mean_latency_is_that_of_the_exact_law(rho: float, cv2: float) -> None:
    rate = 1e3 * rho / V100.alpha_ms
    rng = np.random.default_rng(5)
    largest = 400
    station = Station(V100.batch_times_ms(largest), noise=lognormal(largest, cv2, rng))
    arrivals = poisson(rate, 400_000 / rate, rng)
    served = simulate(station, arrivals)
    assert served.batch_sizes.max() < largest
    expected = mean_ms(V100, rate, float(served.batch_sizes.mean()), cv2)
    assert served.latency_ms.mean() == pytest.approx(expected, rel=0.02)
    steady = simulate(Station(station.batch_ms), arrivals)
    assert served.latency_ms.mean() > steady.latency_ms.mean()
    assert served.percentile_ms(99) > steady.percentile_ms(99)


@pytest.mark.parametrize(
    ("largest", "cv2", "message"), [(0, 0.1, "largest"), (1, -0.1, "cv2"), (1, np.inf, "cv2")]
)
def test_what_cannot_be_is_named(largest: int, cv2: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lognormal(largest, cv2, np.random.default_rng(1))
