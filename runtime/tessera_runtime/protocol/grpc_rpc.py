"""Calls that are rare: a coroutine for each, and messages by protobuf."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tessera_runtime.dataplane import Slot
from tessera_runtime.errors import InvalidRequest, ServeError
from tessera_runtime.protocol.grpc_call import Begin, Call, Service, framed, method
from tessera_runtime.protocol.grpc_codec import parse
from tessera_runtime.protocol.grpc_head import Head
from tessera_runtime.protocol.grpc_stream import Streaming
from tessera_runtime.protocol.http2.connection import Connection

Handler = Callable[[bytes, "TaskCall"], Awaitable[None]]
"""Answers a serialized request by the methods of the call. Raises ServeError."""


def unary(request_class: Any, answer: Callable[[Any, TaskCall], Awaitable[Any]]) -> Begin:
    """A method that answers one message with one; ``answer`` returns the response message."""

    async def handle(data: bytes, call: TaskCall) -> None:
        response = await answer(parse(request_class, data), call)
        message = framed(response.SerializeToString())
        call.answer((message,), len(message))

    return method(TaskCall, handle)


class TaskCall(Call):
    """A call of one request that a coroutine answers."""

    def __init__(
        self,
        service: Service,
        connection: Connection,
        number: int,
        ended: bool,
        head: Head,
        handler: Handler,
    ) -> None:
        super().__init__(service, connection, number, ended, head)
        self._handler = handler
        self._data: bytes | None = None
        self._task: asyncio.Task[None] | None = None

    def message(self, slot: Slot, size: int) -> None:
        self._data = bytes(slot.view[:size])
        slot.release()

    def complete(self) -> None:
        if self._data is None:
            raise InvalidRequest("no message; the method takes one")
        task = self.service.loop.create_task(self._run(self._data))
        self._task = task
        self.service.tasks.add(task)
        task.add_done_callback(self.service.tasks.discard)

    async def _run(self, data: bytes) -> None:
        try:
            await self._handler(data, self)
        except ServeError as error:
            self.fail(error)
        except Exception as error:
            self.broke(error)

    def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()


class EachCall(Streaming):
    """A call that answers each message as it comes."""

    def __init__(
        self,
        service: Service,
        connection: Connection,
        number: int,
        ended: bool,
        head: Head,
        answer: Callable[[bytes], bytes],
    ) -> None:
        """``answer``: from a serialized request to a serialized response. Raises ServeError."""
        super().__init__(service, connection, number, ended, head)
        self._answer = answer

    def message(self, slot: Slot, size: int) -> None:
        data = bytes(slot.view[:size])
        slot.release()
        self.write(self._answer(data))

    def complete(self) -> None:
        self.finish()
