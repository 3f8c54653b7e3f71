"""Requests that are walked and answers that are written by hand are those of protobuf."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from support.function_plane import FunctionPlane, array_of
from support.served_models import sample
from tessera_runtime.dataplane import InferReply, MemberCall, OutputTensor
from tessera_runtime.datatypes import DATATYPES
from tessera_runtime.errors import InvalidRequest, ServeError
from tessera_runtime.protocol.grpc_codec import decode_call, encode_reply, parse
from tessera_runtime.protocol.grpc_reply import ReplyWriter
from tessera_runtime.protocol.grpc_request import RequestReader, beside_data, walk
from tessera_runtime.protocol.member_call import Sent
from tessera_runtime.protocol.messages import ModelInferRequest, ModelInferResponse

_CALM = settings(deadline=None, max_examples=300)


def any_plane() -> FunctionPlane:
    plane = FunctionPlane({})
    plane.resolve = lambda name, host, keys: name
    return plane


names = st.text(max_size=6)
parameters = st.dictionaries(
    st.sampled_from(["timeout", "priority", "sequence_id", "own", "binary_data_output"]),
    st.booleans() | st.integers(-3, 2**40) | st.text(max_size=3) | st.floats(allow_nan=False),
    max_size=2,
)


def set_all(target, values) -> None:
    for name, value in values.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Serialized requests, most of them nearly right, split and merged as protobuf allows."""
    pieces = []
    for _ in range(draw(st.integers(1, 2))):
        request = ModelInferRequest(
            model_name=draw(names), model_version=draw(st.sampled_from(["", "1"])), id=draw(names)
        )
        set_all(request.parameters, draw(parameters))
        for _ in range(draw(st.integers(0, 3))):
            datatype = draw(st.sampled_from(["FP32", "INT64", "BYTES", "BOOL", "FP8"]))
            shape = draw(st.lists(st.integers(-1, 3), max_size=2))
            given_input = request.inputs.add(name=draw(names), datatype=datatype, shape=shape)
            set_all(given_input.parameters, draw(parameters))
            if draw(st.integers(0, 9)) == 0:
                given_input.contents.fp32_contents.extend([1.0, 2.0])
            size = max(0, int(np.prod(shape))) * (8 if datatype == "INT64" else 4)
            if draw(st.integers(0, 9)):
                request.raw_input_contents.append(
                    bytes(1 if draw(st.integers(0, 9)) == 0 else size)
                )
        for name in draw(st.lists(names, max_size=2)):
            request.outputs.add(name=name)
        pieces.append(request.SerializeToString())
    return b"".join(pieces) + draw(st.sampled_from([b"", b"\x7a\x01x", b"\xf8\x06\x05", b"\x1a"]))


def read(reader: RequestReader, plane: FunctionPlane, data: bytes):
    slot = plane.allocate(max(1, len(data)))
    slot.view[: len(data)] = data
    return reader.read(slot, data, 2.0, Sent("t", MemberCall("a")), "")


def by_protobuf(plane: FunctionPlane, data: bytes):
    return decode_call(plane, parse(ModelInferRequest, data), 2.0, Sent("t", MemberCall("a")))


def outcome(function, plane: FunctionPlane, *arguments):
    """The call's facts and values, or the kind of its error."""
    try:
        call = function(*arguments)
    except ServeError as error:
        plane.assert_clean()
        return type(error)
    tensors = [(t.name, t.datatype, t.shape, array_of(t).tolist()) for t in call.inputs]
    assert len({id(slot) for slot in call.slots}) == len(plane.live_slots)
    for slot in call.slots:
        slot.release()
    facts = (call.model, call.version, call.id, call.outputs, call.timeout_s)
    return facts, call.traceparent, call.part, tensors


@_CALM
@given(st.lists(requests(), min_size=1, max_size=3))
def test_a_walked_request_means_what_protobuf_says(several):
    plane = any_plane()
    reader = RequestReader(plane)
    for data in [*several, *several]:  # the second time from what was kept
        expected = outcome(by_protobuf, plane, plane, data)
        assert outcome(read, plane, reader, plane, data) == expected


@_CALM
@given(st.binary(max_size=100) | requests().map(lambda data: data[:-1]))
def test_no_bytes_break_the_walk(data):
    plane = any_plane()
    expected = outcome(by_protobuf, plane, plane, data)
    assert outcome(read, plane, RequestReader(plane), plane, data) == expected


@_CALM
@given(requests())
def test_the_walk_leaves_out_the_data_and_nothing_else(data):
    walked = walk(data)
    if walked is None:
        return
    try:
        whole = parse(ModelInferRequest, data)
    except InvalidRequest:
        return
    assert [data[begin:end] for begin, end in walked[2]] == list(whole.raw_input_contents)
    rest = parse(ModelInferRequest, walked[0])
    rest.id = walked[1]
    rest.raw_input_contents.extend(whole.raw_input_contents)
    # Deterministic, and unknown fields are kept.
    assert rest.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    assert beside_data(memoryview(data))[0] == whole.id


@pytest.mark.parametrize("size", [127, 128, 16383, 16384, 70_000, 3_000_000])
def test_lengths_of_any_size_are_read(size: int):
    request = ModelInferRequest(id="i" * size, raw_input_contents=[bytes(size), b"", b"x"])
    data = request.SerializeToString()
    for message in (data, memoryview(data)):
        walked = walk(message)
        assert len(walked[1]) == size
        assert [end - begin for begin, end in walked[2]] == [size, 0, 1]


@pytest.mark.parametrize(
    "length", [b"\xff\xff\xff\xff\xff\x01", b"\x80", b"", b"\xff\xff\xff\xff\x0f"]
)
def test_lengths_that_protobuf_has_to_judge_are_left_to_it(length: bytes):
    assert walk(b"\x3a" + length) is None


def message_of(parts, size) -> bytes:
    data = b"".join(map(bytes, parts))
    assert len(data) == size
    assert data[:5] == b"\0" + (size - 5).to_bytes(4, "big")
    return data[5:]


replies = st.builds(
    lambda model, version, identifier, values, given_parameters: InferReply(
        model,
        version,
        identifier,
        tuple(OutputTensor(f"y{i}", name, sample(name)[: i + 1]) for i, name in enumerate(values)),
        given_parameters,
    ),
    names,
    names,
    names,
    st.lists(st.sampled_from(sorted(DATATYPES)), max_size=3),
    parameters,
)


@_CALM
@given(st.lists(replies, min_size=1, max_size=3), st.booleans())
def test_an_answer_is_what_protobuf_would_write(several, final):
    writer = ReplyWriter()
    for reply in [*several, *several]:
        written = ModelInferResponse.FromString(message_of(*writer.write(reply, final)))
        assert written == encode_reply(reply, final)


def test_answers_of_one_shape_and_other_lengths_are_told_apart():
    """What is kept of an answer holds for its names and shapes; the length is the data's own."""
    writer = ReplyWriter()
    for text in (b"a", b"longer"):
        values = np.array([text], object)
        reply = InferReply("m", "1", "", (OutputTensor("y", "BYTES", values),))
        written = ModelInferResponse.FromString(message_of(*writer.write(reply)))
        assert written == encode_reply(reply)
