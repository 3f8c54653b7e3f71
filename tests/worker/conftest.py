from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.server import PATIENCE_S, wait_until
from tessera_runtime.dispatch.arena import InputArena
from tessera_runtime.dispatch.slabs import SLAB
from tessera_runtime.dispatch.workers import WorkerPool
from tessera_runtime.secret import make_secret
from tessera_runtime.supervisor import ZYGOTE_ENVIRONMENT


@dataclass
class Zygote:
    path: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where workers have directories of their own."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def zygote(tmp_path: Path, scratch: Path) -> Iterator[Zygote]:
    path = str(tmp_path / "zygote.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen(8)
        fd = listener.fileno()
        flags = [
            f"--listen-fd={fd}",
            f"--parent={os.getpid()}",
            f"--secret-digest={make_secret(tmp_path)}",
            f"--scratch={scratch}",
        ]
        command = [sys.executable, "-m", "tessera_runtime.worker.zygote", *flags]
        process = subprocess.Popen(command, pass_fds=(fd,), env=os.environ | ZYGOTE_ENVIRONMENT)
    zygote = Zygote(path, process)
    yield zygote
    zygote.kill()


@pytest.fixture
def arena() -> Iterator[InputArena]:
    arena = InputArena(4 * SLAB, 2 * SLAB)
    yield arena
    os.close(arena.fd)


@pytest.fixture
async def pool(zygote: Zygote, arena: InputArena) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(zygote.path, arena)
    yield pool
    pool.close()


def gone(pid: int) -> None:
    """Wait until a process has ended and was reaped."""
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} gone")


@pytest.fixture(name="gone")
def _gone():
    return gone
