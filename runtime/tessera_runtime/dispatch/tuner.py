"""One variant of a member: built, checked against the untuned model, and measured in turns with it.

On the share that serves it is built, where it needs that, by a worker of its own; there its answers are checked. Then both are
loaded beside each other on every share that was asked for, and run one after the other, never at once: with full batches back to
back, in an order that alternates from round to round. So both have the same cores in the same minutes, and what else the machine
does then hits both.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from tessera_runtime.artefacts import ArtefactRefused, ArtefactStore, key_of
from tessera_runtime.dispatch.arena import InputArena
from tessera_runtime.dispatch.measured import Bench, Measured, Noise, batch_of, limit
from tessera_runtime.dispatch.mps import MpsServers
from tessera_runtime.dispatch.processes import place_of
from tessera_runtime.dispatch.workers import LoadFailed, OpenedLane, WorkerLost, WorkerPool
from tessera_runtime.target import DeviceTarget, TuneCell, TuneOutcome, TuneRequest
from tessera_runtime.worker import messages as m

WARM_S = 0.05
"""Seconds that either is run before its turn: the other has had the caches."""

MOST_AT_ONCE = 16
"""Requests under way: each may have three processes with a model."""

NOT_FINITE = 1e9
"""Difference of an answer that is infinite or no number where the untuned one is a number."""

UNKNOWN = -1.0


async def tune(
    pool: WorkerPool,
    mps: MpsServers,
    arena: InputArena,
    store: ArtefactStore,
    request: TuneRequest,
) -> TuneOutcome:
    """What became of the variant; that it fails is an outcome too. Cancelled, it ends its processes first.

    Raises LoadFailed where it is the untuned model that cannot be run, WorkerLost, Overloaded.
    """
    if not request.devices or not request.batches:
        raise LoadFailed(
            "devices, batches: one or more of each are needed, the serving share first"
        )
    measured = Measured(request.member, request.inputs, request.outputs, request.hang_s)
    session = _Session(lambda: Bench(pool, mps, arena, measured), store, measured, request)
    started = time.monotonic()
    try:
        await session.build()
        session.build_s = time.monotonic() - started
        await session.compare()
    except _VariantFailed as error:
        return session.outcome(str(error))
    return session.outcome("")


class _VariantFailed(Exception):
    """It could not be built, loaded or run; the text is for the user."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """One way in one round of a cell."""

    p50_ms: float
    p99_ms: float
    throughput: float


class _Session:
    def __init__(
        self,
        bench: Callable[[], Bench],
        store: ArtefactStore,
        measured: Measured,
        request: TuneRequest,
    ) -> None:
        self._bench = bench
        self._store = store
        self._measured = measured
        self._request = request
        self.build_s = 0.0
        self._key = ""
        self._engine = ""
        self._error = UNKNOWN
        self._cells: list[TuneCell] = []

    def outcome(self, problem: str) -> TuneOutcome:
        return TuneOutcome(
            variant=self._request.variant,
            key=self._key,
            engine=self._engine,
            problem=problem,
            error=self._error,
            cells=tuple(self._cells),
            build_s=round(self.build_s, 3),
        )

    async def build(self) -> None:
        """Have the artefact in the store, where the variant needs one."""
        request = self._request
        try:
            key = key_of(request.member, request.inputs, request.devices[0], request.variant)
        except ValueError as error:
            raise _VariantFailed(str(error)) from error
        with self._store.found(key) as there:
            if key and there is None:
                await self._build(key)
        self._key = key

    async def _build(self, key: str) -> None:
        bench = self._bench()
        place = place_of(self._request.devices[0])
        if place.kind == "cpu":
            # Compilers take more than models do: what they may take is not what was granted to serve.
            place = replace(place, memory_mib=0)
        artefact = -1
        try:
            worker = await bench.worker(place)
            async with limit(self._request.build_limit_s, "building"):
                self._engine, artefact = await worker.build(
                    self._measured.load(self._request.variant)
                )
            await bench.close()  # nobody is left who could write into the file
            await asyncio.to_thread(self._store.keep, key, artefact)
        except (LoadFailed, WorkerLost, ArtefactRefused, OSError) as error:
            raise _VariantFailed(f"not built: {error}") from error
        finally:
            await bench.close()
            if artefact >= 0:
                os.close(artefact)

    async def compare(self) -> None:
        """Check the answers on the serving share; measure on all, unless they differ too much."""
        with self._store.found(self._key) as artefact:
            for index, device in enumerate(self._request.devices):
                bench = self._bench()
                try:
                    pair = await self._load(bench, device, artefact)
                    if index == 0:
                        self._error = await self._check(bench, pair)
                        if self._error > self._request.tolerance:
                            return
                    for batch in pair.batches:
                        self._cells.append(await self._measure(bench, pair, index, batch))
                finally:
                    await bench.close()

    async def _load(self, bench: Bench, device: DeviceTarget, artefact: int | None) -> _Pair:
        place = place_of(device)
        wanted = max(self._request.batches)
        worker = await bench.worker(place)
        loaded = await bench.load(worker)
        largest = min(wanted, loaded.max_rows or wanted)
        untuned = await bench.lane(worker, loaded, largest)
        with _of_variant():
            worker = await bench.worker(place)
            tuned = await bench.load(worker, self._request.variant, artefact)
            self._engine = tuned.engine
            variant = await bench.lane(worker, tuned, largest)
        if (tuned.inputs, tuned.outputs) != (loaded.inputs, loaded.outputs):
            raise _VariantFailed("its inputs or outputs are others than those of the untuned model")
        batches = sorted({min(batch, largest) for batch in self._request.batches})
        return _Pair(untuned, variant, bench.noise(loaded, largest), tuple(batches))

    async def _check(self, bench: Bench, pair: _Pair) -> float:
        """The worst difference, over batches of one, of an odd number and of every size that is measured."""
        worst = 0.0
        for rows in sorted({1, min(3, pair.batches[-1]), *pair.batches}):
            run = batch_of(pair.inputs, rows)
            wanted = await bench.answers(pair.untuned, run)
            with _of_variant():
                found = await bench.answers(pair.variant, run)
            worst = max(worst, difference(wanted, found))
        return worst

    async def _measure(self, bench: Bench, pair: _Pair, device: int, batch: int) -> TuneCell:
        rounds = max(1, self._request.rounds)
        run = batch_of(pair.inputs, batch)
        plain: list[_Turn] = []
        tuned: list[_Turn] = []

        async def untuned_turn() -> None:
            plain.append(await self._turn(bench, pair.untuned, run))

        async def variant_turn() -> None:
            with _of_variant():
                tuned.append(await self._turn(bench, pair.variant, run))

        for number in range(rounds):
            both = (untuned_turn, variant_turn)
            for turn in both if number % 2 == 0 else both[::-1]:
                await turn()
        own, other = _medians(tuned), _medians(plain)
        return TuneCell(
            device,
            batch,
            1,
            own.p50_ms,
            own.p99_ms,
            own.throughput,
            other.p50_ms,
            other.p99_ms,
            other.throughput,
            rounds,
            sum(mine.p99_ms < its.p99_ms for mine, its in zip(tuned, plain, strict=True)),
            sum(mine.throughput > its.throughput for mine, its in zip(tuned, plain, strict=True)),
        )

    async def _turn(self, bench: Bench, lane: OpenedLane, run: m.Run) -> _Turn:
        await bench.drive(lane, run, WARM_S)  # not counted
        started = time.perf_counter()
        times = await bench.drive(lane, run, self._request.cell_s / max(1, self._request.rounds))
        elapsed = time.perf_counter() - started
        return _Turn(
            float(np.percentile(times, 50)),
            float(np.percentile(times, 99)),
            len(run.rows) * len(times) / elapsed,
        )


@dataclass(frozen=True, slots=True)
class _Pair:
    """The untuned model and the variant, warm on one share."""

    untuned: OpenedLane
    variant: OpenedLane
    inputs: Sequence[Noise]
    batches: tuple[int, ...]


@contextmanager
def _of_variant() -> Iterator[None]:
    """What fails within is the variant."""
    try:
        yield
    except (LoadFailed, WorkerLost) as error:
        raise _VariantFailed(str(error)) from error


def _medians(turns: Sequence[_Turn]) -> _Turn:
    return _Turn(
        median(turn.p50_ms for turn in turns),
        median(turn.p99_ms for turn in turns),
        median(turn.throughput for turn in turns),
    )


def difference(wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """The worst of all outputs: of numbers the largest difference, over the largest of the wanted ones; of integers, truth
    values and bytes, the part of elements that differ.
    """
    return max((_difference(array, found[name]) for name, array in wanted.items()), default=0.0)


def _difference(wanted: np.ndarray, found: np.ndarray) -> float:
    if wanted.shape != found.shape:
        return NOT_FINITE
    if not wanted.size:
        return 0.0
    if wanted.dtype.kind != "f":
        return float(np.mean(wanted != found))
    one, other = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return NOT_FINITE
    if not np.isfinite(other[finite]).all():
        return NOT_FINITE
    if not finite.any():
        return 0.0
    scale = float(np.abs(one[finite]).max())
    off = float(np.abs(one[finite] - other[finite]).max())
    return min(NOT_FINITE, off / (scale or 1.0))
