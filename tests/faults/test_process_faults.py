"""The server's own processes die, ports are taken, signals come at bad moments."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.clients import Crowd, Load, infer_http
from support.model_files import ModelFile, rows
from support.server import (
    PATIENCE_S,
    Server,
    descendants,
    running_server,
    started,
    supervisor_command,
    wait_until,
)
from support.targets import member, service
from support.targets import server as target

MODEL = "test.m"


def one(file: ModelFile, **settings: object):
    return target(service("m", member("a", file, **settings)))


def test_a_killed_dispatcher_is_restarted_and_serves_again(server: Server, file: ModelFile):
    server.apply(one(file, instances=2))
    before, workers = server.ports(), server.worker_pids()
    os.kill(server.dispatcher_pid, signal.SIGKILL)
    server.reapply()
    assert server.ports().http == before.http, "the supervisor kept the port"
    assert not workers & server.worker_pids()
    wait_until(lambda: not any(map(started, workers)), "the old workers ended")
    with Load(server.ports(), MODEL, file) as load:
        load.wait_answers(20)
    load.check()


def test_connections_wait_while_the_dispatcher_restarts(server: Server, file: ModelFile):
    server.apply(one(file))
    port = server.ports().http
    os.kill(server.dispatcher_pid, signal.SIGKILL)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        sock.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(64).startswith(b"HTTP/1.1 200")
    server.reapply()


def test_a_killed_zygote_takes_its_workers_along_and_comes_back(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(one(file, instances=2, cap=1))
    workers = server.worker_pids()
    file.hold()
    asked = [(x := rows(i), crowd.ask(MODEL, x)) for i in range(6)]
    file.wait_held()
    os.kill(server.zygote_pid, signal.SIGKILL)
    wait_until(lambda: not any(map(started, workers)), "the workers ended with the zygote")
    file.let_go()
    for x, answer in asked:
        np.testing.assert_array_equal(answer.result(), file(x))
    server.wait_served()


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path, file: ModelFile):
    server = Server(tmp_path / "run", [])
    server.apply(one(file, instances=2))
    processes = descendants(server.process.pid)
    assert len(processes) >= 4, "zygote, dispatcher, two workers"
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(map(started, processes)), "everything ended with the supervisor")
    server.hang_up()


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("front_end", ["http", "grpc", "metrics"])
def test_a_port_in_use_ends_the_server_and_is_named(tmp_path: Path, taken: int, front_end: str):
    command = supervisor_command(tmp_path / "run", [f"--{front_end}={taken}"])
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 78, ended.stderr
    assert f"port {taken}" in ended.stderr


def test_a_server_told_to_stop_while_it_starts_leaves_nothing(tmp_path: Path):
    for attempt, event in enumerate(["started zygote", "started dispatcher"] * 3):
        process = subprocess.Popen(
            supervisor_command(tmp_path / f"run{attempt}", []), stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        while event not in process.stderr.readline():
            assert process.poll() is None
        below = {pid: started(pid) for pid in descendants(process.pid)}
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(PATIENCE_S) == 0
        process.stderr.close()
        for pid, start in below.items():
            assert not start or started(pid) != start


def test_a_request_in_flight_is_answered_when_the_server_is_told_to_stop(tmp_path: Path):
    file = ModelFile(tmp_path / "model.py", scale=5.0)
    with running_server(tmp_path / "run") as server:
        server.apply(one(file))
        ports = server.ports()
        http, crowd = server.http(network_timeout=PATIENCE_S), Crowd(ports.grpc)
        infer_http(http, MODEL, rows(0))
        file.hold()
        asked = [(rows(i), crowd.ask(MODEL, rows(i))) for i in range(3)]
        over_http = crowd.submit(infer_http, server.http(), MODEL, rows(7))
        file.wait_held()
        server.wait_for(lambda r: r.services[0].arrivals_rows == 5, "all requests")
        server.process.terminate()
        wait_until(lambda: "draining" in server.log(), "the drain")
        file.let_go()
        for x, answer in asked:
            np.testing.assert_array_equal(answer.result(), file(x))
        np.testing.assert_array_equal(over_http.result().as_numpy("y"), file(rows(7)))
        crowd.close()
        assert server.process.wait(PATIENCE_S) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ports.http))
