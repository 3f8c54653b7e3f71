"""Several servers share the ports of clients: who may, when one takes its part, and what is lost when one ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from support.clients import PATIENCE_S, infer_grpc, infer_http
from support.model_files import ModelFile, rows
from support.server import Server, running_server, supervisor_command, wait_until
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.target import Ports

SHARED = "--reuse-port"

MODEL = "test.m"

MANY = 32
"""New connections, of which one server in two has none only once in 2^32 times."""

LISTEN = "0A"


@contextmanager
def beside(directory: Path, name: str, ports: Ports) -> Iterator[Server]:
    """A further server on the ports of another."""
    options = (SHARED, f"--http={ports.http}", f"--grpc={ports.grpc}")
    with running_server(directory / name, *options) as server:
        yield server


def listeners(port: int) -> int:
    """How many sockets take connections to ``port``."""
    entries = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(e[3] == LISTEN and int(e[1].rpartition(":")[2], 16) == port for e in entries)


def wait_listening(ports: Ports, count: int) -> None:
    wait_until(
        lambda: (listeners(ports.http), listeners(ports.grpc)) == (count, count),
        f"{count} servers that take connections",
    )


class NewConnection:
    """A client with a connection of its own."""

    def __init__(self, ports: Ports, wire: str) -> None:
        if wire == "http":
            where = f"127.0.0.1:{ports.http}"
            self.client = http_client.InferenceServerClient(where, network_timeout=PATIENCE_S)
            self._infer = infer_http
        else:
            own = [("grpc.use_local_subchannel_pool", 1)]
            where = f"127.0.0.1:{ports.grpc}"
            self.client = grpc_client.InferenceServerClient(where, channel_args=own)
            self._infer = infer_grpc

    def ask(self, x: np.ndarray) -> np.ndarray:
        return self._infer(self.client, MODEL, x).as_numpy("y")

    def reaches(self, file: ModelFile) -> bool:
        return np.array_equal(self.ask(rows(1)), file(rows(1)))


def connected_to(file: ModelFile, ports: Ports, wire: str) -> NewConnection:
    """A connection to the server of ``file``."""
    for _ in range(MANY):
        client = NewConnection(ports, wire)
        if client.reaches(file):
            return client
        client.client.close()
    raise AssertionError(f"none of {MANY} connections reached the server of {file.path.name}")


def answering(ports: Ports, wire: str, *files: ModelFile) -> list[int]:
    """Of many new connections, how many were answered by the server of each file; none fails."""
    found = [0] * len(files)
    for _ in range(MANY):
        client = NewConnection(ports, wire)
        y = client.ask(rows(1))
        found[[np.array_equal(y, file(rows(1))) for file in files].index(True)] += 1
        client.client.close()
    return found


def one(file: ModelFile):
    return target(service("m", member("a", file)))


@pytest.fixture
def files(tmp_path: Path) -> tuple[ModelFile, ModelFile]:
    """By whose answers servers are told apart."""
    return ModelFile(tmp_path / "two.py", scale=2.0), ModelFile(tmp_path / "three.py", scale=3.0)


@pytest.mark.parametrize(("first", "second"), [("", SHARED), (SHARED, ""), ("", "")])
@pytest.mark.parametrize("front_end", ["http", "grpc"])
def test_a_port_is_shared_only_by_servers_that_all_say_so(
    tmp_path: Path, files: tuple[ModelFile, ModelFile], first: str, second: str, front_end: str
):
    with running_server(tmp_path / "run", *filter(None, [first])) as server:
        server.apply(one(files[0]))
        ports = server.ports()
        wait_listening(ports, 1)
        port = ports.http if front_end == "http" else ports.grpc
        command = supervisor_command(
            tmp_path / "other", [*filter(None, [second]), f"--{front_end}={port}"]
        )
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert ended.returncode == 78, ended.stderr
        assert f"port {port}" in ended.stderr
        assert "in use" in ended.stderr


def test_a_run_dir_is_shared_with_nobody(tmp_path: Path, files: tuple[ModelFile, ModelFile]):
    with running_server(tmp_path / "run", SHARED) as server:
        server.apply(one(files[0]))
        ports = server.ports()
        command = supervisor_command(
            tmp_path / "run", [SHARED, f"--http={ports.http}", f"--grpc={ports.grpc}"]
        )
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert ended.returncode == 78, ended.stderr
        assert f"{tmp_path / 'run'} is in use" in ended.stderr
        server.apply(one(files[1]))


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_server_takes_its_part_once_it_serves_what_it_is_told(
    tmp_path: Path, files: tuple[ModelFile, ModelFile], wire: str
):
    two, three = files
    with running_server(tmp_path / "run", SHARED) as server:
        server.apply(one(two))
        ports = server.ports()
        wait_listening(ports, 1)
        with beside(tmp_path, "joins", ports) as joins:
            assert joins.report().ports.http == ports.http
            assert answering(ports, wire, two, three) == [MANY, 0], "nobody has told it anything"
            three.hold_loading()
            joins.apply(one(three), wait=False)
            assert answering(ports, wire, two, three) == [MANY, 0], "it is still loading"
            three.let_load()
            wait_listening(ports, 2)
            assert all(answering(ports, wire, two, three))


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_server_that_ends_leaves_the_port_to_the_others(
    tmp_path: Path, files: tuple[ModelFile, ModelFile], wire: str
):
    stays, leaves = files
    with running_server(tmp_path / "run", SHARED) as server:
        server.apply(one(stays))
        ports = server.ports()
        # Clients over HTTP stay on the thread that made them.
        with beside(tmp_path, "leaver", ports) as leaver, ThreadPoolExecutor(1) as other:
            leaver.apply(one(leaves))
            wait_listening(ports, 2)
            kept = connected_to(stays, ports, wire)
            left = other.submit(connected_to, leaves, ports, wire).result()
            leaves.hold()
            in_flight = other.submit(left.ask, rows(5))
            leaves.wait_held()
            leaver.process.terminate()
            wait_listening(ports, 1)
            assert leaver.process.poll() is None, "it drains"
            assert answering(ports, wire, stays) == [MANY]
            assert kept.reaches(stays)
            leaves.let_go()
            np.testing.assert_array_equal(in_flight.result(), leaves(rows(5)))
            assert leaver.process.wait(PATIENCE_S) == 0
            other.submit(left.client.close).result()
        assert kept.reaches(stays)
        assert answering(ports, wire, stays) == [MANY]
        kept.client.close()
