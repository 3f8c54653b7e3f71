"""ParvaGPU's measurements and scenarios, as plain tables and as cluster facts.

Source: "ParvaGPU: Efficient Spatial GPU Sharing for Large-Scale DNN Inference in Cloud Environments", SC'24,
arXiv 2409.14447; artefact github.com/MunQ-Lee/ParvaGPU_SC24 (MIT). Eleven models on one A100-80GB, PyTorch
eager. The data are not part of this repository: name their folder on the command line or in
``PARVAGPU_DATA``. It holds

    profiles/<model>.csv   MIG instance (GPCs), Batch size, Workload Number (MPS processes), Throughput
                           (rows/s of ONE process), Latency (s per batch); 0 = out of memory
    scenarios.csv          scenario, model, rate_per_s, slo_ms

    DataMissing(FileNotFoundError)   no folder, or a file of it is not there
    ValueError                       a row that is not what its header says; names file, line and field

The artefact reads at most three processes per slice although its files list five, so three is the limit
here. Whole boards (MIG off) were not measured: a 7g slice stands for one.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from bench.planner.facts import digest, model_service
from bench.planner.tables import PROFILE_NAMES, SIZES, Load, Point, Profiles

from tessera_core.gpu.classes import slice_class
from tessera_core.gpu.mig import find_profile
from tessera_core.gpu.tables import A100_80
from tessera_core.perf import LatencyProfile, Neighbours, ProfileRow
from tessera_core.plan.state import (
    Budget,
    ClusterState,
    DeviceState,
    Measured,
    NodeState,
    Policy,
    PoolRules,
)

VARIABLE = "PARVAGPU_DATA"
MOST_PROCESSES = 3
PRODUCT = A100_80.products[0]
GPUS_PER_NODE = 8
_POOL = "a100"
_ONE_MIB = 1.0
"""Memory was not published; what ran out of it is absent from the tables."""

_PROFILE_COLUMNS = ("Mig instance", "Batch size", "Workload Number", "Throughput", "Latency")
_SCENARIO_COLUMNS = ("scenario", "model", "rate_per_s", "slo_ms")


class DataMissing(FileNotFoundError):
    """The data folder is not there; says how to name it."""


@dataclass(frozen=True, slots=True)
class ParvaData:
    """Everything that the folder holds."""

    profiles: Mapping[str, tuple[Point, ...]]
    """By model, each sorted by (GPCs, batch, processes)."""
    scenarios: Mapping[str, tuple[Load, ...]]
    """By name, each sorted by service; services are named as their models."""


def data_folder(named: Path | None = None) -> Path:
    """``named``, or else what ``PARVAGPU_DATA`` says. Raises DataMissing when neither is a folder."""
    text = os.environ.get(VARIABLE, "")
    folder = named if named is not None else Path(text) if text else None
    if folder is None:
        raise DataMissing(f"ParvaGPU's data: name their folder, or set {VARIABLE}")
    if not (folder / "profiles").is_dir():
        raise DataMissing(f"ParvaGPU's data: {folder} has no folder 'profiles'")
    return folder


def read(folder: Path, clean: bool = False) -> ParvaData:
    """All models and scenarios in ``folder``.

    ``clean`` leaves out measurements that contradict their neighbours: densenet169 at batch 128 (on 3g 1.7
    times the rate of batch 64) and bert from batch 128 on.
    """
    profiles = {
        path.stem: tuple(sorted(_points(path, clean)))
        for path in sorted((folder / "profiles").glob("*.csv"))
    }
    if not profiles:
        raise DataMissing(f"ParvaGPU's data: no *.csv in {folder / 'profiles'}")
    scenarios: dict[str, list[Load]] = {}
    path = folder / "scenarios.csv"
    for where, row in _rows(path, _SCENARIO_COLUMNS):
        model = row["model"]
        if model not in profiles:
            raise ValueError(f"{where}.model: found {model!r}, measured are {', '.join(profiles)}")
        load = Load(model, model, _number(where, row, "rate_per_s"), _number(where, row, "slo_ms"))
        scenarios.setdefault(row["scenario"], []).append(load)
    return ParvaData(
        profiles, {name: tuple(sorted(loads)) for name, loads in sorted(scenarios.items())}
    )


def suspicious(model: str, batch: int) -> bool:
    """Whether a measurement contradicts its neighbours; see :func:`read`."""
    return (model == "densenet169" and batch == 128) or (model == "bert" and batch >= 128)


def copies_of(loads: tuple[Load, ...], copies: int) -> tuple[Load, ...]:
    """Every service ``copies`` times, as ``<name>-00``, ``<name>-01``, ...; unchanged for one."""
    if copies < 1:
        raise ValueError(f"copies: must be >= 1, found {copies}")
    if copies == 1:
        return loads
    width = max(2, len(str(copies - 1)))
    return tuple(
        replace(load, name=f"{load.name}-{copy:0{width}d}")
        for load in loads
        for copy in range(copies)
    )


def cluster(
    profiles: Profiles,
    loads: tuple[Load, ...],
    nodes: int | None = None,
    policy: Policy | None = None,
    budget: Budget | None = None,
    neighbours: Neighbours = Neighbours.BUSY,
) -> ClusterState:
    """Empty A100-80 nodes of eight boards, and one ModelService per load; no two of them share a slice.

    ``nodes``: None gives every service a board and a half, far more than any plan needs. ``policy``: the
    planner's own, less its allowance for what happens outside the queue, as the data have none.
    ``neighbours``: the measurements count as taken beside busy slices, so that no derate is added to them.
    """
    if nodes is None:
        nodes = -(-3 * len(loads) // (2 * GPUS_PER_NODE))
    names = sorted({load.model for load in loads})
    return ClusterState(
        nodes=tuple(_node(index) for index in range(nodes)),
        services=tuple(
            model_service(
                load.name,
                (load.model,),
                rate_per_s=load.rate_per_s,
                target_ms=load.slo_ms,
                placement={"isolation": "Partition"},
            )
            for load in loads
        ),
        measured=tuple(
            measured for name in names for measured in _measured(name, profiles[name], neighbours)
        ),
        pools=(
            PoolRules(
                _POOL,
                partition=True,
                allowed_profiles=tuple(PROFILE_NAMES.values()),
                shared_between_namespaces=True,
            ),
        ),
        policy=policy or Policy(overhead_ms=0.0),
        budget=budget or Budget(),
    )


def _node(index: int) -> NodeState:
    boards = tuple(
        DeviceState(
            uuid=f"GPU-{index:04d}-{gpu}",
            product=PRODUCT,
            memory_mib=A100_80.memory_mib,
            model=A100_80,
            cuttable=True,
        )
        for gpu in range(GPUS_PER_NODE)
    )
    return NodeState(f"a100-{index:04d}", _POOL, boards)


def _measured(model: str, points: tuple[Point, ...], neighbours: Neighbours) -> Iterator[Measured]:
    for gpcs, name in PROFILE_NAMES.items():
        rows = tuple(
            ProfileRow(
                batch=point.batch,
                instances=point.processes,
                p50_ms=point.latency_ms,
                p99_ms=point.latency_ms,
                throughput=point.rate_per_s,
                memory_mib=_ONE_MIB,
                neighbours=neighbours,
            )
            for point in points
            if point.gpcs == gpcs
        )
        if rows:
            profile = find_profile(A100_80, name)
            assert profile is not None
            place = slice_class(A100_80, profile, PRODUCT)
            yield Measured(digest(model), place, LatencyProfile(rows))


def _points(path: Path, clean: bool) -> Iterator[Point]:
    for where, row in _rows(path, _PROFILE_COLUMNS):
        gpcs, batch, processes = (int(_number(where, row, name)) for name in _PROFILE_COLUMNS[:3])
        if gpcs not in SIZES:
            raise ValueError(f"{where}.{_PROFILE_COLUMNS[0]}: must be one of {SIZES}, found {gpcs}")
        rate, seconds = (_number(where, row, name) for name in _PROFILE_COLUMNS[3:])
        out_of_memory = not (rate and seconds)
        if out_of_memory or processes > MOST_PROCESSES:
            continue
        if not (clean and suspicious(path.stem, batch)):
            yield Point(gpcs, batch, processes, rate * processes, seconds * 1e3)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, row) of a CSV file that has to have ``columns``."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise DataMissing(f"ParvaGPU's data: {path} is missing") from None
    reader = csv.DictReader(text.splitlines())
    if not set(columns) <= set(reader.fieldnames or ()):
        raise ValueError(f"{path}: must have the columns {', '.join(columns)}")
    for row in reader:
        yield f"{path}:{reader.line_num}", row


def _number(where: str, row: dict[str, str], column: str) -> float:
    text = row[column]
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = float("nan")
    if not (isfinite(number) and number >= 0):
        raise ValueError(f"{where}.{column}: must be a number >= 0, found {text!r}")
    return number
