"""The agent's conversation with the server: one JSON document a line, over a Unix socket.

The first line is the secret that lies beside the socket; whoever does not know it is hung up on.
The server answers every request with one line. The agent may hang up and come back at any time; the server
keeps running what it was told last.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec

from tessera_runtime.secret import PATIENCE_S, matches, secret_beside
from tessera_runtime.target import (
    ProfileReport,
    ProfileRequest,
    ServerReport,
    ServerTarget,
    TuneOutcome,
    TuneRequest,
)

MAX_LINE = 16 << 20
"""Bytes of one message: a target of several thousand instances."""


class Apply(msgspec.Struct, frozen=True, tag=True):
    target: ServerTarget
    keys: Mapping[str, tuple[str, ...]] = {}
    """By served name, of services that need one. None at all: nobody may name it. A service that is not among them
    keeps those that the server was given before, if any.
    """


class Report(msgspec.Struct, frozen=True, tag=True):
    """Ask for a ServerReport."""


class Profile(msgspec.Struct, frozen=True, tag=True):
    request: ProfileRequest


class Tune(msgspec.Struct, frozen=True, tag=True):
    """Asked on a connection of its own: closing that is how it is cancelled. Several run at once."""

    request: TuneRequest


class Applied(msgspec.Struct, frozen=True, tag=True): ...


class Reported(msgspec.Struct, frozen=True, tag=True):
    report: ServerReport


class Profiled(msgspec.Struct, frozen=True, tag=True):
    report: ProfileReport


class Tuned(msgspec.Struct, frozen=True, tag=True):
    outcome: TuneOutcome


class Refused(msgspec.Struct, frozen=True, tag=True):
    reason: str


Request = Apply | Report | Profile | Tune
Answer = Applied | Reported | Profiled | Tuned | Refused

_encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(Request).decode
_decode_answer = msgspec.json.Decoder(Answer).decode

T = TypeVar("T")

Handler = Callable[[Request], Coroutine[Any, Any, Answer]]


class ControlError(Exception):
    """The server refused a request, or cannot be reached."""


class ServerGone(ControlError):
    """It does not answer: what it was told may be lost with it."""


async def serve_control(handler: Handler, listener_fd: int, digest: str) -> asyncio.Server:
    """Answer on the listening socket ``listener_fd``, which the supervisor owns and keeps, whoever says the secret
    of ``digest``.
    """

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                said = await reader.readline()
            if not matches(said.strip(), digest):
                return
            while line := await reader.readline():
                try:
                    request = _decode_request(line)
                    if isinstance(request, Tune):
                        answer = await _unless_hung_up(handler(request), reader)
                    else:
                        answer = await handler(request)
                except msgspec.MsgspecError as error:
                    answer = Refused(f"not a control message: {error}")
                writer.write(_encode(answer) + b"\n")
                await writer.drain()
        except (OSError, ValueError, asyncio.CancelledError):
            pass  # the agent went away, sent an endless line, or the server ends: nothing is half done
        finally:
            writer.close()

    listener = socket.socket(fileno=listener_fd)
    return await asyncio.start_unix_server(converse, sock=listener, limit=MAX_LINE)


async def _unless_hung_up(
    answering: Coroutine[Any, Any, Answer], reader: asyncio.StreamReader
) -> Answer:
    """What takes minutes is cancelled when nobody waits for it any more. Raises ConnectionError then, and where more is said
    before the answer.
    """
    work = asyncio.create_task(answering)
    silence = asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait((work, silence), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ConnectionError("hung up")
        return work.result()
    finally:
        for task in (work, silence):
            task.cancel()
        await asyncio.gather(work, silence, return_exceptions=True)


class ControlClient:
    """The agent's side. One request at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def another(self) -> ControlClient:
        """A client of its own for the same server."""
        return ControlClient(self._path)

    async def apply(
        self, target: ServerTarget, keys: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        await self._ask(Apply(target, keys or {}), Applied, 30.0)

    async def report(self) -> ServerReport:
        return (await self._ask(Report(), Reported, 30.0)).report

    async def profile(self, request: ProfileRequest, timeout_s: float) -> ProfileReport:
        return (await self._ask(Profile(request), Profiled, timeout_s)).report

    async def tune(self, request: TuneRequest, timeout_s: float) -> TuneOutcome:
        """By a client of its own: cancelled, it hangs up, and the server ends what it does for it."""
        return (await self._ask(Tune(request), Tuned, timeout_s)).outcome

    async def close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    async def _ask(self, request: Request, expected: type[T], timeout_s: float) -> T:
        async with self._lock:
            try:
                async with asyncio.timeout(timeout_s):
                    line = await self._exchange(_encode(request) + b"\n")
            except (OSError, ValueError) as error:
                await self.close()
                reason = str(error) or f"nothing for {timeout_s:.0f} s"
                raise ServerGone(f"the server does not answer: {reason}") from error
            except BaseException:
                await self.close()  # or the next request would be given this one's answer
                raise
        if not line:
            await self.close()
            raise ServerGone("the server hung up")
        try:
            answer = _decode_answer(line)
        except msgspec.MsgspecError as error:
            await self.close()
            raise ControlError(f"the server's answer is not a control message: {error}") from error
        if isinstance(answer, Refused):
            raise ControlError(answer.reason)
        if not isinstance(answer, expected):
            raise ControlError(
                f"found the answer {type(answer).__name__}, expected {expected.__name__}"
            )
        return answer

    async def _exchange(self, line: bytes) -> bytes:
        if self._stream is None:
            secret = secret_beside(self._path)
            self._stream = await asyncio.open_unix_connection(self._path, limit=MAX_LINE)
            self._stream[1].write(secret + b"\n")
        reader, writer = self._stream
        writer.write(line)
        await writer.drain()
        return await reader.readline()
