"""What a process without privilege sees of a GPU that is cut: on a stand-in of the driver's library, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pynvml
import pytest

from support.nvml_stand_in import NO_TABLE, UNPRIVILEGED, StandIn, enable_mig
from tessera_core.gpu.geometry import Placement, layouts, maximal_layouts, violations
from tessera_core.gpu.mig import find_profile
from tessera_core.gpu.tables import A30, A100_80, H100_80_SXM
from tessera_runtime.devices import capabilities
from tessera_runtime.devices.inventory import Gpu, inventory, located, look_again
from tessera_runtime.devices.usage import gpu_usage
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu, Slice

Machine = Callable[..., StandIn]
PATIENCE_S = 30.0


def seen(gpu: MigGpu) -> Gpu:
    return next(each for each in inventory().gpus if each.uuid == gpu.uuid)


def places(slices: tuple[Slice, ...]) -> dict[str, Placement]:
    return {each.uuid: each.placement for each in slices if each.uuid is not None}


def test_every_instance_is_seen_with_the_profile_that_it_was_cut_as(mig_gpu: MigGpu) -> None:
    for wanted in Random(mig_gpu.uuid).sample(layouts(mig_gpu.model), 8):
        real = places(cut(mig_gpu, wanted, patience_s=PATIENCE_S))
        found = seen(mig_gpu)
        assert found.mig_enabled
        assert {each.uuid: each.placement.profile for each in found.slices} == {
            uuid: place.profile for uuid, place in real.items()
        }
        assert violations(mig_gpu.model, [each.placement for each in found.slices]) == ()
        for each in found.slices:
            profile = find_profile(mig_gpu.model, each.placement.profile)
            assert profile is not None
            assert profile.sm_count in (None, each.sm_count)
            assert each.memory_mib == pytest.approx(profile.memory_mib, rel=0.1)


def test_told_where_they_are_slices_are_named_by_their_real_places(mig_gpu: MigGpu) -> None:
    rightmost = max(layouts(mig_gpu.model), key=lambda layout: [each.start for each in layout])
    real = places(cut(mig_gpu, rightmost, patience_s=PATIENCE_S))
    found = located(inventory(), real, {})
    [gpu] = [each for each in found.gpus if each.uuid == mig_gpu.uuid]
    assert {each.uuid: each.placement for each in gpu.slices} == real
    assert [each.name for each in gpu.slices] == [
        str(place) for place in sorted(rightmost, key=lambda each: each.start)
    ]


def test_a_cut_is_seen_when_it_is_looked_for_again(mig_gpu: MigGpu) -> None:
    before = inventory()
    small = min(mig_gpu.model.profiles, key=lambda each: each.memory_slices)
    stays, goes = Placement(small.name, 0), Placement(small.name, 1)
    first = places(cut(mig_gpu, (stays, goes), patience_s=PATIENCE_S))
    between = look_again(before)
    second = places(cut(mig_gpu, (stays,), patience_s=PATIENCE_S))
    after = look_again(between)
    uuids = [
        {each.uuid for gpu in found.gpus if gpu.uuid == mig_gpu.uuid for each in gpu.slices}
        for found in (before, between, after)
    ]
    assert uuids == [set(), set(first), set(second)]


def cut_machine(machine: Machine, faults: str = "") -> str:
    """An H100 that is cut as finely as it can be, which this process then sees with ``faults``; its UUID."""
    machine(H100_80_SXM)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    enable_mig(handle)
    uuid = str(pynvml.nvmlDeviceGetUUID(handle))
    pynvml.nvmlShutdown()
    with MigGpu(uuid) as gpu:
        cut(gpu, max(maximal_layouts(H100_80_SXM), key=len), patience_s=PATIENCE_S)
    machine(H100_80_SXM, faults=faults)
    return uuid


def test_no_privilege_is_needed(machine: Machine) -> None:
    uuid = cut_machine(machine, UNPRIVILEGED)
    with MigGpu(uuid) as gpu, pytest.raises(Exception, match="Insufficient Permissions"):
        gpu.slices()
    [found] = inventory().gpus
    assert len(found.slices) == 7
    assert (found.memory_mib, found.sm_count) == (H100_80_SXM.memory_mib, H100_80_SXM.sm_count)
    assert look_again(inventory()) == inventory()


def test_a_gpu_that_does_not_answer_any_more_stays_as_it_was(machine: Machine) -> None:
    cut_machine(machine)
    before = inventory()
    machine(H100_80_SXM, faults="nvmlDeviceGetMigMode 1 99 fail 15")
    assert look_again(before) == before
    machine(H100_80_SXM, faults="nvmlInitWithFlags 1 99 fail 9")
    assert look_again(before) == before


def test_a_cut_is_seen_beside_a_gpu_that_is_lost(machine: Machine) -> None:
    machine(H100_80_SXM, A30)
    before = inventory()
    with MigGpu(before.gpus[0].uuid) as gpu:
        cut(gpu, (Placement("3g.40gb", 4),), patience_s=PATIENCE_S)
    machine(H100_80_SXM, A30, faults="nvmlDeviceGetHandleByIndex_v2 2 2 fail 15")
    first, second = look_again(before).gpus
    assert [each.placement.profile for each in first.slices] == ["3g.40gb"]
    assert second == before.gpus[1]


def test_an_instance_that_somebody_divided_is_none_of_ours(machine: Machine) -> None:
    machine(A100_80)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    enable_mig(handle)
    with MigGpu(str(pynvml.nvmlDeviceGetUUID(handle))) as gpu:
        (whole,) = cut(gpu, (Placement("3g.40gb", 4),), patience_s=PATIENCE_S)
        instance = pynvml.nvmlDeviceGetGpuInstanceById(handle, whole.gpu_instance)
        pynvml.nvmlComputeInstanceDestroy(
            pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, whole.compute_instance)
        )
    for _ in range(2):
        pynvml.nvmlGpuInstanceCreateComputeInstance(
            instance, pynvml.NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE
        )
    pynvml.nvmlShutdown()
    [found] = inventory().gpus
    assert (found.mig_enabled, found.slices) == (True, ())


def test_a_board_without_a_table_has_no_slices_that_could_be_named(machine: Machine) -> None:
    machine(NO_TABLE, A30)
    pynvml.nvmlInit()
    enable_mig(pynvml.nvmlDeviceGetHandleByIndex(0))
    pynvml.nvmlShutdown()
    unknown, whole = inventory().gpus
    assert (unknown.mig_enabled, unknown.slices) == (True, ())
    assert (whole.mig_enabled, whole.slices) == (False, ())


def test_memory_is_measured_of_slices_where_there_are_some(machine: Machine) -> None:
    cut_machine(machine)
    [gpu] = inventory().gpus
    usages = gpu_usage()
    assert {each.uuid for each in usages} == {each.uuid for each in gpu.slices}
    assert {each.utilisation for each in usages} == {None}
    machine(H100_80_SXM, faults="nvmlDeviceGetMemoryInfo 1 99 fail 15")
    assert gpu_usage() == (), "one that does not answer costs none of the other figures"


def give_nodes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A driver that tells of the rights to instances of the first two GPUs, and a node for each; returns their folder."""
    rights = [
        f"gpu{gpu}/gi{instance}/{part}access"
        for gpu in range(2)
        for instance in range(15)
        for part in ("", *(f"ci{compute}/" for compute in range(8)))
    ]
    minors, nodes = folder / "mig-minors", folder / "nvidia-caps"
    minors.write_text("".join(f"{name} {minor}\n" for minor, name in enumerate(rights, start=3)))
    nodes.mkdir()
    for minor in range(3, 3 + len(rights)):
        (nodes / f"nvidia-cap{minor}").touch()
    monkeypatch.setattr(capabilities, "MINORS", minors)
    monkeypatch.setattr(capabilities, "NODES", nodes)
    return nodes


def node_of(nodes: Path, gpu: int, instance: int, compute: int | None) -> Path:
    """As :func:`give_nodes` numbers them."""
    return (
        nodes
        / f"nvidia-cap{3 + (gpu * 15 + instance) * 9 + (0 if compute is None else 1 + compute)}"
    )


@pytest.mark.parametrize("whole", [True, False], ids=["gpu instance", "compute instance"])
def test_an_instance_whose_node_is_not_in_the_container_is_told_of_and_not_offered(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    nodes = give_nodes(tmp_path, monkeypatch)
    machine(A30, H100_80_SXM)
    before = inventory()
    with MigGpu(before.gpus[1].uuid) as gpu:
        halves = (Placement("3g.40gb", 0), Placement("3g.40gb", 4))
        first, second = cut(gpu, halves, patience_s=PATIENCE_S)
    _, seen = look_again(before).gpus
    assert {each.uuid for each in seen.slices} == {first.uuid, second.uuid}
    assert seen.problem == ""

    node = node_of(nodes, 1, second.gpu_instance, None if whole else second.compute_instance)
    node.unlink()
    other, seen = look_again(before).gpus
    assert [each.uuid for each in seen.slices] == [first.uuid]
    assert seen.problem == (
        f"{second.uuid}, a 3g.40gb, is not offered: {node}: No such file or directory; delete the runtime pod so that it "
        "is made with all of them, see docs/mig.md"
    )
    assert other.problem == ""

    node.touch()
    _, seen = look_again(before).gpus
    assert (len(seen.slices), seen.problem) == (2, "")


def test_a_driver_that_does_not_say_which_instance_it_is_hides_none(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_machine(machine)
    for node in give_nodes(tmp_path, monkeypatch).iterdir():
        node.unlink()
    assert inventory().gpus[0].slices == ()
    machine(H100_80_SXM, faults="nvmlDeviceGetGpuInstanceId 1 99 fail 3")
    assert len(inventory().gpus[0].slices) == 7
