"""Batches that wait for company beside batches that do not, on the same arrivals, simulated.

PREBA lets a batch wait until it is full or its oldest request has waited for Time_queue. Tessera gives an idle instance what is
there, mixes lengths where that pays, and keeps the batches of several instances apart. All run on the same laws of batch times, for images (one size) and audio (lengths in buckets): at shares of the
capacity, that of full batches, the p99 and the share of requests within the SLO; and the most that is carried within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any

import numpy as np
from bench.preprocess import paper
from numpy.typing import NDArray

from tessera_core.batching.policy import Lengths
from tessera_core.batching.preba import Limit, queue_ms
from tessera_core.simulate.arrivals import gamma, poisson
from tessera_core.simulate.lengths import AtOnce, Forming, Waiting, simulate_lengths
from tessera_core.simulate.station import Served

LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
BURSTS_CV2 = 4.0
SLO_KNEES = 4.0
"""The SLO in batches at the knee: waiting for one of them, one that runs, the own one, and one to spare."""
PERCENTILE = 99.0
WARM_UP = 0.1
SEED = 41
STEPS = 7
"""Of the search for the most that is carried."""

ONE = "padded to the longest"
APART = "equal lengths only"
BY_ELEMENTS = "at once, spaced, costs not learnt"
AT_ONCE = "at once"
OURS = "at once, spaced"
WAITS = "waits (PREBA)"


@dataclass(frozen=True, slots=True)
class Case:
    """One load: a model, how the GPU is cut, how batches take, and what comes."""

    kind: str
    cut: str
    law: str
    arrivals: str
    knee_ms: float
    sizes: tuple[float, ...]
    """By bucket: elements of a row, over those of the longest."""
    costs: tuple[float, ...]
    """By bucket: work of a row, over that of the longest."""
    knees: tuple[int, ...]
    """By bucket: rows at the knee."""
    knee_work: float
    """In rows of the longest."""
    buckets: NDArray[np.int64]
    gaps: NDArray[np.float64]
    """Between requests, of mean 1."""

    @property
    def instances(self) -> int:
        return paper.SLICES[self.cut]

    def batch_ms(self, rows: float, bucket: int) -> float:
        return self.work_ms(rows * self.costs[bucket])

    def work_ms(self, work: float) -> float:
        return paper.LAWS[self.law](self.knee_ms)(work / self.knee_work)

    @property
    def shares(self) -> NDArray[np.float64]:
        """By bucket: of the requests."""
        counts = np.bincount(self.buckets, minlength=len(self.sizes))
        return counts / len(self.buckets)

    @property
    def capacity_per_s(self) -> float:
        """Of full batches, each of one length."""
        each_ms = [self.batch_ms(rows, bucket) / rows for bucket, rows in enumerate(self.knees)]
        return 1e3 * self.instances / float(self.shares @ np.array(each_ms))

    def ways(self) -> Mapping[str, Callable[[float], tuple[Forming, bool]]]:
        """By name: the queue for a rate, and whether all is padded to the longest."""
        of_one_size = {AT_ONCE: self._mixed, OURS: self._spaced, WAITS: self._waits}
        if len(self.sizes) == 1:
            return of_one_size
        return {
            ONE: self._one,
            APART: self._apart,
            BY_ELEMENTS: self._by_elements,
            **of_one_size,
        }

    def _one(self, _: float) -> tuple[Forming, bool]:
        cap = self.knees[-1]
        return AtOnce(self.sizes, cap, Lengths(1.0, cap, 0), self.work_ms), True

    def _apart(self, _: float) -> tuple[Forming, bool]:
        return self._at_once(0), False

    def _mixed(self, _: float) -> tuple[Forming, bool]:
        return self._at_once(self.instances), False

    def _spaced(self, _: float) -> tuple[Forming, bool]:
        return self._at_once(self.instances, self.instances), False

    def _by_elements(self, _: float) -> tuple[Forming, bool]:
        return self._at_once(self.instances, self.instances, learns=False), False

    def _at_once(self, mixing: int, spaced: int = 1, learns: bool = True) -> AtOnce:
        mean_cost, mean_size = (
            float(self.shares @ np.array(each)) for each in (self.costs, self.sizes)
        )
        return AtOnce(
            self.sizes,
            round(
                self.knee_work / mean_cost
            ),  # which a policy finds by what rows as they come take
            Lengths(mean_size, max(self.knees), mixing),
            lambda rows: self.work_ms(rows * mean_cost),
            spaced,
            self.batch_ms if learns else None,
        )

    def _waits(self, rate_per_s: float) -> tuple[Forming, bool]:
        return Waiting(
            [
                Limit(
                    rows,
                    queue_ms(self.batch_ms(rows, bucket), self.instances, rate_per_s * share),
                )
                for bucket, (rows, share) in enumerate(zip(self.knees, self.shares, strict=True))
            ]
        ), False

    def run(self, way: str, load: float) -> Served:
        rate_per_s = load * self.capacity_per_s
        forming, longest = self.ways()[way](rate_per_s)
        buckets = np.full_like(self.buckets, len(self.sizes) - 1) if longest else self.buckets
        times = np.cumsum(self.gaps) * (1e3 / rate_per_s)
        return simulate_lengths(forming, self.batch_ms, self.instances, times, buckets)

    @property
    def slo_ms(self) -> float:
        return SLO_KNEES * self.knee_ms

    def carried(self, way: str) -> float:
        """The largest load whose percentile is within the SLO; 0 where none is."""
        least, most = 0.0, 1.2
        for _ in range(STEPS):
            middle = (least + most) / 2
            if self.run(way, middle).percentile_ms(PERCENTILE, WARM_UP) <= self.slo_ms:
                least = middle
            else:
                most = middle
        return least


def cases(requests: int) -> Iterator[Case]:
    """All of them, of so many requests each."""
    rng = np.random.default_rng(SEED)
    seconds = _lengths(requests, rng)
    lengths = np.ceil(seconds / paper.BUCKET_S).astype(np.int64) - 1
    ends = paper.BUCKET_S * np.arange(1, round(paper.LONGEST_S / paper.BUCKET_S) + 1)
    gaps = {"Poisson": _gaps(requests, 1.0, rng), "bursts": _gaps(requests, BURSTS_CV2, rng)}
    nothing = np.zeros(requests, dtype=np.int64)
    for cut in paper.SLICES:
        for law in paper.LAWS:
            for arrivals, each in gaps.items():
                for model in paper.IMAGES:
                    rows = model.knees[cut]
                    ms = paper.knee_ms(model.knee_ms, cut, rows / model.knees["7 x 1g"])
                    one = (1.0,)
                    yield Case(
                        model.name, cut, law, arrivals, ms, one, one, (rows,), rows, nothing, each
                    )
                work = paper.AUDIO_KNEE_S[cut] / paper.LONGEST_S
                for kind, square in paper.AUDIO.items():
                    sizes = ends / paper.LONGEST_S
                    costs = (1 - square) * sizes + square * sizes**2
                    yield Case(
                        kind,
                        cut,
                        law,
                        arrivals,
                        paper.knee_ms(
                            paper.AUDIO_KNEE_MS,
                            cut,
                            paper.AUDIO_KNEE_S[cut] / paper.AUDIO_KNEE_S["7 x 1g"],
                        ),
                        tuple(sizes.tolist()),
                        tuple(costs.tolist()),
                        tuple((work / costs + 1e-9).astype(int).tolist()),
                        work,
                        lengths,
                        each,
                    )


def _lengths(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Of utterances in seconds."""
    drawn = rng.lognormal(np.log(paper.MEDIAN_S), paper.SIGMA, 2 * count + 100)
    kept = drawn[(drawn >= paper.SHORTEST_S) & (drawn <= paper.LONGEST_S)]
    return np.asarray(kept[:count], dtype=np.float64)


def _gaps(count: int, cv2: float, rng: np.random.Generator) -> NDArray[np.float64]:
    seconds = 1.2 * count + 200
    times = poisson(1.0, seconds, rng) if cv2 == 1 else gamma(1.0, cv2, seconds, rng)
    return np.diff(times, prepend=0.0)[:count] / 1e3


def measure(quick: bool) -> dict[str, object]:
    """All cases; ``quick``: of few requests, at two loads, of one image model."""
    loads = (0.5, 0.9) if quick else LOADS
    rows: list[dict[str, Any]] = []
    for case in cases(1_000 if quick else 20_000):
        if quick and case.kind not in (paper.IMAGES[0].name, *paper.AUDIO):
            continue
        for way in case.ways():
            at: dict[str, dict[str, float]] = {}
            for load in loads:
                served = case.run(way, load)
                at[f"{load:g}"] = {
                    "p99_ms": served.percentile_ms(PERCENTILE, WARM_UP),
                    "mean_ms": float(served.latency_ms.mean()),
                    "within_slo": served.within(case.slo_ms),
                    "mean_batch": float(served.batch_sizes.mean()),
                }
            rows.append(
                {
                    "kind": case.kind,
                    "cut": case.cut,
                    "law": case.law,
                    "arrivals": case.arrivals,
                    "way": way,
                    "knee_ms": case.knee_ms,
                    "slo_ms": case.slo_ms,
                    "capacity_per_s": case.capacity_per_s,
                    "carried": case.carried(way),
                    "loads": at,
                }
            )
    return {"loads": [f"{load:g}" for load in loads], "rows": rows, "beside": _beside(rows)}


def _beside(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each way over ours, of each kind, cut and law: geometric means of p99, least and largest, and carried."""
    found: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        lengths = row["kind"] if row["kind"] in paper.AUDIO else "images"
        found.setdefault((lengths, row["cut"], row["law"], row["way"]), []).append(row)
    beside = []
    for (lengths, cut, law, way), each in found.items():
        if way == OURS:
            continue
        ours = found[lengths, cut, law, OURS]
        ratios = [
            other["loads"][load]["p99_ms"] / mine["loads"][load]["p99_ms"]
            for other, mine in zip(each, ours, strict=True)
            for load in other["loads"]
        ]
        carried = [
            other["carried"] / mine["carried"]
            for other, mine in zip(each, ours, strict=True)
            if mine["carried"]
        ]
        beside.append(
            {
                "lengths": lengths,
                "cut": cut,
                "law": law,
                "way": way,
                "p99_over_ours": geometric_mean(ratios),
                "least": min(ratios),
                "most": max(ratios),
                "carried_over_ours": sum(carried) / len(carried) if carried else 0.0,
            }
        )
    return beside


def lines(record: Mapping[str, Any]) -> list[str]:
    """The record as text: p99 in batches at the knee, and the load that is carried within the SLO."""
    loads = record["loads"]
    head = f"{'':19}{'':8}{'':7}{'':9}{'':35}" + "".join(f"{load:>7}" for load in loads)
    said = [
        f"Batches that wait and batches that do not, simulated: p{PERCENTILE:g} in times of a batch at the knee, by load",
        f"{head}   carried at {SLO_KNEES:g}",
    ]
    for row in record["rows"]:
        p99 = [row["loads"][load]["p99_ms"] / row["knee_ms"] for load in loads]
        said.append(
            f"{row['kind']:19}{row['cut']:8}{row['law']:7}{row['arrivals']:9}{row['way']:35}"
            + "".join(f"{each:7.2f}" for each in p99)
            + f"   {row['carried']:10.2f}"
        )
    said += ["", f"Over '{OURS}': p99 (mean, least, most), and what is carried"]
    said += [
        f"{each['lengths']:19}{each['cut']:8}{each['law']:7}{each['way']:35}{each['p99_over_ours']:7.2f}"
        f"{each['least']:7.2f}{each['most']:8.2f}{each['carried_over_ours']:8.2f}"
        for each in record["beside"]
    ]
    return said
