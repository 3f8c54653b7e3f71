"""Properties of the parsers: no input breaks them, and how bytes are split never matters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as numpy_strategies

from support.function_plane import FunctionPlane, array_of, model
from support.memory_http import converse, statuses
from support.raw_http import INFER, binary_infer, json_infer, request
from support.served_models import served_plane
from tessera_runtime.dataplane import InferReply, OutputTensor
from tessera_runtime.datatypes import DATATYPES
from tessera_runtime.errors import InvalidRequest, ServeError
from tessera_runtime.protocol.chunked import ChunkDecoder
from tessera_runtime.protocol.grpc_codec import decode_call as decode_message
from tessera_runtime.protocol.grpc_codec import parse
from tessera_runtime.protocol.head import BadHead, parse_head
from tessera_runtime.protocol.member_call import Sent
from tessera_runtime.protocol.messages import ModelInferRequest
from tessera_runtime.protocol.v2json import RequestBody, decode_call, encode_reply

_CALM = settings(deadline=None)
"""Tests share the machine: an example that takes long is no failure."""

CLIENT_ERRORS = {400, 404, 405, 408, 413, 415, 417, 429, 431}


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


BODY, BINARY_HEADER = binary_infer(np.ones((1, 16), np.float32))
CHUNKED = request("POST", INFER, headers="Transfer-Encoding: chunked\r\n")
VALID = [
    request("POST", INFER, json_infer("a")),
    request("POST", INFER, BODY, BINARY_HEADER),
    CHUNKED + f"{len(json_infer()):x}\r\n".encode() + json_infer() + b"\r\n0\r\n\r\n",
    request("GET", "/v2/models/test.identity"),
    request("GET", "/v2/models/test.absent/ready"),
    request("POST", "/v2/repository/index", b'{"ready":true}'),
    request("POST", "/v2/repository/models/test.identity/load", b"{}"),
    request("HEAD", "/v2/health/live"),
    request("POST", INFER, b'{"inputs":[]}'),
]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


cuts = st.lists(st.integers(0, 10_000), max_size=12)


@_CALM
@given(st.lists(st.sampled_from(VALID), min_size=1, max_size=5), cuts)
def test_answers_do_not_depend_on_how_requests_are_split(runner, requests, cuts):
    whole = b"".join(requests)
    expected = b"".join(runner.run(converse(served_plane(), [one])) for one in requests)
    assert runner.run(converse(served_plane(), split(whole, cuts))) == expected


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Valid requests with bytes replaced, removed, repeated or inserted."""
    data = b"".join(draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 40)))
        data = data[:at] + draw(st.binary(max_size=20)) + data[until:]
    return data


@settings(_CALM, max_examples=300)
@given(st.one_of(st.binary(max_size=3000), damaged()), cuts)
def test_no_bytes_break_a_connection(runner, data, cuts):
    plane = served_plane()
    codes = statuses(runner.run(converse(plane, split(data, cuts))))
    assert all(code in CLIENT_ERRORS or 100 <= code < 300 or code == 501 for code in codes)


@_CALM
@given(st.binary(max_size=500))
def test_a_head_is_parsed_or_refused(head):
    try:
        status = 200 if parse_head(head + b"\r\n\r\n").content_length >= 0 else 500
    except BadHead as error:
        status = error.status
    assert status in CLIENT_ERRORS | {200}


@_CALM
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), cuts, st.binary(max_size=20))
def test_chunks_decode_the_same_however_they_are_split(pieces, cuts, behind):
    framed = b"".join(f"{len(one):X}\r\n".encode() + one + b"\r\n" for one in pieces)
    whole = framed + b"0\r\n\r\n"
    decoder, payload, consumed = ChunkDecoder(), b"", 0
    for part in split(whole + behind, cuts):
        found, used = decoder.feed(part)
        payload += b"".join(found)
        consumed += used
    assert decoder.done
    assert payload == b"".join(pieces)
    assert consumed == len(whole)


@_CALM
@given(st.binary(max_size=200), cuts)
def test_arbitrary_chunks_are_decoded_or_refused(data, cuts):
    decoder = ChunkDecoder()
    try:
        for part in split(data, cuts):
            found, used = decoder.feed(part)
            assert sum(map(len, found)) <= used <= len(part)
    except ValueError:
        pass


def arrays(datatype: str) -> st.SearchStrategy[np.ndarray]:
    shapes = numpy_strategies.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3)
    dtype = DATATYPES[datatype]
    if datatype == "BYTES":
        text = st.text(max_size=8).map(str.encode)
        return numpy_strategies.arrays(dtype, shapes, elements=text, fill=st.nothing())
    options = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return numpy_strategies.arrays(dtype, shapes, elements=options or None)


def body_of(plane: FunctionPlane, data: bytes, json_size: int | None) -> RequestBody:
    slot = plane.allocate(max(len(data), 1))
    slot.view[: len(data)] = data
    return RequestBody(slot, len(data), json_size)


@pytest.mark.parametrize("datatype", DATATYPES)
@_CALM
@given(st.data())
def test_json_and_binary_forms_carry_the_same_values(datatype, data):
    """An answer, sent back as a request in either form, has the same values."""
    values = data.draw(arrays(datatype))
    for binary in (False, True):
        plane = FunctionPlane({})
        reply = InferReply("m", "1", "", (OutputTensor("x", datatype, values),))
        encoding = decode_call(plane, "m", "", _asking(plane, binary))[1]
        text, tail = encode_reply(reply, encoding)
        answer = json.loads(text)
        sent = json.dumps({"inputs": answer["outputs"]}).encode()
        body = body_of(plane, b"".join((sent, *tail)), len(sent) if binary else None)
        call, _ = decode_call(plane, "m", "", body)
        (tensor,) = call.inputs
        np.testing.assert_array_equal(array_of(tensor), values)
        assert (tensor.slot is body.slot) is binary


def _asking(plane: FunctionPlane, binary: bool) -> RequestBody:
    asked = {
        "inputs": [{"name": "x", "datatype": "BOOL", "shape": [1], "data": [True]}],
        "parameters": {"binary_data_output": binary},
    }
    return body_of(plane, json.dumps(asked).encode(), None)


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if "INT" in name])
@_CALM
@given(value=st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_integers_are_taken_exactly_or_refused(datatype, value):
    plane = FunctionPlane({})
    given_input = {"name": "x", "datatype": datatype, "shape": [1], "data": [value]}
    body = body_of(plane, json.dumps({"inputs": [given_input]}).encode(), None)
    bounds = np.iinfo(DATATYPES[datatype])
    try:
        call, _ = decode_call(plane, "m", "", body)
    except InvalidRequest:
        assert isinstance(value, float) or not bounds.min <= value <= bounds.max
        plane.assert_clean()
    else:
        assert array_of(call.inputs[0]).tolist() == [value]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
input_like = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | json_values,
        "datatype": st.sampled_from(sorted(DATATYPES)) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data": st.lists(st.integers(-1, 300) | json_values, max_size=4) | json_values,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9)}) | json_values,
    },
)


@settings(_CALM, max_examples=300)
@given(st.lists(input_like, max_size=3) | json_values, st.binary(max_size=10), st.booleans())
def test_no_json_breaks_the_decoder(inputs, tail, binary):
    plane = FunctionPlane({})
    text = json.dumps({"inputs": inputs, "outputs": [{"name": "y"}]}).encode()
    data = text + tail if binary else text
    try:
        call, _ = decode_call(plane, "m", "", body_of(plane, data, len(text) if binary else None))
    except ServeError:
        plane.assert_clean()
    else:
        for tensor in call.inputs:
            assert array_of(tensor).shape == tensor.shape


plain_input = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "y"]),
        "datatype": st.sampled_from(["FP32", "UINT8", "BYTES", "FP99"]),
        "shape": st.lists(st.integers(-1, 3), max_size=2),
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 12)}),
    },
    optional={"data": st.just([1])},
)


@settings(_CALM, max_examples=500)
@given(
    st.lists(plain_input, min_size=1, max_size=2),
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.text(max_size=3),
            "outputs": st.just([{"name": "y", "parameters": {"binary_data": True}}]),
            "parameters": st.sampled_from([{"timeout": 5}, {"timeout": -1}, {"sequence_id": 3}]),
        },
    ),
    st.binary(max_size=24),
)
def test_a_request_whose_text_is_remembered_is_taken_as_any_other(inputs, rest, tail):
    """Texts beyond what is remembered, here by spaces, are always looked at anew."""
    text = json.dumps({"inputs": inputs, **rest}).encode()
    found = []
    for written in (text, text, text + b" " * 1024):
        plane = FunctionPlane({})
        try:
            body = body_of(plane, written + tail, len(written))
            call, encoding = decode_call(plane, "m", "7", body, "trace")
        except InvalidRequest as error:
            plane.assert_clean()
            found.append(str(error))
        else:
            tensors = [
                (
                    each.name,
                    each.datatype,
                    each.shape,
                    bytes(each.slot.view[each.start :][: each.nbytes]),
                )
                for each in call.inputs
            ]
            seen = (
                call.id,
                call.version,
                call.outputs,
                call.timeout_s,
                call.traceparent,
                len(call.slots),
            )
            found.append((tensors, seen, encoding))
    assert found[0] == found[1] == found[2]


@settings(_CALM, max_examples=300)
@given(st.binary(max_size=200))
def test_no_protobuf_breaks_the_decoder(data):
    plane = FunctionPlane.of(model("", dict, [], []))
    try:
        call = decode_message(plane, parse(ModelInferRequest, data), None, Sent())
    except ServeError:
        plane.assert_clean()
    else:
        for tensor in call.inputs:
            assert array_of(tensor).shape == tensor.shape
