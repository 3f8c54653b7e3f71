"""What to ask the server in order to measure a model, and what is told of the answer: pure.

Local mode and the agent of a cluster measure the same cells in the same way, so that a profile means the same
wherever it was taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tessera_core.api.members import Member
from tessera_core.api.modelservice import ModelServiceSpec
from tessera_core.api.runtimenode import BatchTime
from tessera_core.perf import LatencyProfile, ProfileRow
from tessera_core.plan.state import CPU
from tessera_runtime.agent.translate import LocalModel, device_piece, member_file, tensors
from tessera_runtime.target import (
    DeviceTarget,
    ProfileReport,
    ProfileRequest,
    TuneOutcome,
    TuneRequest,
)

CELL_S = 0.4
"""Seconds of measuring per (batch, instances) cell: some 40 batches of 10 ms, enough for a median within a
few percent; the tail of a batch time comes from the same runs."""

PROFILE_TIMEOUT_S = 600.0

HANG_S = 60.0
"""A batch that takes longer while it is measured is hung."""

TUNING_CELL_S = 2.0
"""Seconds of measuring a variant per size of batch, share and way: some hundred batches of 10 ms, for a p99."""
TUNING_ROUNDS = 5
"""Turns that a variant and the untuned model take; medians over them count."""
BUILD_S = 900.0
"""Most that building a variant may take: a search over kernels is minutes."""
_BRIEFLY_S = 0.05
"""Seconds of measuring of what is only built and checked."""

GPU_INSTANCES = (1, 2, 4)
"""Instance counts that are measured on a GPU."""


def profile_request(
    member: Member,
    spec: ModelServiceSpec,
    model: LocalModel,
    device: DeviceTarget,
    *,
    cpu_instances: Sequence[int] = (1,),
    variant: str = "",
    hang_s: float,
    allow_code: bool,
) -> ProfileRequest:
    """Measure ``member`` on ``device``; ``cpu_instances`` are the counts that are measured there on a CPU.
    ``hang_s``: a batch that takes longer ends the measurement.
    """
    largest = member.batch.max
    return ProfileRequest(
        device=device,
        member=member_file(member, model, allow_code=allow_code),
        inputs=tensors(spec.inputs),
        outputs=tensors(spec.outputs),
        batches=batch_sizes(largest),
        instances=tuple(cpu_instances) if device_piece(device.id)[0] == CPU else GPU_INSTANCES,
        cell_s=CELL_S,
        most_ms=1e3 * spec.slo.objectives[0].target_s,
        hang_s=hang_s,
        variant=variant,
    )


def tune_request(
    member: Member,
    spec: ModelServiceSpec,
    model: LocalModel,
    variant: str,
    devices: Sequence[DeviceTarget],
    batches: Iterable[int],
    *,
    tolerance: float,
    allow_code: bool,
) -> TuneRequest:
    """Try ``variant`` on ``devices``: the share that serves, then others. ``batches``: rows of the batches to measure."""
    return TuneRequest(
        member=member_file(member, model, allow_code=allow_code),
        inputs=tensors(spec.inputs),
        outputs=tensors(spec.outputs),
        variant=variant,
        tolerance=tolerance,
        devices=tuple(devices),
        batches=tuple(sorted(set(batches))),
        cell_s=TUNING_CELL_S,
        rounds=TUNING_ROUNDS,
        build_limit_s=BUILD_S,
        hang_s=HANG_S,
    )


def build_request(
    member: Member,
    spec: ModelServiceSpec,
    model: LocalModel,
    variant: str,
    device: DeviceTarget,
    *,
    allow_code: bool,
) -> TuneRequest:
    """Build ``variant`` for ``device`` where it was not, check its answers there, and measure next to nothing."""
    tolerance = spec.tuning.tolerance
    found = tune_request(
        member, spec, model, variant, [device], [1], tolerance=tolerance, allow_code=allow_code
    )
    return msgspec.structs.replace(found, cell_s=_BRIEFLY_S, rounds=1)


def why_not(outcome: TuneOutcome, tolerance: float) -> str:
    """Why what was built is not to be run; empty if it is."""
    if outcome.problem:
        return outcome.problem
    if not outcome.error <= tolerance:
        return (
            f"answers differ by {outcome.error:.2g} of their scale here; allowed: {tolerance:.2g}"
        )
    return ""


def profile_rows(report: ProfileReport) -> tuple[ProfileRow, ...]:
    """The measured cells in the words of the API."""
    return tuple(
        ProfileRow(
            batch=cell.batch,
            instances=cell.instances,
            p50_ms=cell.p50_ms,
            p99_ms=max(cell.p50_ms, cell.p99_ms),
            throughput=cell.throughput,
            memory_mib=cell.memory_mib,
        )
        for cell in report.cells
    )


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Powers of two up to ``largest``, and ``largest``, rows."""
    sizes = [1]
    while sizes[-1] * 2 <= largest:
        sizes.append(sizes[-1] * 2)
    return (*sizes, largest) if sizes[-1] != largest else tuple(sizes)


def batch_time(profile: LatencyProfile, instances: int) -> BatchTime:
    """Batch time for the drop rule: on the slow side, so that what is kept is in time."""
    line = profile.slow_line(instances)
    return BatchTime(alpha_ms=line.alpha_ms, tau0_ms=line.tau0_ms)
