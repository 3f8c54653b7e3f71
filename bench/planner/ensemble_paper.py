"""The ensemble paper's setting: heavy ImageNet networks on up to sixteen 16 GB V100 and, if wanted, a CPU.

DERIVED, not measured and not the paper's figures: arXiv 2208.14049 publishes no profiles. Throughput follows

    rate(b) = b / (alpha * b + tau0),   alpha = 2 * MACs / (peak * efficiency),   tau0 = 50 µs * layers

with the multiply-accumulates, layers and parameters that the networks' own papers and torchvision's model
pages state; a V100 has 15.7 TFLOPS in FP32 (NVIDIA V100 data sheet). ``efficiency`` is a guess by kind of
network: long dense convolutions near 0.6, many small ones 0.3, depthwise ones 0.1. Memory is a process's CUDA
context and libraries, its weights, and activations per row. Ratios between placements are what such a table
can tell; requests per second are not.

The members of IMN1, IMN4 and, for its first four, IMN12 are those that are remembered of the paper; the eight
others of IMN12 are a choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from bench.planner.facts import digest, model_service
from bench.planner.matrix_baselines import BATCHES, Matrix, Tables
from scipy.optimize import linprog

from tessera_core.gpu.devices import FULL, DeviceClass, cpu_class
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_core.plan.decision import Assignment
from tessera_core.plan.state import (
    Budget,
    ClusterState,
    DeviceState,
    Goal,
    Measured,
    NodeState,
    Policy,
    PoolRules,
)

PRODUCT = "Tesla-V100-SXM2-16GB"
GPU_MEMORY_MIB = 16160
CPU_CORES = 40
CPU_MEMORY_MIB = 262_144
MOST_GPUS = 16
SERVICE = "ensemble"
_V100_FLOPS = 15.7e12
_CPU_FLOPS = 2.0e12
_LAYER_MS = 0.05
_CONTEXT_MIB = 1000.0
_POOL = "v100"
_NODE = "v100-0"
_TARGET_MS = 10_000.0
"""The paper has no deadline."""


@dataclass(frozen=True, slots=True)
class Network:
    """An ImageNet classifier at its usual input size."""

    name: str
    gmacs: float
    """Multiply-accumulates per row, 10^9."""
    layers: int
    params: float
    """Millions."""
    row_mib: float
    """Activations that are alive at once, per row."""
    efficiency: float
    """Share of the peak that large batches reach."""

    def batch_ms(self, batch: int, cpu: bool) -> float:
        """Time of a batch on a whole device."""
        flops = _CPU_FLOPS if cpu else _V100_FLOPS
        tau0 = 0.0 if cpu else _LAYER_MS * self.layers
        return batch * 2e12 * self.gmacs / (flops * self.efficiency) + tau0

    def memory_mib(self, batch: int) -> float:
        return _CONTEXT_MIB + 4 * self.params * 1e6 / 2**20 + batch * self.row_mib


RESNET152 = Network("resnet152", 11.5, 152, 60.2, 30.0, 0.55)
IMN1 = (RESNET152,)
IMN4 = (
    Network("resnet50", 4.1, 50, 25.6, 25.0, 0.5),
    Network("resnet101", 7.8, 101, 44.5, 28.0, 0.55),
    Network("densenet121", 2.9, 121, 8.0, 30.0, 0.3),
    Network("vgg19", 19.6, 19, 143.7, 45.0, 0.65),
)
IMN12 = (
    *IMN4,
    RESNET152,
    Network("resnet18", 1.8, 18, 11.7, 15.0, 0.5),
    Network("resnet34", 3.7, 34, 21.8, 15.0, 0.55),
    Network("densenet169", 3.4, 169, 14.1, 32.0, 0.3),
    Network("densenet201", 4.3, 201, 20.0, 35.0, 0.3),
    Network("vgg16", 15.5, 16, 138.4, 45.0, 0.65),
    Network("inceptionv3", 5.7, 48, 27.2, 20.0, 0.45),
    Network("mobilenetv2", 0.3, 53, 3.5, 20.0, 0.1),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """An ensemble and the devices that it has: GPUs first, then the processor."""

    models: tuple[Network, ...]
    gpus: int
    cpu: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models: an ensemble needs at least one")
        if not 1 <= self.gpus <= MOST_GPUS:
            raise ValueError(f"gpus: must be 1 to {MOST_GPUS}, found {self.gpus}")

    @property
    def devices(self) -> tuple[str, ...]:
        """Identities, in the order of the matrix's rows."""
        return (
            *(f"GPU-{index:02d}" for index in range(self.gpus)),
            *(("cpu",) if self.cpu else ()),
        )

    def tables(self) -> Tables:
        """What the paper's optimiser reads."""
        cpu = np.array([name == "cpu" for name in self.devices])
        return Tables(
            capacity_mib=np.where(cpu, float(CPU_MEMORY_MIB), float(GPU_MEMORY_MIB)),
            cpu=cpu,
            memory_mib=np.array([[m.memory_mib(b) for b in BATCHES] for m in self.models]),
            rate_per_s=np.array(
                [
                    [[1e3 * b / m.batch_ms(b, bool(on)) for b in BATCHES] for m in self.models]
                    for on in cpu
                ]
            ),
        )

    def rate(self, matrix: Matrix) -> float:
        """Ensemble requests/s of an allocation; 0 where memory or a model is missing.

        Devices share their time among their models, and a model's rows among its devices, at best:

            theta = max min_m sum_d x[d, m],   sum_m x[d, m] / T[d, m] <= 1 for every device d,

        T being the rate alone at the batch of the cell (a linear program, solved exactly by HiGHS).
        """
        if not (matrix > 0).any(axis=0).all() or not self._fits(matrix):
            return 0.0
        cells = np.argwhere(matrix > 0)
        rates = [
            1e3 * b / self.models[m].batch_ms(b, self.devices[d] == "cpu")
            for d, m in cells
            for b in [int(matrix[d, m])]
        ]
        # Variables: the share of its device's time that each cell has, then theta.
        count = len(cells)
        used = np.zeros((matrix.shape[0], count + 1))
        used[cells[:, 0], np.arange(count)] = 1.0
        short = np.zeros((matrix.shape[1], count + 1))
        short[cells[:, 1], np.arange(count)] = [-rate for rate in rates]
        short[:, -1] = 1.0
        solved = linprog(
            c=[*([0.0] * count), -1.0],
            A_ub=np.vstack((used, short)),
            b_ub=np.concatenate((np.ones(len(used)), np.zeros(len(short)))),
            method="highs",
        )
        if not solved.success:
            raise RuntimeError(f"the rate of an allocation was not found: {solved.message}")
        return float(solved.x[-1])

    def _fits(self, matrix: Matrix) -> bool:
        return all(
            sum(self.models[m].memory_mib(int(row[m])) for m in np.flatnonzero(row))
            <= (CPU_MEMORY_MIB if name == "cpu" else GPU_MEMORY_MIB)
            for name, row in zip(self.devices, matrix, strict=True)
        )

    def cluster(
        self, rate_per_s: float, objective: Goal = Goal.MAXIMISE_RATE, budget: Budget | None = None
    ) -> ClusterState:
        """The same as cluster facts: one node, one service that asks for ``rate_per_s``, no deadline to speak of."""
        boards = [DeviceState(name, PRODUCT, GPU_MEMORY_MIB) for name in self.devices[: self.gpus]]
        if self.cpu:
            boards.append(DeviceState("cpu", "cpu", CPU_MEMORY_MIB, cores=CPU_CORES))
        return ClusterState(
            nodes=(NodeState(_NODE, _POOL, tuple(boards)),),
            services=(
                model_service(
                    SERVICE,
                    [model.name for model in self.models],
                    rate_per_s=rate_per_s,
                    target_ms=_TARGET_MS,
                    batch_max=BATCHES[-1],
                ),
            ),
            measured=tuple(
                Measured(digest(model.name), place, _profile(model, place.is_cpu))
                for model in self.models
                for place in self._places()
            ),
            pools=(PoolRules(_POOL, shared_between_namespaces=True),),
            policy=Policy(objective=objective),
            budget=budget or Budget(),
        )

    def matrix(self, assignments: Iterable[Assignment]) -> Matrix:
        """A plan of :meth:`cluster` as an allocation matrix; several instances in a cell count once."""
        row = {name: index for index, name in enumerate(self.devices)}
        found = np.zeros((len(row), len(self.models)), dtype=np.int64)
        for each in assignments:
            found[row[each.device], int(each.member.removeprefix("m"))] = each.batch
        return found

    def _places(self) -> Sequence[DeviceClass]:
        gpu = DeviceClass(PRODUCT, FULL, sm_count=0, memory_mib=GPU_MEMORY_MIB)
        return (gpu, cpu_class(CPU_CORES, CPU_MEMORY_MIB)) if self.cpu else (gpu,)


def _profile(model: Network, cpu: bool) -> LatencyProfile:
    return LatencyProfile(
        tuple(
            ProfileRow(batch, 1, ms, ms, 1e3 * batch / ms, model.memory_mib(batch))
            for batch in (1, 2, 4, *BATCHES)
            for ms in [model.batch_ms(batch, cpu)]
        )
    )
