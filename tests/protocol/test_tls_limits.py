"""What clients may cost a front end before they have proved to speak TLS; certificates replaced under their hands."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import ssl
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import uvloop

from support.certificates import Authority
from support.served_models import served_plane
from tessera_runtime.protocol import accepting
from tessera_runtime.protocol.front_end import FrontEnd
from tessera_runtime.protocol.grpc_server import start_grpc
from tessera_runtime.protocol.http_server import start_http
from tessera_runtime.protocol.limits import GrpcLimits, HttpLimits
from tessera_runtime.protocol.listen import listen_on
from tessera_runtime.protocol.tls import Tls, TlsFiles

FEW = 16


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    pair = Authority(tmp_path).issue("server")
    return Tls(TlsFiles(pair.certificate, pair.key))


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"\x16\x03\x01\x40\x00" + b"\x01" * 500])
def test_a_handshake_that_does_not_end_is_ended(
    tls: Tls, monkeypatch: pytest.MonkeyPatch, sent: bytes
):
    monkeypatch.setattr(accepting, "HANDSHAKE_S", 0.2)
    uvloop.run(_ended(tls, sent))


async def _ended(tls: Tls, sent: bytes) -> None:
    http = await start_http(served_plane(), context=tls.http)
    grpc = await start_grpc(served_plane(), context=tls.grpc)
    for port in (http.port, grpc.port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        try:
            await asyncio.wait_for(reader.read(), 20)
        except ConnectionError:
            pass
        writer.close()
        await writer.wait_closed()
    await http.close()
    await grpc.close()


@pytest.mark.parametrize("front_end", ["http", "grpc"])
def test_handshakes_that_do_not_end_are_bounded_and_clients_are_served(
    tls: Tls, tmp_path: Path, front_end: str
):
    """Of many who connect and say little or nothing, those go first that came first: an honest client needs less time."""
    trusting = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    uvloop.run(_crowded(tls, trusting, front_end))


async def _crowded(tls: Tls, trusting: ssl.SSLContext, front_end: str) -> None:
    server = await _start(tls, front_end)
    beginnings = (b"", b"\x16\x03\x01", b"\x16\x03\x01\x40\x00" + b"\x01" * 500)
    slow = await _connect(server.port)
    strangers = []
    for number in range(6 * FEW):
        strangers.append(await _connect(server.port, beginnings[number % len(beginnings)]))
        if (
            number == FEW // 2
        ):  # not all that may be under way: who came before them still has its time
            await _handshake(slow, trusting)
    # Whoever is still there got in after the others had to go.
    await asyncio.wait_for(asyncio.gather(*(_end(each) for each in strangers[:-FEW])), 20)
    assert server.handshakes == FEW
    for _ in range(2 * FEW):
        await _handshake(await _connect(server.port), trusting)
    staying = [asyncio.create_task(_end(each)) for each in strangers[-FEW:]]
    await server.close()
    assert server.handshakes == 0
    await asyncio.wait_for(asyncio.gather(*staying), 20)
    assert server.connections == 0


async def _start(tls: Tls, front_end: str) -> FrontEnd[Any]:
    if front_end == "grpc":
        limits = GrpcLimits(max_handshakes=FEW)
        return await start_grpc(served_plane(), limits=limits, context=tls.grpc)
    return await start_http(served_plane(), limits=HttpLimits(max_handshakes=FEW), context=tls.http)


async def _connect(port: int, sent: bytes = b"") -> socket.socket:
    """Returns when the connection is in the server's queue."""
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    sock.send(sent)
    return sock


async def _handshake(sock: socket.socket, trusting: ssl.SSLContext) -> None:
    """Become a client whom the server talks to: it speaks first, or answers a request."""
    opening = asyncio.open_connection(sock=sock, ssl=trusting, server_hostname="127.0.0.1")
    reader, writer = await asyncio.wait_for(opening, 20)
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()


async def _end(sock: socket.socket) -> None:
    """Returns when the server has ended the connection."""
    try:
        while await asyncio.get_running_loop().sock_recv(sock, 4096):
            pass
    except ConnectionError:
        pass
    sock.close()


def test_handshakes_that_do_not_end_leave_descriptors_to_clients(
    tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(accepting, "HANDSHAKE_S", 1000.0)
    uvloop.run(_exhausted(tls, ssl.create_default_context(cafile=tmp_path / "ca.pem")))
    assert "Too many open files" in caplog.text


async def _exhausted(tls: Tls, trusting: ssl.SSLContext) -> None:
    listening = listen_on("127.0.0.1", 0)
    port = listening.getsockname()[1]
    strangers = [await _connect(port) for _ in range(3 * FEW)]
    client = await _connect(port)
    taken = {int(each) for each in os.listdir("/proc/self/fd")}
    free = (number for number in range(10_000) if number not in taken)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(free, FEW, None)), hard))
    try:
        server = await start_http(served_plane(), listening, context=tls.http)
        await _handshake(client, trusting)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await server.close()
    for each in strangers:
        each.close()


def test_a_client_may_not_ask_for_new_keys_again_and_again(tls: Tls):
    """TLS 1.2 can negotiate anew on a connection, which costs the server more than the client."""
    assert tls.http is not None
    assert tls.http.options & ssl.OP_NO_RENEGOTIATION


def test_connections_in_a_queue_survive_a_replacement(tls: Tls, tmp_path: Path):
    """Many connect while the certificates are replaced: all of them are answered, by one certificate or the other."""
    uvloop.run(_replaced(tls, tmp_path / "ca.pem"))


async def _replaced(tls: Tls, trusted: Path) -> None:
    http = await start_http(served_plane(), context=tls.http)
    trusting = ssl.create_default_context(cafile=trusted)

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port, ssl=trusting)
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def replace() -> None:
        for _ in range(20):
            http.renew(tls.http)
            await asyncio.sleep(0)

    answers, _ = await asyncio.gather(asyncio.gather(*(ask() for _ in range(100))), replace())
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    await http.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", http.port))


def test_a_connection_that_waits_to_be_accepted_when_a_drain_begins_is_answered(
    tls: Tls, tmp_path: Path
):
    uvloop.run(_drained(tls, tmp_path / "ca.pem"))


async def _drained(tls: Tls, trusted: Path) -> None:
    http = await start_http(served_plane(), context=tls.http)
    connected: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

    async def drain() -> None:
        """The loop is busy until the drain has begun, so that nobody accepts."""
        connected.set_result(socket.create_connection(("127.0.0.1", http.port)))
        await http.drain(20)

    draining = asyncio.create_task(drain())
    late = await connected
    reader, writer = await asyncio.open_connection(
        sock=late, ssl=ssl.create_default_context(cafile=trusted), server_hostname="127.0.0.1"
    )
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()
    writer.close()
    await writer.wait_closed()
    await draining
