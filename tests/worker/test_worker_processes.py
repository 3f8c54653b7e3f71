"""Instances share worker processes beyond the first few, and a process ends with its last instance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.model_files import ModelFile
from support.server import PATIENCE_S, children
from tessera_runtime.dispatch.processes import FEWEST_PROCESSES, PROCESSES_PER_CORE, Workers
from tessera_runtime.dispatch.waiting import eventually
from tessera_runtime.dispatch.workers import LoadFailed, OpenedLane, Worker, WorkerLost, WorkerPool
from tessera_runtime.target import DeviceTarget
from tessera_runtime.worker import messages as m

CPU = DeviceTarget("cpu-0", "cpu", cores=(0,))
LIMIT = max(FEWEST_PROCESSES, PROCESSES_PER_CORE)
"""Of processes on a device of one core."""


@pytest.fixture
async def workers(pool: WorkerPool) -> AsyncIterator[Workers]:
    workers = Workers(pool)
    yield workers
    for worker in list(workers.living.values()):
        worker.kill()
        await worker.lost


async def acquire(workers: Workers, *models: str, **options: object) -> list[Worker]:
    return await asyncio.gather(*(workers.acquire(CPU, "test", each, **options) for each in models))


def names(count: int, first: int = 0) -> list[str]:
    return [f"model-{number}" for number in range(first, first + count)]


async def open_one(worker: Worker, file: ModelFile) -> OpenedLane:
    key = str(file.path)
    async with worker.turn(key):
        await worker.load(m.Load(key, key, "Python", True, (), ()))
        return await worker.open_lane((key,), 1, (1,), {})


def threads(worker: Worker) -> list[Path]:
    return list(Path(f"/proc/{worker.pid}/task").iterdir())


async def test_the_first_instances_have_a_process_each_and_the_next_share_them(
    workers: Workers, zygote
):
    got = await acquire(workers, *names(2 * LIMIT + 1))
    first, again, last = got[:LIMIT], got[LIMIT : 2 * LIMIT], got[-1]
    assert len({worker.pid for worker in first}) == LIMIT
    assert {worker.pid for worker in again} == {worker.pid for worker in first}
    assert last in first
    assert sorted(children(zygote.process.pid)) == sorted(worker.pid for worker in first)


async def test_namespaces_and_devices_never_share_one(workers: Workers):
    await acquire(workers, *names(LIMIT))
    elsewhere = DeviceTarget("cpu-1", "cpu", cores=(0,))
    larger = DeviceTarget("cpu-0", "cpu", cores=(0,), memory_mib=512)
    before = set(workers.living)
    others = [
        await workers.acquire(CPU, "other", "model"),
        await workers.acquire(elsewhere, "test", "model"),
        await workers.acquire(larger, "test", "model"),
    ]
    assert len({worker.incarnation for worker in others} - before) == 3


async def test_a_gpu_has_one_process_for_each_namespace(workers: Workers):
    gpu = DeviceTarget("gpu-0", "cuda")  # never asked for: nothing here touches a device
    got = [await workers.acquire(gpu, "test", name, alone=True) for name in names(3)]
    assert len({worker.pid for worker in got}) == 1
    assert (await workers.acquire(gpu, "other", "model")) not in got


async def test_company_shares_one(workers: Workers):
    together = await acquire(workers, "a", "b", "c", company="ensemble")
    assert len(set(together)) == 1
    [other] = await acquire(workers, "d", company="another")
    assert other not in together
    for model in "abc":
        workers.release(together[0], model, "ensemble")
    await together[0].lost
    assert other.alive


async def test_one_that_is_to_be_alone_has_no_neighbours(workers: Workers):
    shared = await acquire(workers, *names(LIMIT))
    [lone] = await acquire(workers, "suspect", alone=True)
    more = await acquire(workers, *names(2 * LIMIT, first=LIMIT))
    assert lone not in {*shared, *more}


async def test_the_last_instance_ends_its_process(workers: Workers, gone):
    [worker] = await acquire(workers, "a", company="c")
    await acquire(workers, "b", company="c")
    workers.release(worker, "a", "c")
    assert worker.alive
    assert not worker.killed
    workers.release(worker, "b", "c")
    await worker.lost
    gone(worker.pid)
    assert not workers.living


async def test_nobody_joins_a_process_that_is_left_or_has_ended(workers: Workers):
    left, ended = await acquire(workers, "a", "b")
    rest = await acquire(workers, *names(LIMIT - 2))
    left.retired = True
    ended.kill()
    await ended.lost
    first, second = await acquire(workers, "c", "d")
    assert {first, second}.isdisjoint({left, ended, *rest})
    assert first is not second
    more = await acquire(workers, *names(2 * LIMIT, first=LIMIT))
    assert {left, ended}.isdisjoint(more)


async def test_a_start_that_fails_fails_for_all_who_wait_and_is_tried_again(
    workers: Workers, pool: WorkerPool, zygote, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool, "_path", "/nowhere")
    monkeypatch.setattr("tessera_runtime.dispatch.workers.CONNECT_ATTEMPTS", 1)
    joined = [workers.acquire(CPU, "test", each, company="c") for each in "ab"]
    failed = await asyncio.gather(*joined, return_exceptions=True)
    assert all(isinstance(error, WorkerLost) for error in failed)
    monkeypatch.setattr(pool, "_path", zygote.path)
    [worker] = await acquire(workers, "a", company="c")
    assert worker.alive


async def test_a_start_that_nobody_waits_for_any_more_leaves_no_process(workers: Workers, zygote):
    wanted = [asyncio.create_task(workers.acquire(CPU, "test", n, company="c")) for n in "ab"]
    await asyncio.sleep(0)
    for each in wanted:
        each.cancel()
    assert await asyncio.gather(*wanted, return_exceptions=True)
    [kept] = await acquire(workers, "c", company="c")  # forked after the one that was given up
    assert await eventually(lambda: children(zygote.process.pid) == [kept.pid], PATIENCE_S)


async def test_a_start_is_not_given_up_while_another_waits_for_it(workers: Workers):
    first = asyncio.create_task(workers.acquire(CPU, "test", "a", company="c"))
    second = asyncio.create_task(workers.acquire(CPU, "test", "b", company="c"))
    await asyncio.sleep(0)
    first.cancel()
    worker = await second
    assert first.cancelled() or first.cancelling()
    assert worker.alive
    workers.release(worker, "b", "c")
    await worker.lost


LOADS = """
import torch

class Model:
    inputs = {{"x": ("FP32", (4,))}}
    outputs = {{"y": ("FP32", (4,))}}

    def __call__(self, batch):
        return {{"y": batch["x"]}}

def load(device, options):
    {does}
    return Model()
"""


async def test_threads_that_computed_for_a_load_end_with_it(workers: Workers, tmp_path: Path):
    """Pools of OpenMP wait actively only while all of them together are no more than the cores."""
    pytest.importorskip("torch")
    [worker] = await acquire(workers, "a")

    async def load(does: str) -> int:
        path = tmp_path / f"model-{len(does)}.py"
        path.write_text(LOADS.format(does=does))
        await worker.load(m.Load(str(path), str(path), "Python", True, (), ()))
        return len(threads(worker))

    before = await load("torch.set_num_threads(3)")  # starts a pool that all share
    await load("torch.ones(1 << 20).add_(1.0)")
    assert await eventually(lambda: len(threads(worker)) == before, PATIENCE_S)


async def test_models_of_a_process_are_loaded_in_turns(workers: Workers, tmp_path: Path):
    slow, quick = ModelFile(tmp_path / "slow.py"), ModelFile(tmp_path / "quick.py")
    [worker] = await acquire(workers, "a", company="c")
    slow.hold_loading()
    loading = asyncio.create_task(open_one(worker, slow))
    waiting = asyncio.create_task(open_one(worker, quick))
    await asyncio.wait({loading, waiting}, timeout=0)
    assert worker.gauge is not None
    assert not worker.gauge.outgrown(-1e9), "not while one loads"
    worker.retired = True
    slow.let_load()
    with (await loading).sock, pytest.raises(WorkerLost, match="takes nobody in"):
        await waiting
    assert worker.gauge.outgrown(-1e9)


async def test_a_lane_that_finds_no_memory_leaves_the_others_alone(
    workers: Workers, tmp_path: Path
):
    """The stacks of many lanes count towards the limit of their process."""
    small = DeviceTarget("cpu-0", "cpu", cores=(0,), memory_mib=64)
    worker = await workers.acquire(small, "test", "a")
    file = ModelFile(tmp_path / "model.py")
    lanes: list[OpenedLane] = []

    async def fill() -> None:
        while True:
            lanes.append(await open_one(worker, file))

    with pytest.raises(LoadFailed, match=r"MemoryError|thread|memory"):
        await fill()
    assert lanes
    assert worker.alive
    for lane in lanes:
        lane.sock.close()
    lanes.clear()
    await eventually(lambda: len(threads(worker)) == 1, PATIENCE_S)
    lanes.append(await open_one(worker, file))
    lanes[0].sock.close()
