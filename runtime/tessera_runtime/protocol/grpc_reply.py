"""ModelInferResponse, written by hand: what a model's answers have in common is kept, the data is not copied
before the socket's buffer is filled.

Fields of a message may come in any order, and a message may come in parts: so what protobuf makes of the
names, datatypes and shapes is kept as a beginning, and id, parameters and data follow as fields of their own.
"""

from __future__ import annotations

from typing import NamedTuple

from tessera_runtime.dataplane import InferReply
from tessera_runtime.protocol.grpc_codec import set_parameters, varint
from tessera_runtime.protocol.messages import ModelInferResponse
from tessera_runtime.protocol.v2json import raw_bytes

_ID = bytes([3 << 3 | 2])
_RAW = bytes([6 << 3 | 2])
_KEPT = 512
_PREFIX_SIZE = 5

_Key = tuple[object, ...]


class _Kept(NamedTuple):
    head: bytes
    """model_name, model_version and outputs."""
    tags: tuple[tuple[int, bytes], ...]
    """The usual length of each output's data, and what precedes data of that length."""


class ReplyWriter:
    """Writes answers, and keeps what they repeat."""

    def __init__(self) -> None:
        self._known: dict[_Key, _Kept] = {}

    def write(self, reply: InferReply, final: bool = False) -> tuple[list[bytes | memoryview], int]:
        """A gRPC message (prefix and content) in pieces, and its size in bytes.

        ``final`` adds the parameter by which streaming clients know that no other answer follows.
        """
        parts, size = self.content(reply, final)
        parts[0] = b"\0" + size.to_bytes(4, "big")
        return parts, size + _PREFIX_SIZE

    def content(self, reply: InferReply, final: bool) -> tuple[list[bytes | memoryview], int]:
        """The message alone, behind a piece that is left empty."""
        outputs = reply.outputs
        key: _Key = (
            reply.model,
            reply.version,
            *[(one.name, one.datatype, one.array.shape) for one in outputs],
        )
        kept = self._known.get(key)
        if kept is None:
            kept = self._keep(key, reply)
        parts: list[bytes | memoryview] = [b"", kept.head]
        size = len(kept.head)
        if reply.id:
            text = reply.id.encode()
            field = _ID + varint(len(text)) + text
            parts.append(field)
            size += len(field)
        if reply.parameters or final:
            extra = ModelInferResponse()
            set_parameters(extra, reply.parameters, final)
            written = extra.SerializeToString()
            parts.append(written)
            size += len(written)
        for index, output in enumerate(outputs):
            usual, tag = kept.tags[index]
            data = raw_bytes(output)
            length = len(data)
            if length != usual:
                tag = _RAW + varint(length)
            parts.append(tag)
            parts.append(data)
            size += len(tag) + length
        return parts, size

    def _keep(self, key: _Key, reply: InferReply) -> _Kept:
        answer = ModelInferResponse(model_name=reply.model, model_version=reply.version)
        tags: list[tuple[int, bytes]] = []
        for output in reply.outputs:
            array = output.array
            answer.outputs.add(name=output.name, datatype=output.datatype, shape=array.shape)
            tags.append((array.nbytes, _RAW + varint(array.nbytes)))
        kept = _Kept(answer.SerializeToString(), tuple(tags))
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[key] = kept
        return kept
