"""An A100 in seven slices whose images are decoded by the host's cores, by an accelerator that costs nothing, or in less time.

PREBA reports that decoding on 32 cores takes three quarters of what the slices could do, and that hardware for it brings 3.7
times the throughput and 3.4 times lower tails. Simulated here: requests are decoded by cores, one after the other on each, and
then batched for seven slices up to the knees of the paper. So it can be asked how much of that comes back by decoding in less
time on so many cores, without the hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heapreplace
from math import inf
from statistics import fmean, geometric_mean
from typing import Any

import numpy as np
from bench.preprocess import paper
from numpy.typing import NDArray

from tessera_core.simulate import Station, simulate
from tessera_core.simulate.arrivals import poisson

FULL_MS = 14.9
"""A core decodes, resizes, cuts and normalises one photograph with Pillow at full size. Measured, docs/decisions/0040: photographs
of 145 to 359 KiB, 0.8 to 1.9 megapixels."""
SCALED_MS = 6.0
"""The same with ours: decoded smaller where that is enough."""
EFFICIENCY = 0.9
"""Of the cores, when all decode at once. Source: the paper's cores are 90 % busy at most."""
PAPER_CORES = 32
"""Of the paper's host."""
CORES = (8, 16, 32, 64, 128)
CUT = "7 x 1g"
SLO_KNEES = 4.0
"""Batches at the knee that inference may take with waiting, beside decoding without waiting."""
PERCENTILE = 99.0
WARM_UP = 0.1
SEED = 42
STEPS = 9
TAIL_AT = 0.95
"""Of what decoding on cores carries: where tails are compared."""
REPORTED = {"throughput": 3.7, "tail": 3.4, "lost": 0.756}
"""By the paper, over its six models, of which three are images. Printed beside what comes out, for nothing is computed of it."""


@dataclass(frozen=True, slots=True)
class Host:
    """What decodes. Without cores it takes no time: PREBA's hardware at its best."""

    cores: int = 0
    ms: float = 0.0

    def decoded_ms(self, arrivals_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """When each of ``arrivals_ms`` is decoded: first come, first served, by the first core that is free."""
        if not self.cores:
            return arrivals_ms
        took_ms = self.ms / EFFICIENCY
        free = [-inf] * self.cores
        done = []
        for came in arrivals_ms.tolist():
            end = max(came, free[0]) + took_ms
            heapreplace(free, end)
            done.append(end)
        return np.array(done)

    @property
    def limit_per_s(self) -> float:
        return 1e3 * EFFICIENCY * self.cores / self.ms if self.cores else inf


@dataclass(frozen=True, slots=True)
class Node:
    """A model on seven slices behind a host."""

    model: paper.Images
    law: str
    host: Host
    requests: int

    @property
    def slices_per_s(self) -> float:
        return 1e3 * paper.SLICES[CUT] * self.model.knees[CUT] / self.model.knee_ms

    @property
    def slo_ms(self) -> float:
        return SLO_KNEES * self.model.knee_ms + self.host.ms / EFFICIENCY

    def latencies_ms(self, rate_per_s: float) -> NDArray[np.float64]:
        rng = np.random.default_rng(SEED)
        arrivals_ms = poisson(rate_per_s, self.requests / rate_per_s, rng)
        decoded_ms = self.host.decoded_ms(arrivals_ms)
        knee = self.model.knees[CUT]
        law = paper.LAWS[self.law](self.model.knee_ms)
        times = tuple(law(rows / knee) for rows in range(1, knee + 1))
        served = simulate(Station(times, paper.SLICES[CUT]), decoded_ms)
        latencies = served.latency_ms + decoded_ms - arrivals_ms
        return np.asarray(latencies[int(WARM_UP * len(latencies)) :])

    def p99_ms(self, rate_per_s: float) -> float:
        return float(
            np.percentile(self.latencies_ms(rate_per_s), PERCENTILE, method="inverted_cdf")
        )

    def carried_per_s(self) -> float:
        """The highest rate whose percentile is within the SLO."""
        least, most = 0.0, 1.1 * min(self.slices_per_s, self.host.limit_per_s)
        for _ in range(STEPS):
            middle = (least + most) / 2
            if self.p99_ms(middle) <= self.slo_ms:
                least = middle
            else:
                most = middle
        return least


def measure(quick: bool) -> dict[str, object]:
    """The paper's host and what other hosts recover; ``quick``: of few requests, with one law."""
    requests = 3_000 if quick else 40_000
    laws = ("line",) if quick else tuple(paper.LAWS)
    return {
        "inputs": {
            "full_size_ms": FULL_MS,
            "scaled_ms": SCALED_MS,
            "efficiency": EFFICIENCY,
            "knees": {model.name: dict(model.knees) for model in paper.IMAGES},
            "knee_ms": {model.name: model.knee_ms for model in paper.IMAGES},
            "slo_knees": SLO_KNEES,
            "requests": requests,
        },
        "reported": REPORTED,
        "models": [_model(model, law, requests) for law in laws for model in paper.IMAGES],
    }


def _model(model: paper.Images, law: str, requests: int) -> dict[str, Any]:
    def node(host: Host) -> Node:
        return Node(model, law, host, requests)

    free = node(Host())
    ideal = free.carried_per_s()
    paper_like = node(Host(PAPER_CORES, FULL_MS))
    carried = paper_like.carried_per_s()
    rate = TAIL_AT * carried
    return {
        "model": model.name,
        "law": law,
        "ideal_per_s": ideal,
        "on_cores_per_s": carried,
        "lost": 1 - carried / ideal,
        "throughput": ideal / carried,
        "tail": paper_like.p99_ms(rate) / free.p99_ms(rate),
        "recovered": {
            name: {str(cores): node(Host(cores, ms)).carried_per_s() / ideal for cores in CORES}
            for name, ms in (("full size", FULL_MS), ("scaled", SCALED_MS))
        },
        "cores_needed": ideal * SCALED_MS / 1e3 / EFFICIENCY,
    }


def lines(record: Mapping[str, Any]) -> list[str]:
    """The record as text."""
    models, reported = record["models"], record["reported"]
    said = [
        f"A100 in {CUT}, images decoded by {PAPER_CORES} cores at full size, and for nothing; simulated",
        f"{'':19}{'batches':9}{'ideal/s':>10}{'on cores/s':>12}{'lost':>8}{'x throughput':>14}{'x lower p99':>13}",
    ]
    said += [
        f"{each['model']:19}{each['law']:9}{each['ideal_per_s']:10,.0f}{each['on_cores_per_s']:12,.0f}{each['lost']:8.0%}"
        f"{each['throughput']:14.1f}{each['tail']:13.1f}"
        for each in models
    ]
    said += [
        f"{'mean':28}{'':22}{fmean(each['lost'] for each in models):8.0%}"
        f"{geometric_mean(each['throughput'] for each in models):14.1f}"
        f"{geometric_mean(each['tail'] for each in models):13.1f}",
        f"{'the paper, six models':28}{'':22}{reported['lost']:8.0%}{reported['throughput']:14.1f}{reported['tail']:13.1f}",
        "",
        f"Of the ideal, decoded on so many cores{'':18}"
        + "".join(f"{cores:>7}" for cores in CORES),
    ]
    for name in ("full size", "scaled"):
        rows = [(f"{each['model']:19}{each['law']:9}", each["recovered"][name]) for each in models]
        mean = {str(cores): fmean(shares[str(cores)] for _, shares in rows) for cores in CORES}
        said += [
            f"{who:28}{name:28}" + "".join(f"{shares[str(cores)]:7.0%}" for cores in CORES)
            for who, shares in [*rows, ("mean", mean)]
        ]
    said += [
        "",
        "Cores for all of it, scaled: "
        + ", ".join(
            f"{each['model']} {each['cores_needed']:.0f}"
            for each in models
            if each["law"] == models[0]["law"]
        ),
    ]
    return said
