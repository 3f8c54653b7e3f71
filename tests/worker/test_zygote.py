"""Workers come from the zygote and never outlive whoever could use them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from support.server import PATIENCE_S, children
from tessera_runtime.dispatch.waiting import eventually
from tessera_runtime.dispatch.workers import LoadFailed, Place, WorkerLost, WorkerPool
from tessera_runtime.secret import secret_beside
from tessera_runtime.worker import messages as m

CPU = Place("cpu-0", "cpu")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def opened_by(pid: int) -> set[str]:
    """What its descriptors beyond the standard ones are of; sockets without their number."""
    directory = Path(f"/proc/{pid}/fd")
    links = [os.readlink(fd) for fd in directory.iterdir() if int(fd.name) > 2]
    return {"socket" if link.startswith("socket:") else link for link in links}


def no_new_privileges(pid: int) -> bool:
    return "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()


async def test_a_worker_is_forked_reaped_and_its_end_noticed(pool: WorkerPool, zygote, gone):
    workers = [await pool.start(CPU) for _ in range(3)]
    assert len({worker.incarnation for worker in workers}) == 3
    for worker, end in zip(workers, (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV), strict=True):
        assert parent_of(worker.pid) == zygote.process.pid
        os.kill(worker.pid, end)
        await worker.lost
        assert not worker.alive
        gone(worker.pid)


async def test_place_is_where_the_worker_runs(pool: WorkerPool):
    core = min(os.sched_getaffinity(0))
    worker = await pool.start(Place("cpu-0", "cpu", (core,), environment={"WHERE": "here"}))
    # Both happen before the worker reads its first message, so its first answer comes after them.
    with pytest.raises(Exception, match=r"nowhere|No such file"):
        await worker.load(m.Load("key", "/nowhere", "Python", True, (), ()))
    assert os.sched_getaffinity(worker.pid) == {core}
    worker.kill()
    await worker.lost


async def test_a_worker_has_nothing_of_the_zygote_and_gains_no_rights(pool: WorkerPool):
    earlier = await pool.start(CPU)  # then all that the zygote ever opens is open
    worker = await pool.start(CPU)
    with pytest.raises(LoadFailed):  # it has answered, so it has closed what it closes
        await worker.load(m.Load("key", "/nowhere", "Python", True, (), ()))
    assert opened_by(worker.pid) == {"/memfd:tessera-inputs (deleted)", "socket"}
    assert no_new_privileges(worker.pid)
    for ended in (earlier, worker):
        ended.kill()
        await ended.lost


async def test_workers_die_with_the_zygote(pool: WorkerPool, zygote, gone):
    worker = await pool.start(CPU)
    zygote.kill()
    await worker.lost
    gone(worker.pid)


async def test_a_zygote_that_died_is_found_by_the_next_start(pool: WorkerPool, zygote):
    worker = await pool.start(CPU)
    zygote.kill()
    await worker.lost
    os.unlink(zygote.path)
    pool.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tessera_runtime.dispatch.workers.CONNECT_ATTEMPTS", 1)
        with pytest.raises(WorkerLost, match="no zygote answers"):
            await pool.start(CPU)


async def test_workers_die_when_the_dispatcher_hangs_up_and_the_next_one_is_served(
    pool: WorkerPool, zygote, arena, gone
):
    worker = await pool.start(CPU)
    pool.close()
    await worker.lost
    gone(worker.pid)
    assert zygote.process.poll() is None
    successor = WorkerPool(zygote.path, arena)
    other = await successor.start(CPU)
    successor.close()
    await other.lost


async def test_a_stopped_worker_dies_when_the_dispatcher_hangs_up(pool: WorkerPool, gone):
    worker = await pool.start(CPU)
    os.kill(worker.pid, signal.SIGSTOP)
    pool.close()
    await worker.lost
    gone(worker.pid)


def test_a_worker_ends_when_its_control_socket_closes(zygote, arena):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dispatcher:
        dispatcher.settimeout(30)
        dispatcher.connect(zygote.path)
        dispatcher.send(secret_beside(zygote.path))
        ours, theirs = m.pair()
        with theirs:
            fork = m.Fork(7, arena.size, "cpu", (), 1, 0, {})
            m.send(dispatcher, fork, (theirs.fileno(), arena.fd))
        data, [pidfd] = m.Inbox().receive(dispatcher)
        assert m.decode_from_zygote(data).incarnation == 7
        os.close(pidfd)
        ours.close()
        data, _ = m.Inbox().receive(dispatcher)
        assert m.decode_from_zygote(data) == m.Exited(7, 0)


async def test_a_start_that_was_given_up_leaves_no_worker(pool: WorkerPool, zygote):
    starting = asyncio.create_task(pool.start(CPU))
    await eventually(lambda: bool(pool._forks), PATIENCE_S)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not pool._forks
    kept = await pool.start(CPU)  # forked after the one that was given up
    assert await eventually(lambda: children(zygote.process.pid) == [kept.pid], PATIENCE_S)
    kept.kill()
    await kept.lost
