"""The known jobs of DNNScaler's table, and how long their batches take on one input path.

The instance matrix is taken as it was measured: one row a batch, so many instances. From it, for each network, the time
on the GPU (which instances take in turn) is ``g`` = L(8)/8 and the rest of L(1) is the host's, which instances have side
by side. A batch of b rows adds ``decode`` on the host and ``row`` on the GPU for each further row, so

    L(b, n) = max(host(b) + gpu(b), n * gpu(b)) + (L(1, n) - the same law at b = 1),

which is the matrix where b = 1. The law and its constants are ours; what is measured, taken from the same network on
another data set, or wholly estimated, is said by :attr:`Job.source`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tessera_core.control.completion import Matrix
from tessera_core.control.dnnscaler import MOST_INSTANCES, PROBE_INSTANCES, PROBE_ROWS, Knob, Probe
from tessera_core.perf import LatencyProfile, ProfileRow

DATA = Path(__file__).with_name("jobs.toml")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
COUNTS = (1, 2, 3, 4, 6, 8, 10)
"""The grid that is profiled for the policy which needs one."""
INSTANCE_MIB = 0.075 * 24576
"""A P40 has 24 GiB; the job scripts give each instance so much of it."""

DECODE_MS = 4.3
"""Host part of one row at most: what the smallest networks of the matrix take beside the GPU (3.6 to 5.8 ms)."""
GPU_OF_FIRST = 0.3
"""GPU time of a further row over that of the first, where no log says it: Inc-V1 0.36, ResNet-V2-50 0.26."""
GPU_OF_FIRST_LARGE = 0.26
GPU_MS_PER_GMAC = 0.45
"""Of a further row: ResNet-V2-50 0.46, ResNet-V2-152 0.43, Inc-V4 0.43."""


class Source(StrEnum):
    MATRIX = "matrix"
    SAME_NETWORK = "matrix, other data set"
    FIT = "fit"


class Decoding(StrEnum):
    """Where images are decoded."""

    TIMED = "decoded in the batch"
    """As in the measured matrix: each instance decodes what it computes."""
    BEFORE = "decoded before"


@dataclass(frozen=True, slots=True)
class Law:
    """Times of batches, ms."""

    instances_ms: tuple[float, ...]
    """A batch of one row, with 1 to MOST_INSTANCES instances."""
    gpu_ms: float
    row_gpu_ms: float
    decode_ms: float

    def __call__(self, rows: int, instances: int) -> float:
        return (
            self._law(rows, instances) + self.instances_ms[instances - 1] - self._law(1, instances)
        )

    def _law(self, rows: int, instances: int) -> float:
        host = self.instances_ms[0] - self.gpu_ms + self.decode_ms * (rows - 1)
        gpu = self.gpu_ms + self.row_gpu_ms * (rows - 1)
        return max(host + gpu, instances * gpu)


@dataclass(frozen=True, slots=True)
class Job:
    number: int
    dnn: str
    data: str
    slo_ms: float
    paper: Knob
    """What the paper's scripts choose."""
    source: Source
    law: Law

    @property
    def name(self) -> str:
        return f"{self.number:2} {self.dnn}, {self.data}"

    @property
    def probe(self) -> Probe:
        """What DNNScaler's profiler would find on this path."""
        return Probe(
            1e3 / self.law(1, 1),
            1e3 * PROBE_ROWS / self.law(PROBE_ROWS, 1),
            1e3 * PROBE_INSTANCES / self.law(1, PROBE_INSTANCES),
        )

    def profile(self) -> LatencyProfile:
        """As a profiler measures it: noiseless, one cell for each of BATCHES and COUNTS."""
        return LatencyProfile(
            tuple(
                ProfileRow(rows, n, ms, ms, 1e3 * n * rows / ms, INSTANCE_MIB * n)
                for rows in BATCHES
                for n in COUNTS
                for ms in [self.law(rows, n)]
            )
        )


def jobs(path: Decoding = Decoding.TIMED) -> tuple[Job, ...]:
    """All known jobs, by number."""
    return tuple(_job(each, path) for each in _data()["jobs"])


def measured_before(job: Job) -> Matrix:
    """Instance times of all other measured models, shape (models, MOST_INSTANCES)."""
    own = f"{job.dnn}, {job.data}"
    return np.array(
        [_every_count(ms) for name, ms in _data()["instances_ms"].items() if name != own]
    )


def batch_path_ms(job: Job, rows: int) -> float | None:
    """A batch on the path of the paper's batching and Clipper; None where nothing is known of it."""
    path = _data()["batch_path"].get(job.data)
    if path is None:
        return None
    return float(path["first_ms"] + (path["row_ms"] + job.law.row_gpu_ms) * rows)


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    return tomllib.loads(DATA.read_text())


def _every_count(known_ms: list[float]) -> tuple[float, ...]:
    """1 to MOST_INSTANCES, on a line between those that were measured."""
    every = np.interp(range(1, MOST_INSTANCES + 1), _data()["counts"], known_ms)
    return tuple(every.tolist())


def _job(entry: dict[str, Any], path: Decoding) -> Job:
    data, dnn = _data(), entry["dnn"]
    instances: dict[str, list[float]] = data["instances_ms"]
    found = instances.get(f"{dnn}, {entry['data']}")
    other = instances.get(f"{dnn}, ImageNet")
    if found or other:
        source = Source.MATRIX if found else Source.SAME_NETWORK
        every = _every_count(found or other or [])
        gpu = every[PROBE_INSTANCES - 1] / PROBE_INSTANCES
        row_gpu = data["row_gpu_ms"].get(dnn, GPU_OF_FIRST * gpu)
    else:
        source, network = Source.FIT, data["unmeasured"][dnn]
        row_gpu = data["row_gpu_ms"].get(dnn, GPU_MS_PER_GMAC * network["gmacs"])
        gpu = row_gpu / GPU_OF_FIRST_LARGE
        first = gpu + DECODE_MS + network["launch_ms"]
        every = tuple(max(first, n * gpu) for n in range(1, MOST_INSTANCES + 1))
    decode = min(DECODE_MS, every[0] - gpu)
    if path is Decoding.BEFORE:
        # What a row's decoding took is gone wherever the host is what instances wait for.
        every = tuple(min(ms, max(ms - decode, (n + 1) * gpu)) for n, ms in enumerate(every))
        decode = 0.0
    law = Law(every, gpu, row_gpu, decode)
    return Job(
        entry["number"],
        dnn,
        entry["data"],
        float(entry["slo_ms"]),
        Knob(entry["knob"]),
        source,
        law,
    )
