"""Answers of one HTTP/1.1 connection, and its ends: what is sent, and what is dropped when no more can be.

What comes in is the other half, :mod:`tessera_runtime.protocol.http1`.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import random

from tessera_runtime.dataplane import InferReply, Slot, Ticket
from tessera_runtime.errors import ModelFailed, ServeError, status_of
from tessera_runtime.protocol import rest
from tessera_runtime.protocol.body import ChunkedBody
from tessera_runtime.protocol.head import Head
from tessera_runtime.protocol.hub import Hub
from tessera_runtime.protocol.reply import infer_answer, plain_answer
from tessera_runtime.protocol.routes import Endpoint
from tessera_runtime.protocol.v2json import Encoding

_log = logging.getLogger(__name__)


class State(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    CHUNKED = enum.auto()
    BUSY = enum.auto()
    LINGER = enum.auto()
    GONE = enum.auto()


class Answering(asyncio.BufferedProtocol):
    """The sending half of a connection, with the request that is under way."""

    __slots__ = (
        "_chunks", "_drained_at", "_encoding", "_head", "_hub", "_old", "_old_at", "_pending", "_since",
        "_slot", "_state", "_ticket", "_transport", "_unsent", "_view",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._state = State.GONE
        self._since = hub.now
        """When the state was entered, or last made progress."""
        self._old_at = hub.now + hub.limits.max_connection_age_s * random.uniform(0.9, 1.0)
        self._old = False
        """Whether the next answer ends the connection."""
        self._pending = b""
        """Received but not consumed: part of a head, or pipelined requests."""
        self._head: Head | None = None
        self._slot: Slot | None = None
        self._view = hub.scratch
        self._chunks: ChunkedBody | None = None
        self._ticket: Ticket | None = None
        self._encoding = Encoding(False, {})
        self._unsent = 0
        self._drained_at = hub.now

    def _advance(self) -> None:
        """Begin what is pending."""
        raise NotImplementedError

    # --- an answer -----------------------------------------------------------------------------------

    def _answer_plain(self, head: Head, body: bytes) -> None:
        plane, route = self._hub.plane, head.route
        response = rest.refuse_method(head)
        if response is None and route.endpoint in (Endpoint.LOAD, Endpoint.UNLOAD):
            task = asyncio.get_running_loop().create_task(self._change(head, body))
            self._hub.tasks.add(task)
            task.add_done_callback(self._hub.tasks.discard)
            return
        self._respond(response or rest.answer(plane, head, body))

    async def _change(self, head: Head, body: bytes) -> None:
        try:
            response = await rest.change(self._hub.plane, head, body)
        except ServeError as error:
            response = rest.Response(status_of(error).http, rest.error_body(str(error)))
        except Exception:
            _log.exception("request to %s failed", head.route)
            response = rest.Response(500, rest.error_body("internal error"))
        if self._state is State.BUSY:
            self._respond(response)
            self._advance()

    def _done(self, result: InferReply | ServeError) -> None:
        """The data plane's callback."""
        self._ticket = None
        if self._state is not State.BUSY:
            return
        if isinstance(result, ServeError):
            self._answer_error(result)
        else:
            try:
                self._answer_infer(result)
            except ServeError as error:
                self._answer_error(error)
            except Exception:
                _log.exception("an answer of %s cannot be encoded", result.model)
                self._answer_error(ModelFailed("the model answered something malformed"))
        if self._pending:
            self._advance()

    def _answer_infer(self, reply: InferReply) -> None:
        head = self._head
        assert head is not None
        close = not head.keep_alive or self._old or self._hub.closing
        parts = infer_answer(head, reply, self._encoding, close)
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)
        self._answered(close)

    def _answer_error(self, error: ServeError) -> None:
        self._respond(rest.Response(status_of(error).http, rest.error_body(str(error))))

    def _respond(self, response: rest.Response) -> None:
        head = self._head
        close = head is None or not head.keep_alive or self._old or self._hub.closing
        self._transport.write(plain_answer(head, response, close))
        self._answered(close)

    def _answered(self, close: bool) -> None:
        if self._state is State.GONE:  # aborted by the write, as one unread answer too many
            return
        self._since = self._hub.now
        if close:
            self._close()
            return
        self._state = State.HEAD

    # --- ends ----------------------------------------------------------------------------------------

    def _refuse(self, status: int, message: str) -> None:
        """Answer while bytes of the request may still be on their way, and end the connection."""
        self._forget()
        response = rest.Response(status, rest.error_body(message))
        self._transport.write(plain_answer(None, response, True))
        self._state = State.LINGER
        self._since = self._hub.now
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        self._forget()
        self._since = self._hub.now
        self._transport.close()

    def _forget(self) -> None:
        """Drop whatever is under way."""
        self._state = State.GONE
        self._pending = b""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.cancel()
        slot, self._slot = self._slot, None
        if slot is None and self._chunks is not None:
            slot = self._chunks.take()
        self._view, self._chunks = self._hub.scratch, None
        if slot is not None:
            slot.release()

    def abort(self) -> None:
        self._forget()
        self._transport.abort()

    def pause_writing(self) -> None:
        hub = self._hub
        hub.blocked[self] = None
        self._unsent = self._transport.get_write_buffer_size()
        self._drained_at = hub.now
        unsent = sum(one._transport.get_write_buffer_size() for one in hub.blocked)
        for one in list(hub.blocked):
            if unsent <= hub.limits.max_buffered_response:
                break
            unsent -= one._transport.get_write_buffer_size()
            del hub.blocked[one]
            one.abort()
