"""Inference requests and answers over HTTP: V2 JSON and the binary tensor data extension.

A request body is JSON, alone or followed by the raw data of those inputs that carry ``binary_data_size``.
The body already lies in an arena slot: binary inputs are used where they are, however they are aligned,
and only JSON data is converted and placed in a second slot. Answers mirror it, per output.

JSON has no NaN and no infinity, so an output that holds one can only be asked for as binary data, like
a BYTES output that is not UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from tessera_runtime.dataplane import (
    Alike,
    DataPlane,
    InferCall,
    InferReply,
    InputTensor,
    OutputTensor,
    Parameter,
    Slot,
)
from tessera_runtime.datatypes import BYTES, DATATYPES, encode_bytes
from tessera_runtime.errors import InvalidRequest
from tessera_runtime.protocol.parameters import check_output, refuse_shared_memory, timeout_of
from tessera_runtime.protocol.tensors import check_raw, count_elements, from_json, place
from tessera_runtime.protocol.v2messages import (
    Input,
    Reply,
    ReplyOutput,
    Request,
    decode_request,
    encode,
)

_REMEMBERED = 1024
"""Bytes of a request's JSON part that is worth being remembered."""
_COPIED = 64 * 1024
"""Outputs up to this many bytes are copied into one buffer with their head: cheaper than a second write."""


class Encoding(NamedTuple):
    """Which outputs the client wants as binary data."""

    binary: bool
    """For outputs without a word of their own."""
    chosen: Mapping[str, bool]


_ALL_JSON = Encoding(False, MappingProxyType({}))
_ALL_BINARY = Encoding(True, MappingProxyType({}))


class _Binary(NamedTuple):
    """One input whose data follows the JSON part."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


class _Layout(NamedTuple):
    """What the JSON part says where all inputs are binary and of fixed size: it is true of any data."""

    id: str
    timeout_s: float | None
    encoding: Encoding
    names: tuple[str, ...]
    """Of the wanted outputs."""
    inputs: tuple[_Binary, ...]
    size: int
    """Of all data."""
    alike: Alike


class RequestBody(NamedTuple):
    """The body of an inference request: ``size`` bytes at the start of ``slot``."""

    slot: Slot
    size: int
    json_size: int | None
    """Bytes of its JSON part; None: all of it."""


def decode_call(
    plane: DataPlane, model: str, version: str, body: RequestBody, traceparent: str = ""
) -> tuple[InferCall, Encoding]:
    """Decode ``body`` and take over its slot: it becomes part of the call, or is released.

    Raises InvalidRequest, or what :meth:`DataPlane.allocate` raises, with the slot released.
    """
    slot, size, json_size = body
    try:
        if json_size is None:
            json_size = size
        if not 0 < json_size <= size:
            raise InvalidRequest(
                f"Inference-Header-Content-Length is {json_size}, the body has {size} bytes"
            )
        if json_size <= min(size - 1, _REMEMBERED):
            layout = _layout(bytes(slot.view[:json_size]))
            if layout is not None and layout.size == size - json_size:
                return _call(model, version, layout, slot, json_size, traceparent), layout.encoding
        request = _parsed(slot.view[:json_size])
        timeout_s = timeout_of(request.parameters)
        encoding = _encoding_of(request)
        inputs, slots = _inputs_of(plane, request, slot, json_size, size)
    except BaseException:
        slot.release()
        raise
    if slots[0] is not slot:
        slot.release()
    names = tuple(encoding.chosen)
    call = InferCall(model, version, request.id, inputs, slots, names, timeout_s, traceparent)
    return call, encoding


def _parsed(text: bytes | memoryview) -> Request:
    """Raises InvalidRequest."""
    try:
        return decode_request(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request is not valid V2 JSON: {error}") from None


@lru_cache(maxsize=1024)
def _layout(text: bytes) -> _Layout | None:
    """None for a request that has to be looked at with its data. Raises InvalidRequest.

    A client sends the same text with every request of the same shape, so the last ones are remembered.
    """
    request = _parsed(text)
    inputs: list[_Binary] = []
    for given in request.inputs:
        size = given.parameters.get("binary_data_size")
        if type(size) is not int or size < 0 or given.datatype == BYTES:
            return None
        if given.data is not msgspec.UNSET:
            return None
        try:
            if (
                size
                != count_elements(given.datatype, given.shape) * DATATYPES[given.datatype].itemsize
            ):
                return None
        except InvalidRequest:
            return None  # the general way says which one it is
        inputs.append(_Binary(given.name, given.datatype, tuple(given.shape), size))
    if not inputs or len({each.name for each in inputs}) < len(inputs):
        return None
    encoding = _encoding_of(request)
    return _Layout(
        request.id,
        timeout_of(request.parameters),
        encoding,
        tuple(encoding.chosen),
        tuple(inputs),
        sum(each.size for each in inputs),
        Alike(),
    )


def _call(
    model: str, version: str, layout: _Layout, slot: Slot, at: int, traceparent: str
) -> InferCall:
    """The call whose data lies in ``slot`` from ``at``."""
    tensors: list[InputTensor] = []
    for name, datatype, shape, size in layout.inputs:
        tensors.append(InputTensor(name, datatype, shape, slot, at, size))
        at += size
    return InferCall(
        model,
        version,
        layout.id,
        tuple(tensors),
        (slot,),
        layout.names,
        layout.timeout_s,
        traceparent,
        None,
        layout.alike,
    )


def _inputs_of(
    plane: DataPlane, request: Request, slot: Slot, at: int, end: int
) -> tuple[tuple[InputTensor, ...], tuple[Slot, ...]]:
    """Walk the inputs in order; binary ones follow each other in ``slot`` from ``at`` to ``end``.

    The slots are those that hold inputs, the body's own first.
    """
    if not request.inputs:
        raise InvalidRequest("inputs: empty; a request needs at least one")
    tensors: list[InputTensor] = []
    converted: list[tuple[int, Input, bytes]] = []
    for index, given in enumerate(request.inputs):
        try:
            wanted = given.parameters.get("binary_data_size")
            if wanted is None:
                converted.append((index, given, _json_data(given)))
                continue
            size = _check_binary(given, wanted, slot.view[at:end])
        except InvalidRequest as error:
            raise InvalidRequest(f"inputs[{index}].{error}") from None
        shape = tuple(given.shape)
        tensors.append(InputTensor(given.name, given.datatype, shape, slot, at, size))
        at += size
    if at != end:
        raise InvalidRequest(f"the body has {end - at} bytes that belong to no input")
    if len(request.inputs) > 1:
        _refuse_repetition(request.inputs)
    if not converted:
        return tuple(tensors), (slot,)
    slots = (slot,) if tensors else ()
    extra, starts = place(plane, [data for _, _, data in converted])
    for (index, given, data), start in zip(converted, starts, strict=True):
        shape = tuple(given.shape)
        tensor = InputTensor(given.name, given.datatype, shape, extra, start, len(data))
        tensors.insert(index, tensor)
    return tuple(tensors), (*slots, extra)


def _check_binary(given: Input, size: Parameter, rest: memoryview) -> int:
    """The input's size when its data lies at the start of ``rest``."""
    if type(size) is not int or not 0 <= size <= len(rest):
        raise InvalidRequest(
            f"parameters.binary_data_size: {size!r}, but the body has {len(rest)} bytes left"
        )
    if given.data is not msgspec.UNSET:
        raise InvalidRequest("data: not allowed beside parameters.binary_data_size")
    count = count_elements(given.datatype, given.shape)
    check_raw(given.datatype, count, rest[:size])
    return size


def _json_data(given: Input) -> bytes:
    refuse_shared_memory(given.parameters)
    if given.data is msgspec.UNSET:
        raise InvalidRequest("data: missing, and there is no parameters.binary_data_size")
    return from_json(given.datatype, given.shape, given.data)


def _refuse_repetition(inputs: list[Input]) -> None:
    names: set[str] = set()
    for index, given in enumerate(inputs):
        if given.name in names:
            raise InvalidRequest(f"inputs[{index}].name: {given.name!r} is given twice")
        names.add(given.name)


def _encoding_of(request: Request) -> Encoding:
    binary = request.parameters.get("binary_data_output", False)
    if type(binary) is not bool:
        raise InvalidRequest(f"parameters.binary_data_output: {binary!r} is not a boolean")
    if not request.outputs:
        return _ALL_BINARY if binary else _ALL_JSON
    chosen: dict[str, bool] = {}
    for index, output in enumerate(request.outputs):
        try:
            check_output(output.parameters)
            wanted = output.parameters.get("binary_data", binary)
            if type(wanted) is not bool:
                raise InvalidRequest(f"parameters.binary_data: {wanted!r} is not a boolean")
            if output.name in chosen:
                raise InvalidRequest(f"name: {output.name!r} is asked for twice")
        except InvalidRequest as error:
            raise InvalidRequest(f"outputs[{index}].{error}") from None
        chosen[output.name] = wanted
    return Encoding(binary, chosen)


def encode_reply(reply: InferReply, encoding: Encoding) -> tuple[bytes, list[bytes | memoryview]]:
    """The JSON part of the answer, and the data of its binary outputs in order.

    Raises InvalidRequest when an output that was asked for as JSON cannot be written as JSON.
    """
    if not reply.id and encoding.binary and all(encoding.chosen.values()):
        tail = [raw_bytes(output) for output in reply.outputs]
        described = [
            (output.name, output.datatype, output.array.shape, len(data))
            for output, data in zip(reply.outputs, tail, strict=True)
        ]
        said = tuple(reply.parameters.items())
        return _binary_reply(reply.model, reply.version, tuple(described), said), tail
    outputs: list[ReplyOutput] = []
    tail = []
    for output in reply.outputs:
        shape = output.array.shape
        if encoding.chosen.get(output.name, encoding.binary):
            data = raw_bytes(output)
            tail.append(data)
            size = {"binary_data_size": len(data)}
            outputs.append(ReplyOutput(output.name, output.datatype, shape, size))
        else:
            values = _json_values(output)
            outputs.append(ReplyOutput(output.name, output.datatype, shape, None, values))
    answer = Reply(reply.model, reply.version, outputs, reply.id, reply.parameters)
    return encode(answer), tail


@lru_cache(maxsize=1024)
def _binary_reply(
    model: str,
    version: str,
    described: tuple[tuple[str, str, tuple[int, ...], int], ...],
    parameters: tuple[tuple[str, Parameter], ...],
) -> bytes:
    """The JSON part of an answer without an id whose outputs, of (name, datatype, shape, bytes), are all binary."""
    outputs = [
        ReplyOutput(name, datatype, shape, {"binary_data_size": size})
        for name, datatype, shape, size in described
    ]
    return encode(Reply(model, version, outputs, "", dict(parameters)))


def raw_bytes(output: OutputTensor) -> bytes | memoryview:
    """The output's elements as on the wire, in C order; large ones without a copy where possible."""
    array = output.array
    if output.datatype == BYTES:
        return encode_bytes(array)
    if array.nbytes <= _COPIED:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _json_values(output: OutputTensor) -> list[Any]:
    array = output.array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidRequest(
            f"output {output.name!r} holds NaN or infinity, which JSON cannot carry; ask for binary data"
        )
    if output.datatype != BYTES:
        return array.ravel().tolist()
    try:
        return [element.decode() for element in array.ravel()]
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"output {output.name!r} is not UTF-8, which JSON needs; ask for binary data"
        ) from None
