"""What clients may cost a front end before they have proved to speak TLS; certificates replaced under their hands."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest
import uvloop

from support.certificates import Authority
from support.served_models import served_plane
from tessera_runtime.protocol import accepting
from tessera_runtime.protocol.grpc_server import start_grpc
from tessera_runtime.protocol.http_server import start_http
from tessera_runtime.protocol.tls import Tls, TlsFiles


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
            await http.renew(tls.http)

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
