"""The client of a peer: member calls over one long-lived gRPC channel.

A channel connects by itself, again after a pause when the connection is lost, and follows GOAWAY to a new
connection without losing calls. Nothing is raised for what a peer answers or fails to: every call ends with
a :class:`PeerAnswer`, since all of it is the caller's daily business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tessera_runtime.dataplane import Keys, MemberCall, ModelMetadata, OutputTensor, TensorSpec
from tessera_runtime.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelFailed,
    Overloaded,
    ServeError,
    Unavailable,
)
from tessera_runtime.protocol.grpc_codec import decode_reply
from tessera_runtime.protocol.member_call import LOSSES, MAX_ROWS, QUEUED_ROWS, write_metadata
from tessera_runtime.protocol.messages import SERVICE, ModelInferResponse, message

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # answers are bounded by the model
    ("grpc.max_send_message_length", -1),
    # A node that is lost says nothing: calls on its connection are given up after some 6 s. What closes the
    # connection is the last of the three (seen with gRPC 1.85, where its default is a minute).
    ("grpc.keepalive_time_ms", 4_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Also the most that connecting to an address that does not answer may take.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

_MetadataRequest = message("ModelMetadataRequest")
_MetadataResponse = message("ModelMetadataResponse")


_FORMER_S = 60.0
"""Most that calls made with replaced certificates may take."""


@dataclass(frozen=True, slots=True)
class PeerSecurity:
    """How peers prove who they are, and this server to them."""

    credentials: Any
    name: str
    """In the certificate of every peer: they are called by addresses, which no certificate can name in advance."""


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """How one call ended: with outputs or metadata, else with an error."""

    outputs: tuple[OutputTensor, ...] = ()
    metadata: ModelMetadata | None = None
    error: ServeError | None = None
    """Unavailable: the peer or its instances are gone, somebody else may be asked."""
    queued_rows: int | None = None
    """Rows that wait there; None where the peer did not say."""


class PeerClient:
    """One peer's channel."""

    def __init__(self, address: str, security: PeerSecurity | None = None) -> None:
        """In clear without ``security``."""
        self.address = address
        self._connect(security)

    def _connect(self, security: PeerSecurity | None) -> None:
        if security is None:
            self._channel = grpc.aio.insecure_channel(self.address, _OPTIONS)
        else:
            name = ("grpc.ssl_target_name_override", security.name)
            options = [*_OPTIONS, name]
            self._channel = grpc.aio.secure_channel(self.address, security.credentials, options)
        self._infer = self._channel.unary_unary(f"/{SERVICE}/ModelInfer")
        self._metadata = self._channel.unary_unary(f"/{SERVICE}/ModelMetadata")

    async def infer(
        self, request: bytes, part: MemberCall, timeout_s: float, traceparent: str, keys: Keys
    ) -> PeerAnswer:
        """Run one member on a serialized request. Cancelling cancels the call at the peer."""
        sent = write_metadata(part, traceparent, keys)
        call = self._infer(request, timeout=timeout_s, metadata=sent)
        try:
            data = await call
            told = _read(await call.trailing_metadata())
            outputs = decode_reply(ModelInferResponse.FromString(data))
        except grpc.aio.AioRpcError as error:
            return self._failed(error, part)
        except (DecodeError, ValueError, InvalidRequest) as error:
            refusal = f"member {part.member}: peer {self.address} answered something malformed"
            return PeerAnswer(error=ModelFailed(f"{refusal}: {error}"))
        return PeerAnswer(outputs, queued_rows=told.get(QUEUED_ROWS))

    async def metadata(
        self, model: str, part: MemberCall, timeout_s: float, keys: Keys
    ) -> PeerAnswer:
        """What the member takes and answers there."""
        request = _MetadataRequest(name=model).SerializeToString()
        sent = write_metadata(part, keys=keys)
        call = self._metadata(request, timeout=timeout_s, metadata=sent)
        try:
            data = await call
            told = _read(await call.trailing_metadata())
            answer = _MetadataResponse.FromString(data)
        except grpc.aio.AioRpcError as error:
            return self._failed(error, part)
        except DecodeError:
            return PeerAnswer(error=Unavailable(f"peer {self.address}: not an OIP server"))
        metadata = ModelMetadata(
            answer.name,
            tuple(answer.versions),
            answer.platform,
            _specs(answer.inputs),
            _specs(answer.outputs),
            told.get(MAX_ROWS, 0),
        )
        return PeerAnswer(metadata=metadata, queued_rows=told.get(QUEUED_ROWS))

    async def renew(self, security: PeerSecurity | None) -> None:
        """New calls are made with ``security`` from now on; returns when the former ones have ended."""
        former = self._channel
        self._connect(security)
        await former.close(_FORMER_S)

    async def close(self) -> None:
        """Calls in flight are cancelled."""
        await self._channel.close()

    def _failed(self, error: grpc.aio.AioRpcError, part: MemberCall) -> PeerAnswer:
        told = _read(error.trailing_metadata() or ())
        queued_rows = told.get(QUEUED_ROWS)
        text = str(error.details())
        spoken: ServeError
        match error.code():
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                spoken = Overloaded(text)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                spoken = DeadlineExceeded(
                    f"member {part.member}: peer {self.address} took too long"
                )
            case grpc.StatusCode.INVALID_ARGUMENT:
                spoken = InvalidRequest(text)
            case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN if queued_rows is not None:
                spoken = ModelFailed(text)
            case _:
                # Also errors of other kinds without the queue: they are the connection's, not a member's.
                lost = f"member {part.member}: peer {self.address}: {text}"
                spoken = Unavailable(lost, told.get(LOSSES, 0))
        return PeerAnswer(error=spoken, queued_rows=queued_rows)


def _read(trailing: Any) -> dict[str, int]:
    """The numbers of a peer's trailing metadata; what is not one is left out."""
    return {name: int(value) for name, value in trailing if str(value).isdecimal()}


def _specs(tensors: Iterable[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in tensors)
