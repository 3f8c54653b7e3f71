"""Processes that are killed, stopped or poisoned while clients go on asking: what becomes of every request.

Each test counts all requests of a continuous open loop. With a second instance no fault of a worker may cost one; a
killed dispatcher may cost those that it held; no fault may ever change an answer.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd
from support.fault_load import Counts, FaultLoad
from support.model_files import DIE, ModelFile, told
from support.server import Server, started
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.agent.kept import Kept, write_kept
from tessera_runtime.supervisor import control_path

MODEL = "test.m"
Counted = Callable[[FaultLoad], Counts]


def two(file: ModelFile, **settings: object):
    return target(service("m", member("a", file, instances=2, **settings)))


def test_a_killed_worker_costs_no_request(server: Server, file: ModelFile, counted: Counted):
    server.apply(two(file))
    with FaultLoad(server.ports(), MODEL, file) as load:
        load.wait_right(30)
        for _ in range(3):
            os.kill(min(server.worker_pids()), signal.SIGKILL)
            load.wait_right(60)
            server.wait_served()
    assert counted(load).nothing_but_right
    assert server.member(MODEL).restarts >= 3


def test_a_killed_zygote_costs_no_request(server: Server, file: ModelFile, counted: Counted):
    """All workers end with it, each with a batch: requests wait for their successors, and are not to blame."""
    server.apply(two(file, cap=2))
    with FaultLoad(server.ports(), MODEL, file) as load:
        for _ in range(3):
            load.wait_right(30)
            file.hold()
            server.wait_for(
                lambda r: r.services[0].members[0].queued_rows > 8, "all instances busy"
            )
            os.kill(server.zygote_pid, signal.SIGKILL)
            file.let_go()
            load.wait_right(60)
            server.wait_served()
    assert counted(load).nothing_but_right


def test_a_killed_dispatcher_costs_what_it_held(server: Server, file: ModelFile, counted: Counted):
    """Whoever comes meanwhile waits until the next one serves again what its agent tells it to."""
    server.apply(two(file))
    with FaultLoad(server.ports(), MODEL, file) as load:
        load.wait_right(30)
        file.hold()
        file.wait_held()
        held = load.in_flight
        os.kill(server.dispatcher_pid, signal.SIGKILL)
        file.let_go()
        server.reapply()
        load.wait_right(60)
    counts = counted(load)
    # Beyond those that it held: requests that were on their way while the process ended.
    assert counts.lost <= held + 30, (held, counts)
    assert counts.failed == {}, counts


def test_a_dispatcher_that_nobody_tells_what_to_serve_asks_to_come_again(
    server: Server, file: ModelFile
):
    """Not before it has waited for its agent; and not that the model is unknown, which ends a client's patience."""
    server.apply(two(file))
    port = server.ports().http
    os.kill(server.dispatcher_pid, signal.SIGKILL)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/v2/models/{MODEL}")
    answer = connection.getresponse()
    said = answer.status, answer.read()
    connection.close()
    server.reapply()
    assert said[0] == 503
    assert b"just started" in said[1]


_AGENT = """
import asyncio, pathlib, sys
import msgspec
from tessera_runtime.agent.keys import ServiceKeys
from tessera_runtime.agent.models import Models
from tessera_runtime.agent.serving import Serving
from tessera_runtime.agent.translate import Site
from tessera_runtime.control import ControlClient
from tessera_runtime.devices.inventory import Inventory
from tessera_runtime.models.cache import ModelCache

async def main(socket, folder):
    async def read(namespace, name):
        raise OSError("no API server")
    models = Models(ModelCache(folder / "cache", 1 << 20), read, lambda: None)
    keys = ServiceKeys(read, lambda: None)
    looks = 0
    def looked():
        nonlocal looks
        looks += serving.answers
        print(looks, flush=True)
    serving = Serving(ControlClient(socket), models, keys, lambda: Site(Inventory((0,), 64, ()), True), folder, looked)
    await serving.run()

asyncio.run(main(sys.argv[1], pathlib.Path(sys.argv[2])))
"""


def test_a_killed_agent_costs_no_request_and_its_successor_changes_nothing(
    server: Server, file: ModelFile, tmp_path: Path, counted: Counted
):
    """Without an API server: all it knows is what it kept on disk."""
    wanted = two(file)
    server.apply(wanted)
    before = server.dispatcher_pid, server.worker_pids(), server.member(MODEL).restarts
    write_kept(tmp_path, Kept(target=wanted))
    command = [sys.executable, "-c", _AGENT, str(control_path(server.run_dir)), str(tmp_path)]
    with FaultLoad(server.ports(), MODEL, file) as load:
        for _ in range(2):
            agent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert agent.stdout is not None
            while int(agent.stdout.readline()) < 2:
                pass
            agent.kill()
            agent.wait()
            agent.stdout.close()
            load.wait_right(30)
    assert counted(load).nothing_but_right
    assert (server.dispatcher_pid, server.worker_pids(), server.member(MODEL).restarts) == before


@pytest.mark.slow
def test_a_stopped_worker_is_found_and_costs_no_request(
    server: Server, file: ModelFile, counted: Counted
):
    """When its batch is given out anew the process is gone: resuming it can change no answer."""
    server.apply(two(file))
    with FaultLoad(server.ports(), MODEL, file) as load:
        load.wait_right(30)
        pid = min(server.worker_pids())
        os.kill(pid, signal.SIGSTOP)
        load.wait_right(30)  # by the other one
        server.wait_for(lambda r: r.services[0].members[0].restarts == 1, "the hang noticed")
        assert not started(pid)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        server.wait_served()
        load.wait_right(60)
    assert counted(load).nothing_but_right


@pytest.mark.slow
def test_a_worker_resumed_before_its_batch_is_retried_changes_no_answer(
    server: Server, file: ModelFile, counted: Counted
):
    server.apply(two(file))
    with FaultLoad(server.ports(), MODEL, file) as load:
        for _ in range(3):
            pid = min(server.worker_pids())
            os.kill(pid, signal.SIGSTOP)
            load.wait_right(20)
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass  # on a slow machine it was taken for hung already
            load.wait_right(20)
    assert counted(load).nothing_but_right
    server.wait_served()


def test_a_poison_request_is_quarantined_and_costs_nobody_else(
    server: Server, crowd: Crowd, file: ModelFile, counted: Counted
):
    server.apply(two(file))
    with FaultLoad(server.ports(), MODEL, file) as load:
        load.wait_right(30)
        poison = crowd.ask(MODEL, told(DIE))
        with pytest.raises(InferenceServerException, match=r"INTERNAL.*2 instances ended"):
            poison.result()
        load.wait_right(60)
        server.wait_served()
    assert counted(load).nothing_but_right
    assert server.member(MODEL).restarts == 2
