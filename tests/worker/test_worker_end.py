"""How the dispatcher takes the end of a worker."""

from __future__ import annotations

import asyncio
import os

import pytest

from tessera_runtime.dispatch.workers import Place, Worker, WorkerLost
from tessera_runtime.worker import messages as m


async def test_a_worker_that_ends_before_it_has_read_everything_is_no_error(
    caplog: pytest.LogCaptureFixture,
):
    """The kernel resets a conversation whose end has something unread."""
    process = await asyncio.create_subprocess_exec("sleep", "60")
    ours, theirs = m.pair()
    worker = Worker(1, process.pid, os.pidfd_open(process.pid), ours, Place("cpu-0", "cpu"))
    loading = asyncio.create_task(worker.load(m.Load("a", "/a", "Python", True, (), ())))
    await asyncio.sleep(0)  # it is sent
    theirs.close()
    await worker.lost
    with pytest.raises(WorkerLost):
        await loading
    await process.wait()
    assert caplog.records == []
