"""The agent's conversation with the server: refusals, nonsense, silence, and a client that gives up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from support.targets import server as target
from tessera_runtime import control
from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.secret import make_secret, secret_beside
from tessera_runtime.target import Ports, ServerReport

REPORT = ServerReport(3, True, (), (), 0, 1, 2.5, 0.5, Ports(1, 2, 3))


async def obliging(request: control.Request) -> control.Answer:
    match request:
        case control.Apply(wanted) if wanted.epoch < 0:
            return control.Refused("epoch: found -1, at least 0 is allowed")
        case control.Apply():
            return control.Applied()
        case _:
            return control.Reported(REPORT)


@asynccontextmanager
async def listening(
    path: Path, handler: control.Handler = obliging
) -> AsyncIterator[ControlClient]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    server = await control.serve_control(handler, listener.detach(), make_secret(path.parent))
    client = ControlClient(str(path))
    yield client
    await client.close()
    server.close()  # not waited for: from Python 3.12 on that includes handlers, and some here never return


@asynccontextmanager
async def speaking(
    path: Path, converse: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[ControlClient]:
    """A client of a server that does not keep to the protocol."""

    async def after_the_secret(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == secret_beside(str(path)) + b"\n"
        await converse(reader, writer)

    make_secret(path.parent)
    server = await asyncio.start_unix_server(after_the_secret, path)
    client = ControlClient(str(path))
    yield client
    await client.close()
    server.close()


async def test_a_target_and_a_report_travel(tmp_path: Path):
    async with listening(tmp_path / "s") as client:
        await client.apply(target())
        assert await client.report() == REPORT


async def test_a_refusal_is_an_error_with_its_reason(tmp_path: Path):
    async with listening(tmp_path / "s") as client:
        with pytest.raises(ControlError, match="epoch: found -1"):
            await client.apply(type(target())(epoch=-1))
        assert await client.report() == REPORT


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"{}",
        b'{"type":"Launch"}',
        b'{"type":"Apply"}',
        b'{"type":"Apply","target":{"services":7}}',
        b'{"type":"Apply","target":{"services":[{"name":"a"}]}}',
        b"[]",
        b"null",
        b"\xff\xfe",
    ],
)
async def test_a_bad_message_is_refused_and_the_next_one_answered(tmp_path: Path, line: bytes):
    async with listening(tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(secret_beside(str(tmp_path / "s")) + b"\n" + line + b'\n{"type":"Report"}\n')
        assert b"not a control message" in await reader.readline()
        assert b"Reported" in await reader.readline()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("said", [b'{"type":"Report"}\n', b"\n", b"0" * 64 + b"\n", b"x" * 5000])
async def test_who_does_not_know_the_secret_is_hung_up_on(tmp_path: Path, monkeypatch, said: bytes):
    monkeypatch.setattr(control, "MAX_LINE", 1024)
    async with listening(tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(said + b'{"type":"Report"}\n')
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass  # it did not read all of it
        writer.close()


async def test_who_says_nothing_is_hung_up_on(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(control, "PATIENCE_S", 0.01)
    async with listening(tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        assert await reader.read() == b""
        writer.close()


async def test_a_server_that_was_started_again_is_told_its_new_secret(tmp_path: Path):
    async with listening(tmp_path / "s") as client:
        assert await client.report() == REPORT
        await client.close()
    (tmp_path / "s").unlink()
    async with listening(tmp_path / "s"):
        assert await client.report() == REPORT
        await client.close()


async def test_an_endless_line_ends_the_conversation(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(control, "MAX_LINE", 1024)
    async with listening(tmp_path / "s") as client:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(secret_beside(str(tmp_path / "s")) + b"\n" + b"x" * 5000)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert await client.report() == REPORT


async def test_no_server_is_said_so(tmp_path: Path):
    with pytest.raises(ControlError, match=r"does not answer: .*No such file"):
        await ControlClient(str(tmp_path / "nobody")).report()


async def test_a_server_that_hangs_up_is_connected_to_again(tmp_path: Path):
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async with speaking(tmp_path / "s", leave) as client:
        for _ in range(2):
            with pytest.raises(ControlError, match="hung up"):
                await client.report()


@pytest.mark.parametrize("answer", [b"nonsense\n", b'{"type":"Applied","x":\n', b"{}\n"])
async def test_a_server_that_talks_nonsense_is_a_control_error(tmp_path: Path, answer: bytes):
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with speaking(tmp_path / "s", babble) as client:
        with pytest.raises(ControlError, match="not a control message"):
            await client.report()


async def test_another_answer_than_the_one_asked_for_is_an_error(tmp_path: Path):
    async def applied(request: control.Request) -> control.Answer:
        return control.Applied()

    async with listening(tmp_path / "s", applied) as client:
        with pytest.raises(ControlError, match="found the answer Applied, expected Reported"):
            await client.report()


async def test_silence_says_how_long_was_waited(tmp_path: Path):
    async def silence(request: control.Request) -> control.Answer:
        await asyncio.Event().wait()
        raise AssertionError

    async with listening(tmp_path / "s", silence) as client:
        with pytest.raises(ControlError, match="does not answer: nothing for 0 s"):
            await client._ask(control.Report(), control.Reported, 0.01)


async def test_a_request_that_was_given_up_does_not_answer_the_next(tmp_path: Path):
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow_to_apply(request: control.Request) -> control.Answer:
        if isinstance(request, control.Apply):
            asked.set()
            await go_on.wait()
        return await obliging(request)

    async with listening(tmp_path / "s", slow_to_apply) as client:
        applying = asyncio.create_task(client.apply(target()))
        await asked.wait()
        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying
        go_on.set()
        assert await client.report() == REPORT
