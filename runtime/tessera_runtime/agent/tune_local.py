"""Tuning the models of ModelServices for a share of this machine's cores, by several workers at once.

Each worker has cores of its own: a share like the one that serves, and as many beside it as half and twice the share take. The
candidates of a model are spread over them; what they find is merged and judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tessera_core.api.members import Member
from tessera_core.api.modelservice import ModelServiceSpec
from tessera_core.tuning.shards import merge, share_out
from tessera_core.tuning.variants import UNTUNED, candidates
from tessera_core.tuning.verdict import Figures, Paired, Verdict, best, judge
from tessera_runtime.agent.choices import Choice, installed
from tessera_runtime.agent.translate import LocalModel, tensors
from tessera_runtime.control import ControlClient
from tessera_runtime.target import DeviceTarget, MemberTarget, TuneOutcome, TuneRequest

CELL_S = 1.0
"""Seconds of measuring per size of batch, share and way."""

ROUNDS = 5
BUILD_S = 900.0
HANG_S = 60.0
MIDDLE_BATCH = 8
"""Measured beside single rows and the largest batch."""

Told = Callable[[str, int, int], None]
"""(variant that is done, how many are, in all)"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one worker tunes."""

    devices: tuple[DeviceTarget, ...]
    """The serving share first, then half and twice of it, where there are such."""
    shares: tuple[float, ...]
    """Of each, over the first."""


def places(cores: Sequence[int], serving: int, workers: int, memory_mib: int) -> tuple[Place, ...]:
    """Disjoint parts of ``cores`` for so many workers that tune for ``serving`` cores. Raises ValueError."""
    each = len(cores) // workers if workers > 0 else 0
    if workers < 1 or not 1 <= serving <= each:
        raise ValueError(
            f"--cores {serving} with --workers {workers}: this machine has {len(cores)} cores, and each worker "
            "needs as many as it tunes for"
        )
    return tuple(
        _place(cores[first : first + each], serving, memory_mib)
        for first in range(0, each * workers, each)
    )


def _place(cores: Sequence[int], serving: int, memory_mib: int) -> Place:
    sizes = [serving]
    if serving > 1:
        sizes.append(serving // 2)
    if 2 * serving <= len(cores):
        sizes.append(2 * serving)
    devices = tuple(
        DeviceTarget(
            f"tune-{'-'.join(map(str, cores[:size]))}",
            "cpu",
            tuple(cores[:size]),
            threads=size,
            memory_mib=memory_mib,
        )
        for size in sizes
    )
    return Place(devices, tuple(size / serving for size in sizes))


async def tune(
    control: ControlClient,
    member: Member,
    spec: ModelServiceSpec,
    model: LocalModel,
    where: Sequence[Place],
    told: Told,
    *,
    compiling: bool = True,
    cell_s: float = CELL_S,
) -> tuple[tuple[Verdict, TuneOutcome], ...]:
    """Every candidate of ``member`` with what became of it, by their texts. ``compiling``: also what takes minutes to
    build. Raises ControlError.
    """
    tuning = spec.tuning
    wanted = [
        str(each)
        for each in candidates(member.model.format, "cpu", tuning.precisions, installed())
        if compiling or not each.compiles
    ]
    found: list[dict[str, TuneOutcome]] = [{} for _ in where]

    async def work(place: Place, mine: Sequence[str], into: dict[str, TuneOutcome]) -> None:
        client = control.another()
        try:
            for variant in mine:
                request = _request(member, spec, model, place, variant, cell_s)
                into[variant] = await client.tune(request, _patience_s(request))
                told(variant, sum(map(len, found)), len(wanted))
        finally:
            await client.close()

    shares = zip(where, share_out(wanted, len(where)), found, strict=True)
    tasks = [asyncio.create_task(work(place, mine, into)) for place, mine, into in shares]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return tuple(
        (verdict(outcome, where[0].shares, tuning.tolerance), outcome)
        for outcome in merge(*found).values()
    )


def verdict(outcome: TuneOutcome, shares: Sequence[float], tolerance: float) -> Verdict:
    """What follows from an outcome. ``shares``: of its devices, over the one that serves."""
    return judge(
        outcome.variant, outcome.problem, outcome.error, tolerance, paired(outcome, shares)
    )


def paired(outcome: TuneOutcome, shares: Sequence[float]) -> tuple[Paired, ...]:
    return tuple(
        Paired(
            shares[cell.device],
            cell.batch,
            cell.instances,
            Figures(cell.p50_ms, cell.p99_ms, cell.throughput),
            Figures(cell.untuned_p50_ms, cell.untuned_p99_ms, cell.untuned_throughput),
            cell.turns,
            cell.p99_wins,
            cell.throughput_wins,
        )
        for cell in outcome.cells
    )


def choice(digest: str, place: str, tried: Sequence[tuple[Verdict, TuneOutcome]]) -> Choice:
    """What serves from now on."""
    won = best([verdict for verdict, _ in tried])
    if won is None:
        return Choice(digest, place, UNTUNED, "", 0.0, "nothing was faster and answered alike")
    outcomes: Mapping[str, TuneOutcome] = {outcome.variant: outcome for _, outcome in tried}
    outcome = outcomes[won.variant]
    return Choice(digest, place, won.variant, outcome.engine, outcome.error, won.words)


def _request(
    member: Member,
    spec: ModelServiceSpec,
    model: LocalModel,
    place: Place,
    variant: str,
    cell_s: float,
) -> TuneRequest:
    largest = member.batch.max
    return TuneRequest(
        member=MemberTarget(
            name=member.name,
            path=model.path,
            format=member.model.format.value,
            digest=model.digest,
            max_batch=largest,
            cap=largest,
            instances=(),
        ),
        inputs=tensors(spec.inputs),
        outputs=tensors(spec.outputs),
        variant=variant,
        tolerance=spec.tuning.tolerance,
        devices=place.devices,
        batches=tuple(sorted({1, min(MIDDLE_BATCH, largest), largest})),
        cell_s=cell_s,
        rounds=ROUNDS,
        build_limit_s=BUILD_S,
        hang_s=HANG_S,
    )


def _patience_s(request: TuneRequest) -> float:
    """More than the request can take by its own limits."""
    cells = len(request.devices) * len(request.batches)
    return request.build_limit_s + 600.0 + cells * (4 * request.hang_s + 4 * request.cell_s)
