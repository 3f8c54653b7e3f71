"""Inference requests as the bytes that are sent, and answers as the tensors they hold.

Requests are encoded once, before any load: what is sent at full rate is nothing but bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera_cli.loadgen.plan import Protocol
from tessera_runtime.datatypes import DATATYPES, datatype_of
from tessera_runtime.protocol.messages import ModelInferRequest, ModelInferResponse

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]

_PREFIX = struct.Struct(">BI")
"""gRPC's length-prefixed message: not compressed, size."""


def encode(protocol: Protocol, model: str, inputs: Tensors) -> bytes:
    """One inference request of ``model``, fixed-size datatypes only, answers wanted in binary."""
    tensors = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    return _http(model, tensors) if protocol is Protocol.HTTP else _grpc(model, tensors)


def decode(protocol: Protocol, body: bytes) -> dict[str, Array]:
    """The outputs of a good answer. Raises ValueError when it is not one."""
    return _http_outputs(body) if protocol is Protocol.HTTP else _grpc_outputs(body)


def _http(model: str, inputs: Tensors) -> bytes:
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": name,
                    "datatype": datatype_of(array.dtype),
                    "shape": list(array.shape),
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in inputs.items()
            ],
            "parameters": {"binary_data_output": True},
        },
        separators=(",", ":"),
    ).encode()
    size = len(header) + sum(array.nbytes for array in inputs.values())
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {size}\r\n\r\n"
    ).encode()
    return b"".join((head, header, *(array.tobytes() for array in inputs.values())))


def _grpc(model: str, inputs: Tensors) -> bytes:
    message = ModelInferRequest(
        model_name=model,
        inputs=[
            {"name": name, "datatype": datatype_of(array.dtype), "shape": array.shape}
            for name, array in inputs.items()
        ],
        raw_input_contents=[array.tobytes() for array in inputs.values()],
    )
    body: bytes = message.SerializeToString()
    return _PREFIX.pack(0, len(body)) + body


def _http_outputs(body: bytes) -> dict[str, Array]:
    # The JSON part ends where the last output's data begins: its size is in the header, which is not kept,
    # so the decoder that stops at the end of the first document finds it.
    text = body.decode("latin-1")
    header, end = json.JSONDecoder().raw_decode(text)
    outputs: dict[str, Array] = {}
    at = end  # latin-1: one character a byte
    for output in header["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = _array(output["datatype"], output["shape"], body[at : at + size])
        at += size
    if at != len(body):
        raise ValueError(f"the answer has {len(body) - at} bytes that belong to no output")
    return outputs


def _grpc_outputs(body: bytes) -> dict[str, Array]:
    if len(body) < _PREFIX.size or _PREFIX.unpack_from(body) != (0, len(body) - _PREFIX.size):
        raise ValueError("not one uncompressed gRPC message")
    answer = ModelInferResponse.FromString(body[_PREFIX.size :])
    return {
        output.name: _array(output.datatype, output.shape, raw)
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }


def _array(datatype: str, shape: Any, raw: bytes) -> Array:
    return np.frombuffer(raw, DATATYPES[datatype]).reshape(tuple(shape))
