"""How the dispatcher takes the end of a worker."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tessera_runtime.dispatch.workers import Place, Worker, WorkerLost
from tessera_runtime.worker import messages as m


@asynccontextmanager
async def loading() -> AsyncIterator[tuple[socket.socket, asyncio.Task[m.Loaded]]]:
    """A worker's end of the conversation, and somebody who waits for it to load a model."""
    process = await asyncio.create_subprocess_exec("sleep", "60")
    ours, theirs = m.pair()
    worker = Worker(1, process.pid, os.pidfd_open(process.pid), ours, Place("cpu-0", "cpu"))
    loaded = asyncio.create_task(worker.load(m.Load("a", "/a", "Python", True, (), ())))
    await asyncio.sleep(0)  # it is sent
    yield theirs, loaded
    await worker.lost
    await process.wait()


async def test_a_worker_that_ends_before_it_has_read_everything_is_no_error(
    caplog: pytest.LogCaptureFixture,
):
    """The kernel resets a conversation whose end has something unread."""
    async with loading() as (theirs, loaded):
        theirs.close()
        with pytest.raises(WorkerLost, match=r"worker 1 \(pid \d+\) ended$"):
            await loaded
    assert caplog.records == []


async def test_who_waits_for_a_worker_that_talks_nonsense_is_told_so():
    async with loading() as (theirs, loaded):
        theirs.send(b"nonsense")
        with pytest.raises(WorkerLost, match="ended: Expected `array`"):
            await loaded
        theirs.close()
