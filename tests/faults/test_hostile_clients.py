"""Clients that send garbage, never read, or open thousands of connections, beside others that are served all along."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.fault_load import Counts, FaultLoad
from support.model_files import ModelFile
from support.raw_http import RawClient, request
from support.raw_http2 import INFER, RawHttp2, call_fields
from support.server import PATIENCE_S, Server, fds, wait_until
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.protocol.http2 import frames
from tessera_runtime.protocol.http2.frames import Code

MODEL = "test.m"
Counted = Callable[[FaultLoad], Counts]

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture
def load(server: Server, file: ModelFile) -> FaultLoad:
    server.apply(target(service("m", member("a", file, instances=2))))
    return FaultLoad(server.ports(), MODEL, file)


def descriptors(server: Server) -> int:
    return len(fds(server.dispatcher_pid))


def test_garbage_is_ended_and_costs_no_request(server: Server, load: FaultLoad, counted: Counted):
    """Noise, noise after a valid beginning, and a valid beginning cut anywhere, at both ports."""
    noise = random.Random(5)
    beginnings = (b"", HTTP2_PREFACE, request("POST", f"/v2/models/{MODEL}/infer", b"{" * 999))
    ports = server.ports()
    before = descriptors(server)
    with load:
        load.wait_right(20)
        for number in range(300):
            start = noise.choice(beginnings)
            kept = start[: noise.randrange(len(start) + 1)] if number % 2 else start
            port = (ports.http, ports.grpc)[noise.randrange(2)]
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
                try:
                    sock.sendall(kept + noise.randbytes(noise.randrange(2000)))
                    if number % 3 == 0:
                        sock.shutdown(socket.SHUT_WR)
                        while sock.recv(65536):
                            pass
                except ConnectionError:
                    pass  # it had seen enough
        load.wait_right(30)
    assert counted(load).nothing_but_right
    wait_until(lambda: descriptors(server) <= before, "the connections closed")


def test_clients_that_never_read_cost_no_request(server: Server, load: FaultLoad, counted: Counted):
    port = server.ports().http
    listing = request("GET", "/v2/models/test.m") * 200
    with load, ExitStack() as connected:
        load.wait_right(20)
        for _ in range(50):
            client = connected.enter_context(RawClient(port, receive_buffer=4096))
            client.socket.setblocking(False)
            try:
                while True:
                    client.socket.send(listing)
            except BlockingIOError:
                pass  # the server has stopped reading it
        load.wait_right(60)
    assert counted(load).nothing_but_right
    server.wait_for(lambda r: r.arena_used == 0, "their memory given back")


def resets(client: RawHttp2) -> Iterator[bytes]:
    """Calls that are given up at once (CVE-2023-44487)."""
    block = client.encoder.encode(call_fields(INFER).items())
    for first in range(1, 40_000, 200):
        yield b"".join(
            frames.frame(frames.HEADERS, frames.END_HEADERS, number, block)
            + frames.reset(number, Code.CANCEL)
            for number in range(first, first + 200, 2)
        )


def continuations(client: RawHttp2) -> Iterator[bytes]:
    """Headers that never end (CVE-2024-27316)."""
    yield frames.frame(frames.HEADERS, 0, 1, b"\x82")
    for _ in range(200):
        yield frames.frame(frames.CONTINUATION, 0, 1) * 100


def pings(client: RawHttp2) -> Iterator[bytes]:
    for _ in range(200):
        yield frames.frame(frames.PING, 0, 0, bytes(8)) * 100


@pytest.mark.parametrize("flood", [resets, continuations, pings])
def test_floods_of_frames_are_ended_and_cost_no_request(
    server: Server,
    load: FaultLoad,
    counted: Counted,
    flood: Callable[[RawHttp2], Iterator[bytes]],
):
    port = server.ports().grpc
    before = descriptors(server)
    with load:
        load.wait_right(20)
        for _ in range(10):
            with RawHttp2(port) as client:
                try:
                    for part in flood(client):
                        client.send(part)
                    assert client.goaway().code == Code.ENHANCE_YOUR_CALM
                except ConnectionError:
                    pass  # it was ended while it still sent
        load.wait_right(30)
    assert counted(load).nothing_but_right
    wait_until(lambda: descriptors(server) <= before, "the connections closed")


def test_heads_and_bodies_that_drip_cost_no_request(
    server: Server, load: FaultLoad, counted: Counted
):
    """As from slow-loris; that each is ended in time is tested beside the limits."""
    ports = server.ports()
    whole = request("POST", f"/v2/models/{MODEL}/infer", b" " * 400)
    with load, ExitStack() as connected:
        load.wait_right(20)
        clients = []
        for number in range(600):
            port = ports.grpc if number % 3 == 0 else ports.http
            clients.append(
                connected.enter_context(
                    socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
                )
            )
        for at in range(5):
            for number, client in enumerate(clients):
                sent = HTTP2_PREFACE if number % 3 == 0 else whole
                client.sendall(sent[at : at + 1])
            load.wait_right(10)
    assert counted(load).nothing_but_right


@pytest.mark.slow
def test_ten_thousand_connections_opened_and_dropped_cost_no_request(
    server: Server, load: FaultLoad, counted: Counted
):
    ports = server.ports()
    before = descriptors(server)
    with load:
        load.wait_right(20)
        for number in range(10_000):
            port = ports.grpc if number % 2 else ports.http
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
                if number % 4 == 0:  # reset instead of an orderly end
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        load.wait_right(60)
    assert counted(load).nothing_but_right
    # Those of the load too, which has as many as there are requests in flight.
    wait_until(lambda: descriptors(server) <= before, "the connections closed")


def cpu_s(pid: int) -> float:
    fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_server_out_of_descriptors_serves_on_and_recovers(
    server: Server, load: FaultLoad, file: ModelFile, counted: Counted
):
    """Connections that are open are served; new ones wait or are closed, and waiting costs no processor."""
    pid = server.dispatcher_pid
    allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    ports = server.ports()
    with ExitStack() as connected:
        with load:
            load.wait_right(40)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(server) + 8, allowed[1]))
            for number in range(60):
                port = ports.grpc if number % 2 else ports.http
                sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
                connected.enter_context(sock)
            load.wait_right(40)
        counts = counted(load)
        used, since = cpu_s(pid), time.monotonic()
        wait_until(lambda: time.monotonic() - since > 1.5, "some time without load")
        share = (cpu_s(pid) - used) / (time.monotonic() - since)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, allowed)
    assert share < 0.5, f"{share:.0%} of a processor for doing nothing"
    assert set(counts.failed) == set(), counts
    with FaultLoad(ports, MODEL, file) as again:
        again.wait_right(60)
    assert again.counts().nothing_but_right
    assert server.dispatcher_pid == pid


def test_a_worker_lost_without_free_descriptors_comes_back_with_them(
    server: Server, load: FaultLoad, counted: Counted
):
    pid = server.dispatcher_pid
    allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with load:
        load.wait_right(40)
        # What the lost one leaves behind could be enough for the next one: so none at all.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (1, allowed[1]))
        try:
            killed = min(server.worker_pids())
            os.kill(killed, signal.SIGKILL)
            server.wait_for(
                lambda r: "Too many open files" in r.services[0].members[0].problem,
                "the reason said",
            )
            load.wait_right(40)
        finally:  # the others of this folder need them
            resource.prlimit(pid, resource.RLIMIT_NOFILE, allowed)
        server.wait_served()
        load.wait_right(40)
    counts = counted(load)
    assert counts.failed == {}, counts
