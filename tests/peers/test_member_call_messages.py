"""What servers say to each other: metadata beside a member call, and the call itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.function_plane import FunctionPlane
from support.served_models import sample
from tessera_runtime.dataplane import InferReply, InputTensor, MemberCall, OutputTensor
from tessera_runtime.datatypes import DATATYPES, encode_bytes
from tessera_runtime.errors import InvalidRequest
from tessera_runtime.protocol.grpc_codec import (
    decode_call,
    decode_reply,
    encode_reply,
    encode_request,
)
from tessera_runtime.protocol.member_call import Sent, read_metadata, write_metadata
from tessera_runtime.protocol.messages import ModelInferRequest, ModelInferResponse

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    "part",
    [
        MemberCall("a"),
        MemberCall("a", "sha256:00"),
        MemberCall("a", "", 0.25),
        MemberCall("a", "", -0.001, 1),
    ],
)
@pytest.mark.parametrize("traceparent", ["", TRACEPARENT])
def test_a_member_call_is_read_as_it_was_written(part: MemberCall, traceparent: str):
    assert read_metadata(write_metadata(part, traceparent)) == Sent(traceparent, part)


def test_a_client_that_names_no_member_asks_for_the_service():
    assert read_metadata([("tessera-slo-ms", "5"), ("user-agent", "x")]) == Sent()
    assert read_metadata([("traceparent", TRACEPARENT)]) == Sent(TRACEPARENT)


@pytest.mark.parametrize("name", ["tessera-slo-ms", "tessera-losses"])
@pytest.mark.parametrize("value", ["soon", "nan", "inf", ""])
def test_a_value_that_means_nothing_is_refused_by_its_name(name: str, value: str):
    with pytest.raises(InvalidRequest, match=name):
        read_metadata([("tessera-member", "a"), (name, value)])


def test_losses_are_never_negative():
    sent = read_metadata([("tessera-member", "a"), ("tessera-losses", "-3")])
    assert sent.part == MemberCall("a")


def placed(plane: FunctionPlane, name: str, array: np.ndarray, datatype: str) -> InputTensor:
    """``array`` in the middle of a slot."""
    data = encode_bytes(array) if datatype == "BYTES" else array.tobytes()
    slot = plane.allocate(len(data) + 24)
    slot.view[16 : 16 + len(data)] = data
    return InputTensor(name, datatype, array.shape, slot, 16, len(data))


@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_peer_reads_the_tensors_that_were_sent(datatype: str):
    plane = FunctionPlane({})
    plane.resolve = lambda name, host, keys: name
    array = sample(datatype)
    tensors = [placed(plane, name, array, datatype) for name in "xy"]
    data = encode_request("test.m", "id-7", [("own x", tensors[0]), ("own y", tensors[1])])
    call = decode_call(plane, ModelInferRequest.FromString(data), 1.5, Sent())
    assert (call.model, call.id, call.timeout_s) == ("test.m", "id-7", 1.5)
    assert [tensor.name for tensor in call.inputs] == ["own x", "own y"]
    for sent, read in zip(tensors, call.inputs, strict=True):
        assert (read.datatype, read.shape) == (datatype, array.shape)
        assert bytes(read.slot.view[read.start : read.start + read.nbytes]) == bytes(
            sent.slot.view[sent.start : sent.start + sent.nbytes]
        )


@given(st.integers(0, 70_000))
def test_data_of_any_length_is_framed_as_protobuf_does(size: int):
    plane = FunctionPlane({})
    tensor = placed(plane, "x", np.zeros(size, np.uint8), "UINT8")
    request = ModelInferRequest.FromString(encode_request("m", "", [("x", tensor)]))
    [raw] = request.raw_input_contents
    assert raw == bytes(size)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_the_answer_comes_back_as_it_was(datatype: str):
    array = sample(datatype)
    reply = InferReply("test.m", "1", "", (OutputTensor("y", datatype, array),))
    [output] = decode_reply(ModelInferResponse.FromString(encode_reply(reply).SerializeToString()))
    assert (output.name, output.datatype) == ("y", datatype)
    np.testing.assert_array_equal(output.array, array)


@pytest.mark.parametrize("shape", [(2, 4), (3,), (0, 4), (1, -4)])
def test_an_answer_whose_data_and_shape_disagree_is_refused(shape: tuple[int, ...]):
    answer = ModelInferResponse()
    answer.outputs.add(name="y", datatype="FP32", shape=shape)
    answer.raw_output_contents.append(bytes(16))
    with pytest.raises((ValueError, InvalidRequest)):
        decode_reply(answer)


def test_an_answer_without_data_is_refused():
    answer = ModelInferResponse()
    answer.outputs.add(name="y", datatype="FP32", shape=(1, 4))
    with pytest.raises(ValueError, match="zip"):
        decode_reply(answer)
