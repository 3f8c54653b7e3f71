"""ModelInferRequest without a copy of its data, and mostly without parsing.

The top level of the message is walked by its tags. ``raw_input_contents`` (field 7) stays where it lies and
``id`` (field 3) is read; everything else, names, datatypes and shapes, is what a client repeats with each
request, and is looked up by its bytes. Bytes that are new go through protobuf once. So merging, defaults and
unknown fields are protobuf's own, and what the walk does not understand, or a request with typed contents, is
left to protobuf as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tessera_runtime.dataplane import Alike, DataPlane, InferCall, InputTensor, Parameter, Slot
from tessera_runtime.datatypes import BYTES, DATATYPES
from tessera_runtime.errors import InvalidRequest
from tessera_runtime.protocol.grpc_codec import (
    decode_call,
    name_inputs,
    outputs_of,
    parameters_of,
    parse,
)
from tessera_runtime.protocol.member_call import Sent
from tessera_runtime.protocol.messages import ModelInferRequest
from tessera_runtime.protocol.parameters import timeout_of
from tessera_runtime.protocol.tensors import check_raw

_ID: Final = 3 << 3 | 2
_RAW: Final = 7 << 3 | 2
"""Tags: the field's number and wire type 2, a length and that many bytes."""
_KEPT = 512
_KEPT_BYTES = 4096
"""Of one kept description."""
_NEAR: Final = 256
"""Bytes at the beginning, where most tags are: cheaper to look at when they are copied."""


Walked = tuple[bytes, str, list[tuple[int, int]]]
"""All fields but ``id`` and ``raw_input_contents``, in order; ``id``; where each entry of the latter begins and ends."""


def walk(message: bytes | memoryview) -> Walked | None:
    """Take a ModelInferRequest apart; None for what protobuf has to judge."""
    size = len(message)
    near = bytes(message[:_NEAR])
    kept: list[bytes | memoryview] = []
    raw: list[tuple[int, int]] = []
    identifier = ""
    at = begin = 0
    """``begin``: of the fields that are kept and not yet in ``kept``."""
    while at < size:
        tag: int = near[at] if at < _NEAR else message[at]
        if tag & 7 != 2 or tag > 0x7F or tag < 8:
            return None
        start = at + 1
        if start == size:
            return None
        length: int = near[start] if start < _NEAR else message[start]
        start += 1
        if length > 0x7F:
            length &= 0x7F
            shift = 7
            while True:
                if start == size or shift > 28:
                    return None
                group: int = near[start] if start < _NEAR else message[start]
                start += 1
                length |= (group & 0x7F) << shift
                if group < 0x80:
                    break
                shift += 7
        end = start + length
        if end > size:
            return None
        if tag in (_ID, _RAW):
            if begin < at:
                kept.append(message[begin:at])
            begin = end
            if tag == _RAW:
                raw.append((start, end))
            else:
                try:
                    identifier = str(message[start:end], "utf-8")
                except UnicodeDecodeError:
                    return None
        at = end
    if begin < size:
        kept.append(message[begin:size])
    return bytes(kept[0]) if len(kept) == 1 else b"".join(kept), identifier, raw


@dataclass
class _Described:
    """What a request says beside its data and its id."""

    model: str
    version: str
    inputs: tuple[tuple[str, str, tuple[int, ...], int, int], ...]
    """Name, datatype, shape, elements and bytes; -1 bytes for BYTES, whose elements differ."""
    outputs: tuple[str, ...]
    timeout_s: float | None
    alike: Alike | None
    """None where the inputs' sizes differ from request to request."""


def beside_data(message: bytes | memoryview) -> tuple[str, dict[str, Parameter]]:
    """The id and the parameters of a request. Raises InvalidRequest."""
    walked = walk(message)
    if walked is None:
        request = parse(ModelInferRequest, bytes(message))
        return request.id, parameters_of(request.parameters)
    rest, identifier, _ = walked
    return identifier, parameters_of(parse(ModelInferRequest, rest).parameters)


class RequestReader:
    """Reads requests for ``plane``, and keeps what clients repeat."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._known: dict[bytes, _Described] = {}

    def read(
        self,
        slot: Slot,
        message: bytes | memoryview,
        remaining_s: float | None,
        sent: Sent,
        authority: str,
    ) -> InferCall:
        """The call of ``message``, which lies at the start of ``slot``; the slot is taken over.

        Raises InvalidRequest, or what the data plane raises, with the slot released.
        """
        try:
            call = self._read(slot, message, remaining_s, sent, authority)
            if call is not None:
                return call
            request = parse(ModelInferRequest, bytes(message))
        except BaseException:
            slot.release()
            raise
        slot.release()
        return decode_call(self._plane, request, remaining_s, sent, authority)

    def _read(
        self,
        slot: Slot,
        message: bytes | memoryview,
        remaining_s: float | None,
        sent: Sent,
        authority: str,
    ) -> InferCall | None:
        walked = walk(message)
        if walked is None:
            return None
        rest, identifier, raw = walked
        if not raw:
            return None
        described = self._known.get(rest)
        if described is None:
            described = self._describe(rest)
            if described is None:
                return None
        wanted = described.inputs
        if len(raw) != len(wanted):
            raise InvalidRequest(f"raw_input_contents: {len(raw)} entries for {len(wanted)} inputs")
        inputs: list[InputTensor] = []
        for index, (start, end) in enumerate(raw):
            name, datatype, shape, count, nbytes = wanted[index]
            if end - start != nbytes:
                try:
                    check_raw(datatype, count, message[start:end])
                except InvalidRequest as error:
                    raise InvalidRequest(f"inputs[{index}].{error}") from None
            inputs.append(InputTensor(name, datatype, shape, slot, start, end - start))
        timeout_s = described.timeout_s
        if remaining_s is not None:
            remaining_s = max(remaining_s, 0.0)
            timeout_s = remaining_s if timeout_s is None else min(timeout_s, remaining_s)
        return InferCall(
            self._plane.resolve(described.model, authority, sent.keys),
            described.version,
            identifier,
            tuple(inputs),
            (slot,),
            described.outputs,
            timeout_s,
            sent.traceparent,
            sent.part,
            described.alike,
        )

    def _describe(self, rest: bytes) -> _Described | None:
        """None where the inputs have typed contents. Raises InvalidRequest."""
        request = parse(ModelInferRequest, rest)
        if not request.inputs or any(given.HasField("contents") for given in request.inputs):
            return None
        inputs = tuple(
            (
                given.name,
                given.datatype,
                tuple(given.shape),
                count,
                _bytes(given.datatype, count),
            )
            for given, count in name_inputs(request)
        )
        described = _Described(
            request.model_name,
            request.model_version,
            inputs,
            outputs_of(request),
            timeout_of(parameters_of(request.parameters)),
            Alike() if all(nbytes >= 0 for *_, nbytes in inputs) else None,
        )
        if len(rest) <= _KEPT_BYTES:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[rest] = described
        return described


def _bytes(datatype: str, count: int) -> int:
    return -1 if datatype == BYTES else count * DATATYPES[datatype].itemsize
