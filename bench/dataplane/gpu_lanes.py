"""What several lanes of a small network do beside one: in one process, in several, in several under MPS.

Lanes in one process are how Tessera places instances on a GPU. What processes would do is reported beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

from bench.dataplane.children import Child, ChildFailed
from bench.dataplane.closed import Bench
from bench.dataplane.mps import MpsFailed, mps, servers
from bench.harness import Figures, Row, Variant, alternate
from bench.peers.base import WORKS

from tessera_runtime.mps import control

LANES = "bench.dataplane.lanes"

WORK_BATCHES = (("cnn", 8), ("resnet18", 1), ("resnet18", 4))
"""Networks whose last layers have work for a few of a GPU's many processors, and rows per batch."""

COUNT = 4

ONE_PROCESS, PROCESSES, UNDER_MPS = "1 process", f"{COUNT} processes", f"{COUNT} processes, MPS"

NOTHING: Figures = {"rate_per_s": float("nan")}


class Where(Protocol):
    """As :class:`bench.dataplane.gpu.Place`."""

    @property
    def kind(self) -> str: ...

    @property
    def server_cores(self) -> tuple[int, ...]: ...

    @property
    def labels(self) -> dict[str, str]: ...


def lane_rows(
    bench: Bench, place: Where, work_batches: Sequence[tuple[str, int]] = WORK_BATCHES
) -> list[Row]:
    for name, _ in work_batches:
        bench.export(WORKS[name])
    rows: list[Row] = []
    with ExitStack() as stack:

        def children(count: int, environment: dict[str, str] | None = None) -> list[Child]:
            where = (LANES, [str(bench.models), place.kind], place.server_cores, environment)
            return [stack.enter_context(Child(*where)) for _ in range(count)]

        groups = {ONE_PROCESS: children(1), PROCESSES: children(COUNT)}
        if control():
            try:
                clients = dict(stack.enter_context(mps(bench.path("mps"), place.server_cores)))
                groups[UNDER_MPS] = children(COUNT, clients)
            except MpsFailed as error:
                rows.append(_without_mps(bench, place, str(error)))
        else:
            rows.append(_without_mps(bench, place, "nvidia-cuda-mps-control is not installed"))
        for name, batch in work_batches:
            own = place.labels | {"work": name, "batch": str(batch)}
            variants = [
                Variant(
                    own | {"in": where, "lanes": str(lanes)},
                    partial(together, bench, group, lanes, name, batch),
                )
                for where, group in groups.items()
                for lanes in ((1, COUNT) if where == ONE_PROCESS else (COUNT,))
            ]
            rows += alternate(variants, bench.rounds, bench.says)
        if UNDER_MPS in groups and not servers(clients):
            bench.problem("gpu: the processes under MPS were no clients of it: it has no server")
    return rows


def together(bench: Bench, group: Sequence[Child], lanes: int, work: str, batch: int) -> Figures:
    """Rows per second of ``lanes`` lanes, divided evenly among the processes of ``group``."""
    asked = {"work": work, "batch": batch}
    each = lanes // len(group)
    try:
        all_answer(group, **asked, open=each)  # before any is measured
        rates = all_answer(group, **asked, lanes=each, seconds=bench.seconds)
    except ChildFailed as error:
        bench.problem(f"gpu: {lanes} lanes in {len(group)} processes, {work}: {error}")
        return NOTHING
    rate = sum(float(answer["rows_per_s"]) for answer in rates)
    bench.says(
        f"gpu {lanes} lanes in {len(group)} processes, {work}, {batch} rows: {rate:,.0f} rows/s"
    )
    return {"rate_per_s": rate}


def all_answer(group: Sequence[Child], **question: Any) -> list[dict[str, Any]]:
    """Ask all at once, and hear all out. Raises ChildFailed with what went wrong first."""
    errors: list[ChildFailed] = []
    asked, answers = [], []
    for child in group:
        try:
            child.send(**question)
            asked.append(child)
        except ChildFailed as error:
            errors.append(error)
    for child in asked:
        try:
            answers.append(child.receive())
        except ChildFailed as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return answers


def _without_mps(bench: Bench, place: Where, why: str) -> Row:
    bench.problem(f"gpu: {UNDER_MPS}: {why}")
    return Row(place.labels | {"in": UNDER_MPS, "problem": why}, ())
