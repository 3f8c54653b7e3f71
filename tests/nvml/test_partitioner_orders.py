"""The partitioner beside an API server: what is ordered is cut and told, and nothing else is touched."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pynvml
import pytest

from support.node_api import NodeServer
from support.nvml_stand_in import StandIn, enable_mig, outside, run_on
from tessera_core.api.runtimenode import CutProblem
from tessera_core.gpu.geometry import Geometry, Placement
from tessera_core.gpu.tables import A100_80, H100_80_SXM
from tessera_runtime.kube import Access, Kube
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.decide import MOST_PAUSE_S
from tessera_runtime.partitioner.gpu import MigGpu
from tessera_runtime.partitioner.loop import Partitioner
from tessera_runtime.partitioner.main import MANAGER

Machine = Callable[..., StandIn]

FIRST, SECOND = (f"GPU-00000000-0000-4000-8000-00000000000{number}" for number in (1, 2))
HALVES = (Placement("3g.40gb", 0), Placement("3g.40gb", 4))
THIRDS = (Placement("1g.10gb", 6), Placement("2g.20gb", 4), Placement("3g.40gb", 0))
LOOK_S = 0.02
ME = os.getpid()


def device(uuid: str, geometry: Geometry, *, to_cut: bool = True) -> dict[str, Any]:
    placements = [{"profile": each.profile, "start": each.start} for each in geometry]
    return {"uuid": uuid, "geometry": placements, "cut": to_cut}


@pytest.fixture
def two(machine: Machine) -> Iterator[Machine]:
    """A machine of two H100s. NVML stays initialised, as the partitioner's thread and the test share the library."""
    machine(H100_80_SXM, H100_80_SXM)
    pynvml.nvmlInit()
    yield machine
    pynvml.nvmlShutdown()


@asynccontextmanager
async def following(server: NodeServer, **options: Any) -> AsyncIterator[None]:
    """A partitioner of the node that ``server`` has."""
    stop = asyncio.Event()
    async with Kube(Access(server.url, None, None), MANAGER) as kube:
        partitioner = Partitioner(kube, "n", **{"patience_s": 30.0, "look_s": LOOK_S, **options})
        running = asyncio.create_task(partitioner.run(stop))
        try:
            yield
        finally:
            stop.set()
            async with asyncio.timeout(60):
                await running


def told(server: NodeServer, uuid: str) -> Geometry:
    return tuple(
        sorted(Placement(each.profile, each.start) for each in server.cuts[uuid].slices)
        if uuid in server.cuts
        else ()
    )


def is_done(server: NodeServer, uuid: str, geometry: Geometry, generation: int) -> bool:
    said = server.cuts.get(uuid)
    return (
        said is not None
        and (said.generation, said.problem) == (generation, None)
        and told(server, uuid) == tuple(sorted(geometry))
    )


def slices(uuid: str) -> Geometry:
    with MigGpu(uuid) as gpu:
        return tuple(sorted(each.placement for each in gpu.slices()))


async def test_what_is_ordered_is_cut_and_told_with_uuids(two: Machine) -> None:
    async with NodeServer("n").running() as server:
        generation = await server.order(device(FIRST, THIRDS), device(SECOND, HALVES))
        async with following(server):
            await server.wait(lambda: is_done(server, FIRST, THIRDS, generation))
            await server.wait(lambda: is_done(server, SECOND, HALVES, generation))
        with MigGpu(FIRST) as gpu:
            assert {each.uuid for each in gpu.slices()} == {
                each.uuid for each in server.cuts[FIRST].slices
            }


async def test_every_gpu_that_knows_mig_is_told_without_any_order(two: Machine) -> None:
    with MigGpu(SECOND) as gpu:
        cut(gpu, HALVES, patience_s=10)
    async with NodeServer("n").running() as server:
        await server.order()
        async with following(server):
            await server.wait(lambda: told(server, SECOND) == HALVES)
        assert told(server, FIRST) == ()
        assert {each.generation for each in server.cuts.values()} == {0}
        assert len(server.writes) == 1


@pytest.mark.parametrize("spec", [[device(FIRST, THIRDS, to_cut=False)], []], ids=["not cut", ""])
async def test_a_device_that_is_not_to_be_cut_is_never_touched(
    two: Machine, spec: list[dict[str, Any]]
) -> None:
    with MigGpu(FIRST) as gpu:
        before = cut(gpu, HALVES, patience_s=10)
    async with NodeServer("n").running() as server:
        generation = await server.order(*spec, device(SECOND, HALVES))
        async with following(server):
            await server.wait(lambda: is_done(server, SECOND, HALVES, generation))
        with MigGpu(FIRST) as gpu:
            assert gpu.slices() == before
        assert server.cuts[FIRST].generation == 0


async def test_what_somebody_cuts_by_hand_is_told(two: Machine) -> None:
    async with NodeServer("n").running() as server:
        await server.order(device(SECOND, ()))
        async with following(server):
            await server.wait(lambda: is_done(server, SECOND, (), 1))
            with MigGpu(FIRST) as gpu:
                cut(gpu, HALVES, patience_s=10)
            await server.wait(lambda: told(server, FIRST) == HALVES)


async def test_what_was_cut_by_hand_where_an_order_stands_is_cut_again(two: Machine) -> None:
    async with NodeServer("n").running() as server:
        generation = await server.order(device(FIRST, THIRDS))
        async with following(server):
            await server.wait(lambda: is_done(server, FIRST, THIRDS, generation))
            with MigGpu(FIRST) as gpu:
                gpu.destroy(THIRDS[0])
            old = server.cuts[FIRST]
            await server.wait(
                lambda: is_done(server, FIRST, THIRDS, generation) and server.cuts[FIRST] != old
            )


async def test_nothing_is_written_while_nothing_changes(two: Machine) -> None:
    async with NodeServer("n").running() as server:
        generation = await server.order(device(FIRST, HALVES))
        async with following(server):
            await server.wait(lambda: is_done(server, FIRST, HALVES, generation))
            count = len(server.writes)
            again = await server.order(device(FIRST, HALVES))
            await server.wait(lambda: is_done(server, FIRST, HALVES, again))
        assert len(server.writes) == count + 1


async def test_what_is_in_use_is_told_and_cut_when_it_is_free(two: Machine) -> None:
    """Each look at the clock is later than the pause that is waited for."""
    times = count(step=MOST_PAUSE_S)
    with MigGpu(FIRST) as gpu:
        cut(gpu, THIRDS, patience_s=10)
        handle = pynvml.nvmlDeviceGetHandleByUUID(FIRST)
        run_on(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 1), ME)
    async with NodeServer("n").running() as server:
        generation = await server.order(device(FIRST, HALVES))
        async with following(server, patience_s=0, clock=lambda: next(times)):
            await server.wait(lambda: FIRST in server.cuts and bool(server.cuts[FIRST].problem))
            said = server.cuts[FIRST]
            assert (said.problem, said.generation) == (CutProblem.IN_USE, generation)
            assert f"processes {ME} (" in said.message
            assert told(server, FIRST) == tuple(sorted(slices(FIRST)))
            outside("stand_in_end", ME)
            await server.wait(lambda: is_done(server, FIRST, HALVES, generation))
            assert server.cuts[FIRST].message == ""


async def test_a_new_generation_is_tried_at_once(two: Machine) -> None:
    """The clock stands still, so that no pause ends."""
    async with NodeServer("n").running() as server:
        await server.order(device(FIRST, (Placement("3g.40gb", 1),)))
        async with following(server, clock=lambda: 0.0):
            await server.wait(lambda: FIRST in server.cuts and bool(server.cuts[FIRST].problem))
            assert server.cuts[FIRST].problem is CutProblem.NOT_PARTITIONABLE
            generation = await server.order(device(FIRST, HALVES))
            await server.wait(lambda: is_done(server, FIRST, HALVES, generation))


async def test_one_gpu_that_cannot_be_cut_holds_up_no_other(machine: Machine) -> None:
    machine(A100_80, H100_80_SXM)
    async with NodeServer("n").running() as server:
        generation = await server.order(device(FIRST, HALVES), device(SECOND, HALVES))
        async with following(server):
            await server.wait(lambda: is_done(server, SECOND, HALVES, generation))
            await server.wait(lambda: bool(server.cuts[FIRST].problem))
        assert server.cuts[FIRST].problem is CutProblem.RESET_REQUIRED
        assert "--gpu-reset" in server.cuts[FIRST].message


async def test_a_gpu_that_is_not_there_is_told(two: Machine) -> None:
    async with NodeServer("n").running() as server:
        generation = await server.order(device("GPU-gone", HALVES))
        async with following(server):
            await server.wait(lambda: "GPU-gone" in server.cuts)
        said = server.cuts["GPU-gone"]
        assert (said.problem, said.generation) == (CutProblem.NOT_PARTITIONABLE, generation)


async def test_an_order_that_was_taken_back_is_waited_for_no_longer(two: Machine) -> None:
    """However patient the try is that is under way."""
    with MigGpu(FIRST) as gpu:
        before = cut(gpu, THIRDS, patience_s=10)
        handle = pynvml.nvmlDeviceGetHandleByUUID(FIRST)
        for index in range(len(before)):
            run_on(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index), ME)
    async with NodeServer("n").running() as server:
        await server.order(device(FIRST, HALVES[1:]))
        async with following(server, patience_s=3600):
            await server.wait(lambda: server.reads == 2)  # by following, and before it cuts
            generation = await server.order(
                device(FIRST, HALVES[1:], to_cut=False), device(SECOND, HALVES)
            )
            await server.wait(lambda: is_done(server, SECOND, HALVES, generation))
        assert server.cuts[FIRST].problem is None
        with MigGpu(FIRST) as gpu:
            assert gpu.slices() == before


async def test_a_failure_is_told_no_longer_than_the_order_stands(machine: Machine) -> None:
    machine(A100_80)
    async with NodeServer("n").running() as server:
        await server.order(device(FIRST, HALVES))
        async with following(server):
            await server.wait(lambda: FIRST in server.cuts and bool(server.cuts[FIRST].problem))
            await server.order(device(FIRST, HALVES, to_cut=False))
            await server.wait(lambda: server.cuts[FIRST].problem is None)
        assert server.cuts[FIRST].message == ""


async def test_without_the_api_server_nothing_is_cut_and_afterwards_it_goes_on(
    two: Machine,
) -> None:
    async with NodeServer("n").running() as server:
        generation = await server.order(device(FIRST, HALVES))
        async with following(server):
            await server.wait(lambda: is_done(server, FIRST, HALVES, generation))
            await server.go_down()
            with MigGpu(FIRST) as gpu:
                gpu.destroy(HALVES[0])
            # It sees that its order does not hold any more, and is told nothing that confirms it.
            reads = server.reads
            await server.wait(lambda: server.reads >= reads + 3)
            assert slices(FIRST) == HALVES[1:]
            await server.come_back()
            await server.wait(lambda: is_done(server, FIRST, HALVES, generation))
            old = server.cuts[FIRST]
            await server.order(device(FIRST, HALVES[1:]))
            await server.wait(lambda: told(server, FIRST) == HALVES[1:])
            assert server.cuts[FIRST] != old


async def test_a_leader_that_was_deposed_orders_nothing(two: Machine) -> None:
    async with NodeServer("n").running() as server:
        generation = await server.order(device(FIRST, HALVES), epoch=5)
        async with following(server):
            await server.wait(lambda: is_done(server, FIRST, HALVES, generation))
            await server.order(device(FIRST, THIRDS), device(SECOND, HALVES), epoch=4)
            await server.wait(lambda: server.cuts[FIRST].generation == 0)
            assert (slices(FIRST), slices(SECOND)) == (HALVES, ())
            generation = await server.order(device(FIRST, THIRDS), epoch=5)
            await server.wait(lambda: is_done(server, FIRST, THIRDS, generation))
        assert slices(SECOND) == ()


async def test_a_node_that_is_not_there_is_waited_for(two: Machine) -> None:
    async with NodeServer("n").running() as server:
        async with following(server):
            await server.wait(lambda: server.reads > 0)
            generation = await server.order(device(FIRST, HALVES))
            await server.wait(lambda: is_done(server, FIRST, HALVES, generation))
            await server.delete()
            await server.wake()
        assert slices(FIRST) == HALVES


async def test_a_driver_that_is_lost_is_told_and_its_slices_stay_told(
    machine: Machine,
) -> None:
    machine(H100_80_SXM)
    with MigGpu(FIRST) as gpu:
        cut(gpu, HALVES, patience_s=10)
    async with NodeServer("n").running() as server:
        await server.order()
        async with following(server, clock=lambda: 0.0):
            await server.wait(lambda: told(server, FIRST) == HALVES)
            machine(H100_80_SXM, faults="nvmlInitWithFlags 1 9999 fail 9")
            await server.order(device(FIRST, THIRDS))
            await server.wait(lambda: bool(server.cuts[FIRST].problem))
            assert server.cuts[FIRST].problem is CutProblem.DRIVER_LOST
            assert told(server, FIRST) == HALVES
            machine(H100_80_SXM)
            generation = await server.order(device(FIRST, THIRDS))
            await server.wait(lambda: is_done(server, FIRST, THIRDS, generation))


async def test_mig_that_an_administrator_switches_on_is_enough_for_what_waits(
    machine: Machine,
) -> None:
    machine(A100_80)
    times = count(step=MOST_PAUSE_S)
    pynvml.nvmlInit()
    async with NodeServer("n").running() as server:
        generation = await server.order(device(FIRST, HALVES))
        async with following(server, clock=lambda: next(times)):
            await server.wait(lambda: FIRST in server.cuts and bool(server.cuts[FIRST].problem))
            enable_mig(pynvml.nvmlDeviceGetHandleByUUID(FIRST))
            await server.wait(lambda: is_done(server, FIRST, HALVES, generation))
    pynvml.nvmlShutdown()
