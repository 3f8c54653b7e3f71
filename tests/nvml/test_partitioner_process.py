"""The partitioner as a process: it ends when it is told to, and one that was killed anywhere is gone on with."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pynvml
import pytest
from aiohttp import web

from support.node_api import NodeServer
from support.nvml_stand_in import StandIn, run_on
from tessera_core.gpu.geometry import Geometry, Placement
from tessera_core.gpu.tables import H100_80_SXM
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu

UUID = "GPU-00000000-0000-4000-8000-000000000001"
HALVES = (Placement("3g.40gb", 0), Placement("3g.40gb", 4))
BESIDE = (Placement("1g.10gb", 3), Placement("2g.20gb", 0), Placement("3g.40gb", 4))
"""Reached from the halves by destroying one of them and creating two."""
PATIENCE_S = 60.0


def device(geometry: Geometry) -> dict[str, Any]:
    placements = [{"profile": each.profile, "start": each.start} for each in geometry]
    return {"uuid": UUID, "geometry": placements, "cut": True}


@asynccontextmanager
async def partitioner(
    server: NodeServer, stand_in: StandIn, *options: str, faults: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tessera_runtime.partitioner"),
        *(f"--api-server={server.url}", *options),
        env={
            **os.environ,
            **stand_in.environment(faults),
            "NODE_NAME": "n",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def ended(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await process.wait()


def is_done(server: NodeServer, geometry: Geometry, generation: int) -> bool:
    said = server.cuts.get(UUID)
    return (
        said is not None
        and (said.generation, said.problem) == (generation, None)
        and tuple(sorted(Placement(each.profile, each.start) for each in said.slices)) == geometry
    )


def slices() -> Geometry:
    with MigGpu(UUID) as gpu:
        return tuple(sorted(each.placement for each in gpu.slices() if each.uuid))


async def test_killed_after_each_change_that_it_makes_it_goes_on(
    machine: Callable[..., StandIn],
) -> None:
    """Between single calls of a cut: test_partitioner_kills.py."""
    stand_in = machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        kept = cut(gpu, HALVES, patience_s=10)[1]
    kills = (
        "nvmlComputeInstanceDestroy 1 1 kill 0",
        "nvmlGpuInstanceDestroy 1 1 kill 0",
        "nvmlDeviceCreateGpuInstanceWithPlacement 1 1 kill 0",
        "nvmlGpuInstanceCreateComputeInstance 1 1 kill 0",
        "nvmlGpuInstanceCreateComputeInstance 1 1 kill 0",
    )
    async with NodeServer("n").running() as server:
        generation = await server.order(device(BESIDE))
        for faults in kills:
            async with partitioner(server, stand_in, faults=faults) as process:
                assert await ended(process) == -signal.SIGKILL, faults
            assert not is_done(server, BESIDE, generation), "told before it was so"
        async with partitioner(server, stand_in):
            await server.wait(lambda: is_done(server, BESIDE, generation))
    with MigGpu(UUID) as gpu:
        assert kept in gpu.slices(), "what was right already was not touched"


async def test_killed_between_the_cut_and_telling_of_it_the_next_one_tells(
    machine: Callable[..., StandIn],
) -> None:
    stand_in = machine(H100_80_SXM)
    async with NodeServer("n").running() as server:
        generation = await server.order(device(HALVES))
        async with partitioner(server, stand_in) as process:

            def kill() -> None:
                process.kill()
                raise web.HTTPInternalServerError

            server.before_write = kill
            assert await ended(process) == -signal.SIGKILL
        assert slices() == HALVES
        assert not server.cuts
        server.before_write = lambda: None
        async with partitioner(server, stand_in):
            await server.wait(lambda: is_done(server, HALVES, generation))


async def test_what_failed_before_a_restart_stays_told_until_it_is_tried_again(
    machine: Callable[..., StandIn],
) -> None:
    stand_in = machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        cut(gpu, HALVES, patience_s=10)
        handle = pynvml.nvmlDeviceGetHandleByUUID(UUID)
        run_on(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0), os.getpid())
    async with NodeServer("n").running() as server:
        await server.order(device(BESIDE))
        async with partitioner(server, stand_in, "--patience=0"):
            await server.wait(lambda: UUID in server.cuts and bool(server.cuts[UUID].problem))
        count = len(server.writes)
        said = server.cuts[UUID]
        async with partitioner(server, stand_in, "--patience=3600"):
            reads = server.reads
            await server.wait(lambda: server.reads == reads + 2)
        assert len(server.writes) == count
        assert server.cuts[UUID] == said


async def test_told_to_end_while_it_waits_for_what_is_in_use_it_ends(
    machine: Callable[..., StandIn],
) -> None:
    stand_in = machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        before = cut(gpu, HALVES, patience_s=10)
        handle = pynvml.nvmlDeviceGetHandleByUUID(UUID)
        run_on(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0), os.getpid())
    async with NodeServer("n").running() as server:
        await server.order(device(BESIDE))
        async with partitioner(server, stand_in, "--patience=3600") as process:
            await server.wait(lambda: server.reads == 2)
            process.terminate()
            assert await ended(process) == 0
        with MigGpu(UUID) as gpu:
            assert gpu.slices() == before


def see_unfinished() -> None:
    """Return when there is an instance without its compute instance."""
    give_up = time.monotonic() + PATIENCE_S
    with MigGpu(UUID) as gpu:
        while all(each.uuid for each in gpu.slices()):
            assert time.monotonic() < give_up


async def test_told_to_end_within_a_step_it_leaves_no_instance_unfinished(
    machine: Callable[..., StandIn],
) -> None:
    stand_in = machine(H100_80_SXM)
    slow = "nvmlGpuInstanceCreateComputeInstance 1 9 slow 500"
    async with NodeServer("n").running() as server:
        await server.order(device(BESIDE))
        async with partitioner(server, stand_in, faults=slow) as process:
            await asyncio.to_thread(see_unfinished)
            process.terminate()
            assert await ended(process) == 0
    with MigGpu(UUID) as gpu:
        (only,) = gpu.slices()
        assert only.placement == BESIDE[2]
        assert only.uuid is not None


@pytest.mark.parametrize("patience", ["-1", "soon", "nan", "1e9"])
async def test_a_patience_that_makes_no_sense_is_refused(patience: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tessera_runtime.partitioner", f"--patience={patience}"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == 2
    assert f"--patience: found {patience!r}, allowed: 0 to 3600 seconds" in told.decode()


async def test_a_partitioner_that_is_not_told_its_node_says_so() -> None:
    environment = {name: each for name, each in os.environ.items() if name != "NODE_NAME"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tessera_runtime.partitioner"),
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == os.EX_CONFIG
    assert "NODE_NAME: found nothing" in told.decode()
