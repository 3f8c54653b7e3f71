"""How many requests one queue is simulated with per second, on one core: of wall time, and of the core's."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from bench.harness import Row

from tessera_core.perf import ServiceModel
from tessera_core.simulate import Station, simulate
from tessera_core.simulate.arrivals import poisson

V100 = ServiceModel(0.1438, 1.8874, cap=64)
P4 = ServiceModel(0.5833, 1.4284, cap=64)
"""ResNet-50; Inoue 2021."""

LOADS = (0.05, 0.3, 0.5, 0.8, 0.95)
"""Shares of the capacity. Small loads are slow: a batch is an event, and theirs hold few requests."""


def speed_rows(requests: int, rounds: int) -> Iterator[Row]:
    for name, model in {"V100": V100, "P4": P4}.items():
        station = Station(model.batch_times_ms())
        for load in LOADS:
            rate = load * model.capacity_per_s
            arrivals = poisson(rate, requests / rate, np.random.default_rng(1))
            slo_ms = 10 * model.batch_ms(1)
            mixed = slo_ms + slo_ms * np.arange(len(arrivals), dtype=np.float64) % (2 * slo_ms)
            for deadlines, allowed in (("none", None), ("one SLO", slo_ms), ("mixed", mixed)):
                repeats = []
                for _ in range(rounds):
                    began, cpu = time.perf_counter(), time.process_time()
                    served = simulate(station, arrivals, allowed)
                    took, used = time.perf_counter() - began, time.process_time() - cpu
                    repeats.append(
                        {
                            "requests_per_s": len(arrivals) / took,
                            "requests_per_cpu_s": len(arrivals) / used,
                            "mean_batch": float(served.batch_sizes.mean()),
                        }
                    )
                labels = {"group": "speed", "profile": name, "load": f"{load:g}"}
                yield Row(labels | {"deadlines": deadlines}, tuple(repeats))
