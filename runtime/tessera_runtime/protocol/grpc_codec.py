"""Inference requests and answers as protobuf messages, for the server and for the client of its peers.

Raw contents are copied once, into one arena slot; typed contents are converted on the way. Answers are
always raw, and so is what peers are asked. FP16 exists only raw, as the protocol has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from tessera_runtime.dataplane import (
    DataPlane,
    InferCall,
    InferReply,
    InputTensor,
    OutputTensor,
    Parameter,
)
from tessera_runtime.datatypes import BYTES, DATATYPES, decode_bytes
from tessera_runtime.errors import InvalidRequest
from tessera_runtime.protocol.member_call import Sent
from tessera_runtime.protocol.messages import ModelInferRequest, ModelInferResponse
from tessera_runtime.protocol.parameters import check_output, refuse_shared_memory, timeout_of
from tessera_runtime.protocol.tensors import check_raw, count_elements, place, wire_bytes
from tessera_runtime.protocol.v2json import raw_bytes

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of InferTensorContents that each datatype uses; FP16 has none."""


def parse(message: Any, data: bytes) -> Any:
    """Raises InvalidRequest for bytes that are not such a message."""
    try:
        return message.FromString(data)
    except (DecodeError, UnicodeDecodeError):
        name = message.DESCRIPTOR.name
        raise InvalidRequest(f"the request is not a valid {name} protobuf message") from None


def decode_call(
    plane: DataPlane, request: Any, remaining_s: float | None, sent: Sent, authority: str = ""
) -> InferCall:
    """``remaining_s`` is what is left of the RPC's deadline; the tighter of it and ``timeout`` counts.

    Raises InvalidRequest, or what :meth:`DataPlane.resolve` and :meth:`DataPlane.allocate` raise.
    """
    model = plane.resolve(request.model_name, authority, sent.keys)
    timeout_s = timeout_of(parameters_of(request.parameters))
    if remaining_s is not None:
        remaining_s = max(remaining_s, 0.0)
        timeout_s = remaining_s if timeout_s is None else min(timeout_s, remaining_s)
    outputs = outputs_of(request)
    parts = _parts_of(request)
    slot, starts = place(plane, parts)
    inputs = tuple(
        InputTensor(given.name, given.datatype, tuple(given.shape), slot, start, len(part))
        for given, start, part in zip(request.inputs, starts, parts, strict=True)
    )
    return InferCall(
        model,
        request.model_version,
        request.id,
        inputs,
        (slot,),
        outputs,
        timeout_s,
        sent.traceparent,
        sent.part,
    )


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Parameter]:
    """Parameters as Python values; one without a value is left out."""
    found: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            found[name] = getattr(parameter, choice)
    return found


def outputs_of(request: Any) -> tuple[str, ...]:
    """The names of the requested outputs. Raises InvalidRequest."""
    names: dict[str, None] = {}
    for index, output in enumerate(request.outputs):
        try:
            check_output(parameters_of(output.parameters))
            if output.name in names:
                raise InvalidRequest(f"name: {output.name!r} is asked for twice")
        except InvalidRequest as error:
            raise InvalidRequest(f"outputs[{index}].{error}") from None
        names[output.name] = None
    return tuple(names)


def name_inputs(request: Any) -> Iterator[tuple[Any, int]]:
    """Each input with its number of elements, after all checks but those of its data. Raises InvalidRequest."""
    names: set[str] = set()
    for index, given in enumerate(request.inputs):
        try:
            if given.name in names:
                raise InvalidRequest(f"name: {given.name!r} is given twice")
            refuse_shared_memory(parameters_of(given.parameters))
            count = count_elements(given.datatype, given.shape)
        except InvalidRequest as error:
            raise InvalidRequest(f"inputs[{index}].{error}") from None
        names.add(given.name)
        yield given, count


def _parts_of(request: Any) -> list[bytes]:
    """Each input's data in wire form."""
    raw = request.raw_input_contents
    if not request.inputs:
        raise InvalidRequest("inputs: empty; a request needs at least one")
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents: {len(raw)} entries for {len(request.inputs)} inputs"
        )
    parts: list[bytes] = []
    for index, (given, count) in enumerate(name_inputs(request)):
        try:
            parts.append(_part_of(given, count, raw[index] if raw else None))
        except InvalidRequest as error:
            raise InvalidRequest(f"inputs[{index}].{error}") from None
    return parts


def _part_of(given: Any, count: int, raw: bytes | None) -> bytes:
    if raw is None:
        return _typed(given, count)
    if given.HasField("contents"):
        raise InvalidRequest("contents: not allowed beside raw_input_contents")
    check_raw(given.datatype, count, raw)
    return raw


def _typed(given: Any, count: int) -> bytes:
    field = _CONTENTS.get(given.datatype)
    if field is None:
        raise InvalidRequest(f"contents: {given.datatype} is only accepted in raw_input_contents")
    for descriptor, _ in given.contents.ListFields():
        if descriptor.name != field:
            raise InvalidRequest(f"contents.{descriptor.name}: {given.datatype} belongs in {field}")
    values = getattr(given.contents, field)
    if len(values) != count:
        raise InvalidRequest(
            f"contents.{field}: {len(values)} elements, but shape {list(given.shape)} needs {count}"
        )
    if DATATYPES[given.datatype].kind == "f":
        return np.array(values, dtype=DATATYPES[given.datatype]).tobytes()
    return wire_bytes(given.datatype, list(values))


def encode_reply(reply: InferReply, final: bool = False) -> Any:
    """``final`` adds the parameter by which streaming clients know that no other answer follows."""
    answer = ModelInferResponse(model_name=reply.model, model_version=reply.version, id=reply.id)
    for output in reply.outputs:
        answer.outputs.add(name=output.name, datatype=output.datatype, shape=output.array.shape)
        answer.raw_output_contents.append(bytes(raw_bytes(output)))
    set_parameters(answer, reply.parameters, final)
    return answer


def set_parameters(answer: Any, parameters: Mapping[str, Parameter], final: bool) -> None:
    """Of a ModelInferResponse."""
    for name, value in parameters.items():
        _set(answer.parameters[name], value)
    if final:
        answer.parameters["triton_final_response"].bool_param = True


_RAW_INPUT_TAG = bytes([7 << 3 | 2])
"""Of ModelInferRequest.raw_input_contents on the wire: field 7, length-delimited."""


def encode_request(model: str, request_id: str, inputs: Sequence[tuple[str, InputTensor]]) -> bytes:
    """A serialized ModelInferRequest of ``inputs``, each under the name that is given with it.

    The data is copied once, from its slot into the message: protobuf itself would take it as ``bytes``
    objects first. Fields may come in any order, so the rest is serialized without the data and the data
    written behind it.
    """
    request = ModelInferRequest(model_name=model, id=request_id)
    pieces: list[bytes | memoryview] = [b""]
    for name, tensor in inputs:
        request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        data = tensor.slot.view[tensor.start : tensor.start + tensor.nbytes]
        pieces += (_RAW_INPUT_TAG, varint(tensor.nbytes), data)
    pieces[0] = request.SerializeToString()
    return b"".join(pieces)


def varint(value: int) -> bytes:
    """Base 128, least significant group first, as protobuf encodes lengths."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def decode_reply(answer: Any) -> tuple[OutputTensor, ...]:
    """The outputs of a ModelInferResponse with raw contents; arrays are read-only.

    Raises ValueError where shapes and data do not agree.
    """
    outputs: list[OutputTensor] = []
    for given, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        count_elements(given.datatype, given.shape)
        if given.datatype == BYTES:
            values = decode_bytes(raw, math.prod(given.shape))
        else:
            values = np.frombuffer(raw, DATATYPES[given.datatype])
        array = values.reshape(tuple(given.shape))
        outputs.append(OutputTensor(given.name, given.datatype, array))
    return tuple(outputs)


def _set(parameter: Any, value: Parameter) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value
