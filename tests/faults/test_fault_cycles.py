"""A hundred faults, one after another: processes, descriptors and shared memory are what they were before."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from support.clients import Crowd
from support.fault_load import Counts, FaultLoad
from support.model_files import DIE, ModelFile, rows, told
from support.server import Server, descendants, fds, memfds, wait_until
from support.targets import member, service
from support.targets import server as target

MODEL = "test.m"
INSTANCES = 16


def held(server: Server) -> dict[str, int]:
    """What the server holds at rest."""
    server_pids = {
        "dispatcher": server.dispatcher_pid,
        "supervisor": server.process.pid,
        "zygote": server.zygote_pid,
    }
    workers = server.worker_pids()
    return {
        **{f"descriptors of the {name}": len(fds(pid)) for name, pid in server_pids.items()},
        "descriptors of workers": sum(len(fds(pid)) for pid in workers),
        "regions of the dispatcher": len(memfds(server.dispatcher_pid)),
        "processes": len(descendants(server.process.pid)),
        "files in /dev/shm": len(list(Path("/dev/shm").iterdir())),
        "files beside its sockets": len(list(server.run_dir.iterdir())),
    }


@pytest.mark.slow
def test_a_hundred_fault_cycles_leave_nothing_behind(
    server: Server, crowd: Crowd, file: ModelFile, counted: Callable[[FaultLoad], Counts]
):
    server.apply(target(service("m", member("a", file, instances=INSTANCES))))
    for i in range(4 * INSTANCES):
        crowd.ask(MODEL, rows(i)).result()
    before = held(server)
    cycles = 0
    with FaultLoad(server.ports(), MODEL, file, rate_per_s=60) as load:
        for round_ in range(6):
            for pid in sorted(server.worker_pids())[round_ % 2 :]:
                if pid % 5 == 0:
                    os.kill(pid, signal.SIGSTOP)
                os.kill(pid, signal.SIGKILL)
                with socket.create_connection(("127.0.0.1", server.ports().http)) as sock:
                    sock.sendall(b"POST /v2/models/test.m/infer HTTP/1.1\r\n")
                cycles += 1
            server.wait_served()
            load.wait_right(5)
        for _ in range(4):
            with pytest.raises(Exception, match="2 instances ended"):
                crowd.ask(MODEL, told(DIE)).result()
            cycles += 2
        os.kill(server.zygote_pid, signal.SIGKILL)
        server.wait_served()
        load.wait_right(5)
        cycles += 1
    assert cycles >= 100
    counts = counted(load)
    # A request may be in two processes that are killed, one after the other: then it is taken for the cause.
    assert counts.lost == 0, counts
    assert set(counts.failed) <= {"HTTP 500", "gRPC INTERNAL"}, counts
    after: dict[str, int] = {}

    def settled() -> bool:
        after.update(held(server))
        return all(after[name] <= before[name] for name in before)

    wait_until(settled, lambda: f"what there was before: {before}; found {after}")
