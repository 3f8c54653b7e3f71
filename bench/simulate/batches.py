"""What single batches took, as the server reports it while it is under load: its statistics tell means only.

A report holds the last few batches, so some are missed where they follow each other faster than reports are asked for.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bench.dataplane.running import ServerFailed

from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.supervisor import control_path
from tessera_runtime.target import BatchReport, MemberReport, ServerReport

EVERY_S = 0.1
"""Reports cost the dispatcher little time, and are asked for so seldom that it is nothing."""
SELDOM = 20
"""Fewer batches of one size say little about it."""


@contextmanager
def watching(directory: Path) -> Iterator[list[BatchReport]]:
    """The batches of the one member of a server, in a list that is complete at the end. Raises ServerFailed."""
    seen: list[BatchReport] = []
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(lambda: asyncio.run(_watch(directory, over, seen)))
        try:
            yield seen
        finally:
            over.set()
        try:
            watched.result()
        except ControlError as error:
            raise ServerFailed(f"no report of batches: {error}") from error


async def _watch(directory: Path, over: threading.Event, seen: list[BatchReport]) -> None:
    control = ControlClient(str(control_path(directory)))
    try:
        before = _member(await control.report())
        while not over.is_set():
            await asyncio.sleep(EVERY_S)
            now = _member(await control.report())
            seen += fresh(before, now)
            before = now
    finally:
        await control.close()


def _member(report: ServerReport) -> MemberReport:
    ((member,),) = (each.members for each in report.services)
    return member


def fresh(before: MemberReport, now: MemberReport) -> tuple[BatchReport, ...]:
    """The batches of ``now`` that ``before`` has not told of."""
    ran = now.batches - before.batches
    return now.recent[-ran:] if ran else ()


def noise_of(
    batches: Sequence[BatchReport], batch_ms: Sequence[float]
) -> tuple[tuple[float, ...], ...]:
    """What batches took over ``batch_ms`` of their size, for every size; seldom seen ones have those of all.

    Raises ServerFailed where none was seen.
    """
    if not batches:
        raise ServerFailed("no batch was reported")
    sizes = np.array([each.rows for each in batches])
    factors = np.array([each.ms for each in batches]) / np.asarray(batch_ms)[sizes - 1]
    by_size = [factors[sizes == size] for size in range(1, len(batch_ms) + 1)]
    return tuple(tuple((mine if len(mine) >= SELDOM else factors).tolist()) for mine in by_size)
