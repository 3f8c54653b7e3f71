"""Inference over gRPC: one call, or a stream of independent requests."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from tessera_runtime.dataplane import InferReply, MemberCall, Slot, Ticket
from tessera_runtime.errors import InvalidRequest, ModelFailed, ServeError, TooLarge, Unavailable
from tessera_runtime.protocol.grpc_call import PREFIX, PREFIX_SIZE, Call, Service
from tessera_runtime.protocol.grpc_codec import encode_reply
from tessera_runtime.protocol.grpc_head import Head
from tessera_runtime.protocol.grpc_request import beside_data
from tessera_runtime.protocol.grpc_stream import Streaming
from tessera_runtime.protocol.http2.connection import Connection
from tessera_runtime.protocol.http2.stream import Received
from tessera_runtime.protocol.member_call import LOSSES, QUEUED_ROWS
from tessera_runtime.protocol.messages import ModelInferResponse, ModelStreamInferResponse

_log = logging.getLogger(__name__)

_ENDLESS = "triton_enable_empty_final_response"
"""Parameter of streaming clients that want to be told which answer is the last of its request."""


def _place(service: Service, nbytes: int) -> Slot:
    allowed = service.limits.max_message
    if nbytes > allowed:
        raise TooLarge(f"the message has {nbytes} bytes; allowed: {allowed}")
    return service.plane.allocate(nbytes)


class UnaryInfer(Call):
    """ModelInfer. The hot path: called a few times for each request, and nothing is made but what is needed."""

    _body: Slot | None = None
    _body_size = 0
    _part: tuple[str, MemberCall] | None = None
    """The member that a peer asks for."""
    _ticket: Ticket | None = None

    def whole(self, data: Received, at: int, end: int) -> None:
        """As most requests come: one message in one frame."""
        start = at + PREFIX_SIZE
        if start >= end or PREFIX.unpack_from(data, at) != (0, end - start):
            super().whole(data, at, end)
            return
        try:
            slot = _place(self.service, end - start)
            message = slot.view
            message[:] = data[start:end]
            self.connection.hub.copied += end - start
            self._submit(slot, message)
        except ServeError as error:
            self.fail(error)
        except Exception as error:
            self.broke(error)

    def allocate(self, nbytes: int) -> Slot:
        return _place(self.service, nbytes)

    def message(self, slot: Slot, size: int) -> None:
        self._body, self._body_size = slot, size

    def complete(self) -> None:
        body, self._body = self._body, None
        if body is None:
            raise InvalidRequest("no message; the method takes one")
        self._submit(body, body.view[: self._body_size])

    def _submit(self, slot: Slot, message: bytes | memoryview) -> None:
        """The message lies in ``slot``. Raises ServeError."""
        head, service = self.head, self.service
        remaining_s = None if self.deadline is None else self.remaining_s()
        call = service.reader.read(slot, message, remaining_s, head.sent, head.authority)
        if call.part is not None:
            self._part = call.model, call.part
        self._ticket = service.plane.submit(call, self._done)

    def _done(self, result: InferReply | ServeError) -> None:
        """The data plane's callback."""
        self._ticket = None
        if isinstance(result, ServeError):
            self.fail(result)
            return
        try:
            parts, size = self.service.writer.write(result)
        except Exception:
            _log.exception("an answer of %s cannot be encoded", result.model)
            self.fail(ModelFailed("the model answered something malformed"))
            return
        if self._part is not None:
            self._tell()
        self.answer(parts, size)

    def fail(self, error: ServeError) -> None:
        if self._part is not None and not self.over:
            self._tell(error.losses if isinstance(error, Unavailable) else 0)
        super().fail(error)

    def _tell(self, losses: int = 0) -> None:
        """A peer is told how much waits here, also with an error."""
        assert self._part is not None
        told = {QUEUED_ROWS: self.service.plane.queued_rows(*self._part)}
        if losses:
            told[LOSSES] = losses
        self.trailing = [(name, str(value)) for name, value in told.items()]

    def stop(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.cancel()

    def release(self) -> None:
        super().release()
        body, self._body = self._body, None
        if body is not None:
            body.release()


class StreamInfer(Streaming):
    """ModelStreamInfer: independent requests, answered as they finish, bounded in flight."""

    def __init__(
        self, service: Service, connection: Connection, number: int, ended: bool, head: Head
    ) -> None:
        super().__init__(service, connection, number, ended, head)
        self._tickets: dict[int, Ticket] = {}
        self._taken = 0

    def allocate(self, nbytes: int) -> Slot:
        return _place(self.service, nbytes)

    def busy(self) -> bool:
        return self.queued > 0 or len(self._tickets) >= self.service.limits.max_stream_requests

    def message(self, slot: Slot, size: int) -> None:
        number = self._taken
        self._taken += 1
        identifier, final = "", False

        def done(result: InferReply | ServeError) -> None:
            del self._tickets[number]
            self.write(_stream_answer(result, identifier, final))
            if self.completed:
                self.complete()
            else:
                self.resume()

        service, head = self.service, self.head
        try:
            try:
                message = slot.view[:size]
                identifier, parameters = beside_data(message)
            except BaseException:
                slot.release()
                raise
            final = bool(parameters.get(_ENDLESS))
            sent = replace(head.sent, part=None)
            call = service.reader.read(slot, message, self.remaining_s(), sent, head.authority)
            self._tickets[number] = service.plane.submit(call, done)
        except ServeError as error:
            self.write(_stream_answer(error, identifier, final))
        except Exception:
            _log.exception("a streamed inference failed")
            self.write(_stream_answer(ModelFailed("internal error"), identifier, final))

    def complete(self) -> None:
        if not self._tickets:
            self.finish()

    def stop(self) -> None:
        tickets, self._tickets = self._tickets, {}
        for ticket in tickets.values():
            ticket.cancel()


def _stream_answer(result: InferReply | ServeError, request_id: str, final: bool) -> bytes:
    if isinstance(result, InferReply):
        try:
            message = ModelStreamInferResponse(infer_response=encode_reply(result, final))
            return bytes(message.SerializeToString())
        except Exception:
            _log.exception("an answer of %s cannot be encoded", result.model)
            result = ModelFailed("the model answered something malformed")
    answer: Any = ModelInferResponse(id=request_id)
    if final:
        answer.parameters["triton_final_response"].bool_param = True
    message = ModelStreamInferResponse(error_message=str(result), infer_response=answer)
    return bytes(message.SerializeToString())
