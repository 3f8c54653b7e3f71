"""What stops a cut, and that a cut goes on from wherever it stopped. On a stand-in: no GPU fails to order."""

from __future__ import annotations

import os
from collections.abc import Callable

import pynvml
import pytest

from support.nvml_stand_in import NO_TABLE, StandIn, enable_mig, outside, run_on
from tessera_core.gpu.geometry import Geometry, GeometryError, Placement, canonical
from tessera_core.gpu.mig import GpuModel
from tessera_core.gpu.recut import Create
from tessera_core.gpu.tables import A30, A100_80, B200_180, H100_80_SXM
from tessera_runtime.partitioner.cut import RETRY_S, cut
from tessera_runtime.partitioner.errors import (
    DriverLost,
    InUse,
    NoRoom,
    NotPartitionable,
    NotPermitted,
    OutOfTime,
    PartitionError,
    ResetRequired,
)
from tessera_runtime.partitioner.gpu import MigGpu, Slice

Machine = Callable[..., StandIn]

UUID = "GPU-00000000-0000-4000-8000-000000000001"
"""Of a stand-in's first GPU."""

THIRDS = (Placement("3g.40gb", 0), Placement("2g.20gb", 4), Placement("1g.10gb", 6))
HALVES = (Placement("3g.40gb", 0), Placement("3g.40gb", 4))
ME = os.getpid()


def geometry(slices: tuple[Slice, ...]) -> Geometry:
    return canonical(each.placement for each in slices)


def run_in(slice_: Slice, pid: int, *, listed: bool = True) -> None:
    """A process starts on the slice."""
    gpu = pynvml.nvmlDeviceGetHandleByUUID(UUID)
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        if pynvml.nvmlDeviceGetUUID(device) == slice_.uuid:
            run_on(device, pid, listed=listed)
            return
    raise AssertionError(f"no MIG device {slice_.uuid}")


# The mode


@pytest.mark.parametrize("model", [H100_80_SXM, B200_180], ids=lambda model: model.name)
def test_mig_is_switched_on_where_that_needs_no_reset(machine: Machine, model: GpuModel) -> None:
    machine(model)
    widest = Placement(model.profiles[0].name, 0)
    with MigGpu(UUID) as gpu:
        assert not gpu.mig_enabled()
        assert geometry(cut(gpu, (widest,), patience_s=10)) == (widest,)
        assert gpu.mig_enabled()


@pytest.mark.parametrize("model", [A100_80, A30], ids=lambda model: model.name)
def test_before_hopper_nothing_is_switched_and_the_remedy_is_told(
    machine: Machine, model: GpuModel
) -> None:
    machine(model)
    with MigGpu(UUID) as gpu:
        with pytest.raises(ResetRequired, match=f"nvidia-smi -i {UUID} --gpu-reset"):
            cut(gpu, (Placement(model.profiles[0].name, 0),), patience_s=10)
        assert pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByUUID(UUID)) == [0, 0]


def test_a_used_gpu_keeps_its_mode_and_its_processes_are_named(machine: Machine) -> None:
    machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        handle = pynvml.nvmlDeviceGetHandleByUUID(UUID)
        run_on(handle, ME)
        with pytest.raises(InUse, match=f"processes {ME} \\(") as caught:
            cut(gpu, HALVES, patience_s=10)
        assert [each.pid for each in caught.value.processes] == [ME]
        assert pynvml.nvmlDeviceGetMigMode(handle) == [0, 0]


def test_nothing_wanted_of_an_uncut_gpu_leaves_its_mode(machine: Machine) -> None:
    machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        assert cut(gpu, (), patience_s=10) == ()
        assert not gpu.mig_enabled()


def test_an_illegal_goal_changes_nothing(machine: Machine) -> None:
    machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        with pytest.raises(GeometryError, match="share memory slices"):
            cut(gpu, (Placement("3g.40gb", 4), Placement("2g.20gb", 4)), patience_s=10)
        assert not gpu.mig_enabled()


# What is in use


def test_what_must_go_and_is_in_use_stays_and_its_processes_are_named(machine: Machine) -> None:
    machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        before = cut(gpu, THIRDS, patience_s=10)
        run_in(before[0], 10**7)
        run_in(before[1], ME)
        with pytest.raises(InUse, match=r"destroy 2g\.20gb@4: in use by processes") as caught:
            cut(gpu, HALVES, patience_s=0)
        assert [each.pid for each in caught.value.processes] == [ME]
        assert caught.value.processes[0].name
        assert gpu.slices() == before


def test_use_of_what_stays_is_no_hindrance(machine: Machine) -> None:
    machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        before = cut(gpu, THIRDS, patience_s=10)
        run_in(before[0], ME)
        after = cut(gpu, HALVES, patience_s=10)
        assert geometry(after) == HALVES
        assert after[0] == before[0]


def test_a_process_that_ends_within_patience_is_waited_for(machine: Machine) -> None:
    machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        run_in(cut(gpu, THIRDS, patience_s=10)[1], ME)
        waits = []

        def pause(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                outside("stand_in_end", ME)

        after = cut(gpu, HALVES, patience_s=10, clock=lambda: 0.0, pause=pause)
        assert geometry(after) == HALVES
        assert len(waits) == 3


def test_a_process_that_does_not_end_is_waited_for_no_longer_than_patience(
    machine: Machine,
) -> None:
    machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        run_in(cut(gpu, THIRDS, patience_s=10)[1], ME)
        now = [0.0]

        def pause(seconds: float) -> None:
            now[0] += seconds

        with pytest.raises(InUse):
            cut(gpu, HALVES, patience_s=10, clock=lambda: now[0], pause=pause)
        assert 10 <= now[0] < 10 + 2 * RETRY_S


def test_a_client_that_is_not_listed_is_told_as_such(machine: Machine) -> None:
    machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        handle = pynvml.nvmlDeviceGetHandleByUUID(UUID)
        run_on(handle, ME, listed=False)
        with pytest.raises(
            InUse, match="switch MIG on: in use by a client that NVML does not list"
        ):
            cut(gpu, THIRDS, patience_s=10)
        outside("stand_in_end", ME)
        before = cut(gpu, THIRDS, patience_s=10)
        run_in(before[1], ME, listed=False)
        with pytest.raises(InUse, match=r"destroy 2g\.20gb@4: in use by a client"):
            cut(gpu, HALVES, patience_s=0)
        assert gpu.slices() == before


# What the driver says

FAILURES = [
    ("nvmlInitWithFlags 1 9 fail 9", DriverLost, "initialise NVML: Driver Not Loaded"),
    ("* 12 99999 fail 15", DriverLost, "GPU is lost"),
    ("nvmlDeviceGetHandleByUUID 1 9 fail 6", NotPartitionable, "Not Found"),
    ("nvmlDeviceGetMigMode 1 9 fail 3", NotPartitionable, "MIG mode: Not Supported"),
    ("nvmlDeviceGetGpuInstances 1 9 fail 4", NotPermitted, "needs CAP_SYS_ADMIN"),
    ("nvmlDeviceCreateGpuInstanceWithPlacement 2 2 fail 23", NoRoom, "what else cuts this GPU"),
    ("nvmlGpuInstanceCreateComputeInstance 2 2 fail 23", NoRoom, "create 2g.20gb@4"),
    ("nvmlDeviceSetMigMode 1 1 fail 19", InUse, "switch MIG on: in use by a client"),
    ("nvmlDeviceSetMigMode 1 1 fail 999", PartitionError, "switch MIG on: Unknown Error"),
]


@pytest.mark.parametrize(("faults", "error", "told"), FAILURES, ids=[each[0] for each in FAILURES])
def test_a_failing_driver_is_told_and_the_next_call_goes_on(
    machine: Machine, faults: str, error: type[PartitionError], told: str
) -> None:
    machine(H100_80_SXM, faults=faults)
    with pytest.raises(error, match=told) as caught:
        cut_anew(THIRDS)
    assert UUID in str(caught.value)
    assert type(caught.value) is error
    machine(H100_80_SXM)
    assert geometry(cut_anew(THIRDS)) == canonical(THIRDS)


def cut_anew(wanted: Geometry) -> tuple[Slice, ...]:
    with MigGpu(UUID) as gpu:
        return cut(gpu, wanted, patience_s=10)


def test_an_unknown_board_is_told(machine: Machine) -> None:
    machine(NO_TABLE)
    with pytest.raises(NotPartitionable, match="no MIG table for 'NVIDIA Unheard-Of'"):
        cut_anew(())


def test_an_unknown_gpu_is_told(machine: Machine) -> None:
    machine(A30)
    with MigGpu("GPU-no-such") as gpu, pytest.raises(NotPartitionable, match="GPU-no-such"):
        gpu.slices()


def test_a_place_that_the_driver_lacks_is_told_with_those_that_it_has(machine: Machine) -> None:
    """As B200's places, which are inferred, may turn out to be."""
    machine(A30)
    with MigGpu(UUID) as gpu:
        enable_mig(pynvml.nvmlDeviceGetHandleByUUID(UUID))
        with pytest.raises(NotPartitionable, match=r"no 2g\.12gb@1, but .*2g\.12gb at \(0, 2\)"):
            gpu.create(Placement("2g.12gb", 1))


def test_a_slow_driver_uses_up_the_patience_and_the_rest_is_told(machine: Machine) -> None:
    machine(H100_80_SXM, faults="nvmlDeviceCreateGpuInstanceWithPlacement 1 1 slow 20")
    with MigGpu(UUID) as gpu:
        with pytest.raises(OutOfTime, match=r"left to do: create 2g\.20gb@4, create") as caught:
            cut(gpu, THIRDS, patience_s=0.02)
        assert caught.value.steps == (Create(THIRDS[1]), Create(THIRDS[2]))
        assert geometry(gpu.slices()) == THIRDS[:1]
        assert geometry(cut(gpu, THIRDS, patience_s=10)) == canonical(THIRDS)


def test_a_goal_of_one_step_is_reached_however_late(machine: Machine) -> None:
    machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        assert geometry(cut(gpu, HALVES[:1], patience_s=0)) == HALVES[:1]
