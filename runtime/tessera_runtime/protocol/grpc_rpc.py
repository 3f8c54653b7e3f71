"""One inference over gRPC: its deadline, its cancellation, and how errors are spoken."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from tessera_runtime.dataplane import DataPlane, InferCall, InferReply, Keys, Ticket
from tessera_runtime.errors import InvalidRequest, ModelFailed, ServeError, Unavailable, status_of
from tessera_runtime.protocol.bearer import keys_among
from tessera_runtime.protocol.grpc_codec import decode_call, encode_reply, parameters_of
from tessera_runtime.protocol.member_call import LOSSES, QUEUED_ROWS, Sent, read_metadata
from tessera_runtime.protocol.messages import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

_log = logging.getLogger(__name__)

_ENDLESS = "triton_enable_empty_final_response"
"""Asked by streaming clients that want to be told which answer is the last of its request."""


def parse(message: Any, data: bytes) -> Any:
    """Raises InvalidRequest for bytes that are not such a message."""
    try:
        return message.FromString(data)
    except (DecodeError, UnicodeDecodeError):
        name = message.DESCRIPTOR.name
        raise InvalidRequest(f"the request is not a valid {name} protobuf message") from None


async def abort(context: Any, error: BaseException) -> NoReturn:
    """End the RPC with the status of ``error``; only a ServeError's text is for the client."""
    if not isinstance(error, ServeError):
        _log.error("an RPC failed", exc_info=error)
        error = ModelFailed("internal error")
    await context.abort(getattr(grpc.StatusCode, status_of(error).grpc), str(error))
    raise AssertionError("abort returned")


def sent_with(context: Any) -> Sent:
    """Raises InvalidRequest."""
    return read_metadata(context.invocation_metadata() or ())


def keys_with(context: Any) -> Keys:
    return keys_among(context.invocation_metadata() or ())


def unary_infer(plane: DataPlane) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def infer(data: bytes, context: Any) -> bytes:
        try:
            sent = sent_with(context)
            request = parse(ModelInferRequest, data)
            call = decode_call(plane, request, context.time_remaining(), sent)
            if call.part is None:
                return await _infer(plane, call)
            return await _infer_member(plane, call, context)
        except Exception as error:
            await abort(context, error)

    return infer


async def _infer(plane: DataPlane, call: InferCall) -> bytes:
    """Raises ServeError."""
    answered: asyncio.Future[InferReply | ServeError]
    answered = asyncio.get_running_loop().create_future()
    ticket = plane.submit(call, answered.set_result)
    try:
        result = await answered
    except asyncio.CancelledError:  # the client cancelled, left, or its deadline has passed
        ticket.cancel()
        raise
    if isinstance(result, ServeError):
        raise result
    return bytes(encode_reply(result).SerializeToString())


async def _infer_member(plane: DataPlane, call: InferCall, context: Any) -> bytes:
    """As :func:`_infer`, and the peer is told how much waits here, also with an error."""
    assert call.part is not None
    losses = 0
    try:
        return await _infer(plane, call)
    except Unavailable as error:
        losses = error.losses
        raise
    finally:
        told = [(QUEUED_ROWS, str(plane.queued_rows(call.model, call.part)))]
        if losses:
            told.append((LOSSES, str(losses)))
        context.set_trailing_metadata(tuple(told))


class InferStream:
    """One ModelStreamInfer: independent requests, answered as they finish, bounded in flight."""

    def __init__(self, plane: DataPlane, context: Any, limit: int) -> None:
        self._plane = plane
        self._context = context
        self._room = asyncio.Semaphore(limit)
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._tickets: dict[int, Ticket] = {}
        self._taken = 0

    async def serve(self, requests: AsyncIterator[bytes]) -> None:
        """Answer until the client has sent its last request and has all answers.

        Writes through the context, not as a generator: grpcio leaves a generator of a broken stream to the
        garbage collector, and what is in flight is to be cancelled at once.
        """
        reader = asyncio.create_task(self._read(requests))
        try:
            sent = 0
            while not (reader.done() and sent == self._taken):
                answer = await self._answers.get()
                if answer is None:  # the client has sent its last request
                    await reader
                    continue
                await self._context.write(answer.SerializeToString())
                sent += 1
                self._room.release()
        finally:
            reader.cancel()
            await asyncio.wait([reader])
            for ticket in self._tickets.values():
                ticket.cancel()

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async for data in requests:
                await self._room.acquire()
                self._take(data)
        finally:
            self._answers.put_nowait(None)

    def _take(self, data: bytes) -> None:
        number = self._taken
        self._taken += 1
        request_id, final = "", False

        def done(result: InferReply | ServeError) -> None:
            self._tickets.pop(number, None)
            self._answers.put_nowait(_stream_answer(result, request_id, final))

        try:
            request = parse(ModelInferRequest, data)
            request_id = request.id
            final = bool(parameters_of(request.parameters).get(_ENDLESS))
            remaining_s = self._context.time_remaining()
            sent = replace(sent_with(self._context), part=None)
            call = decode_call(self._plane, request, remaining_s, sent)
            self._tickets[number] = self._plane.submit(call, done)
        except ServeError as error:
            done(error)
        except Exception:
            _log.exception("a streamed inference failed")
            done(ModelFailed("internal error"))


def _stream_answer(result: InferReply | ServeError, request_id: str, final: bool) -> Any:
    if isinstance(result, InferReply):
        try:
            return ModelStreamInferResponse(infer_response=encode_reply(result, final))
        except Exception:
            _log.exception("an answer of %s cannot be encoded", result.model)
            result = ModelFailed("the model answered something malformed")
    answer = ModelInferResponse(id=request_id)
    if final:
        answer.parameters["triton_final_response"].bool_param = True
    return ModelStreamInferResponse(error_message=str(result), infer_response=answer)
