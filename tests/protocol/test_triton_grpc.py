"""The real tritonclient over gRPC, blocking, streaming and asyncio, against the gRPC front end."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client
import tritonclient.grpc.aio as aio_client
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from support.front_ends import FrontEnds
from support.served_models import sample
from tessera_runtime.datatypes import DATATYPES
from tessera_runtime.protocol.grpc_codec import _CONTENTS


@pytest.fixture
def triton(served: FrontEnds) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(served.grpc_url) as connected:
        yield connected


@pytest.fixture
def infer(served: FrontEnds) -> Iterator[grpc.UnaryUnaryMultiCallable]:
    """ModelInfer with messages that tritonclient would not build."""
    with grpc.insecure_channel(served.grpc_url) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: (
                message if isinstance(message, bytes) else message.SerializeToString()
            ),
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )


def tensor(name: str, values: np.ndarray, datatype: str) -> client.InferInput:
    given = client.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values)
    return given


def identity(rows: int = 1) -> client.InferInput:
    return tensor("INPUT0", np.arange(rows * 16, dtype=np.float32).reshape(rows, 16), "FP32")


def arithmetic() -> list[client.InferInput]:
    a = np.array([[1, 2], [3, 4]], dtype=np.int32)
    b = np.array([[10, 20], [30, 40]], dtype=np.int32)
    return [tensor("A", a, "INT32"), tensor("B", b, "INT32")]


def typed_request(datatype: str, values: np.ndarray) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=f"echo.{datatype}")
    given = request.inputs.add(name="INPUT0", datatype=datatype, shape=values.shape)
    getattr(given.contents, _CONTENTS[datatype]).extend(values.ravel().tolist())
    return request


@pytest.mark.parametrize("datatype", DATATYPES)
def test_raw_round_trip_of_every_datatype(triton, datatype):
    values = sample(datatype)
    answer = triton.infer(f"echo.{datatype}", [tensor("INPUT0", values, datatype)])
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), values)


@pytest.mark.parametrize("datatype", _CONTENTS)
def test_typed_contents_of_every_datatype(infer, datatype):
    values = sample(datatype)
    answer = client.InferResult(infer(typed_request(datatype, values)))
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), values)


def test_several_inputs_and_requested_outputs(triton):
    answer = triton.infer("test.arithmetic", arithmetic(), request_id="r-3")
    assert answer.as_numpy("SUM").tolist() == [[11, 22], [33, 44]]
    assert answer.get_response().id == "r-3"
    outputs = [client.InferRequestedOutput("DIFFERENCE")]
    answer = triton.infer("test.arithmetic", arithmetic(), outputs=outputs)
    assert answer.as_numpy("SUM") is None
    assert answer.as_numpy("DIFFERENCE").tolist() == [[-9, -18], [-27, -36]]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(triton, coding):
    answer = triton.infer("test.identity", [identity(8)], compression_algorithm=coding)
    assert answer.as_numpy("OUTPUT0").shape == (8, 16)


def test_answer_parameters_are_passed_on(served, triton):
    served.plane.parameters = {"partial": True, "members": 2, "share": 0.5, "missing": "cnn"}
    found = triton.infer("test.identity", [identity()]).get_response().parameters
    assert found["partial"].bool_param is True
    assert found["members"].int64_param == 2
    assert found["share"].double_param == 0.5
    assert found["missing"].string_param == "cnn"


def test_the_tighter_of_deadline_and_timeout_reaches_the_data_plane(served, triton):
    triton.infer("test.identity", [identity()], timeout=250_000)
    assert served.plane.calls[-1].timeout_s == pytest.approx(0.25)
    triton.infer("test.identity", [identity()], timeout=10**9, client_timeout=60)
    assert 0 < served.plane.calls[-1].timeout_s <= 61  # gRPC rounds long deadlines
    triton.infer("test.identity", [identity()])
    assert served.plane.calls[-1].timeout_s is None


def test_traceparent_metadata_is_taken(served, triton):
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    triton.infer("test.identity", [identity()], headers={"traceparent": good})
    assert served.plane.calls[-1].traceparent == good


def test_health_metadata_and_configuration(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("test.identity")
    assert triton.get_server_metadata().name == "tessera"
    about = triton.get_model_metadata("test.identity")
    assert (about.inputs[0].name, list(about.inputs[0].shape)) == ("INPUT0", [-1, 16])
    config = triton.get_model_config("echo.FP16").config
    assert config.max_batch_size == 64
    assert config.input[0].data_type == 10
    assert list(config.input[0].dims) == [-1]
    assert config.HasField("dynamic_batching")


def test_repository_index_load_and_unload(triton):
    triton.unload_model("test.identity")
    states = {entry.name: entry.state for entry in triton.get_model_repository_index().models}
    assert states["test.identity"] == "UNAVAILABLE"
    assert not triton.is_model_ready("test.identity")
    triton.load_model("test.identity")
    assert triton.is_model_ready("test.identity")
    with pytest.raises(InferenceServerException, match="takes no parameters"):
        triton.load_model("test.identity", config="{}")


def test_statistics_move(triton):
    triton.infer("test.identity", [identity()])
    stats = triton.get_inference_statistics("test.identity").model_stats[0]
    assert (stats.version, stats.inference_count, stats.last_inference) == ("1", 1, 5)
    assert stats.inference_stats.success.count == 1
    assert stats.batch_stats[0].batch_size == 1
    assert len(triton.get_inference_statistics().model_stats) > 10


REFUSED = [
    ("test.absent", {}, "NOT_FOUND", "no model"),
    ("test.identity", {"model_version": "9"}, "NOT_FOUND", "no version"),
    ("test.identity", {"outputs": [client.InferRequestedOutput("X")]}, "NOT_FOUND", "no output"),
    ("test.identity", {"sequence_id": 5}, "INVALID_ARGUMENT", "sequences"),
    ("test.identity", {"timeout": -1}, "INVALID_ARGUMENT", "parameters.timeout"),
    (
        "test.identity",
        {"outputs": [client.InferRequestedOutput("OUTPUT0", class_count=2)]},
        "INVALID_ARGUMENT",
        "classification",
    ),
    ("test.raises", {}, "INTERNAL", "the model raised"),
    ("test.busy", {}, "RESOURCE_EXHAUSTED", "queue is full"),
    ("test.down", {}, "UNAVAILABLE", "no instance"),
]


@pytest.mark.parametrize(("name", "options", "status", "message"), REFUSED)
def test_errors_have_their_status_and_say_why(triton, name, options, status, message):
    with pytest.raises(InferenceServerException, match=message) as refused:
        triton.infer(name, [identity()], **options)
    assert refused.value.status() == f"StatusCode.{status}"
    assert "Traceback" not in str(refused.value)
    assert "/secret/path" not in str(refused.value)


def _request(**fields) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="test.identity", **fields)
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 16])
    return request


def _both() -> service_pb2.ModelInferRequest:
    request = _request(raw_input_contents=[bytes(64)])
    request.inputs[0].contents.fp32_contents.append(1.0)
    return request


def _wrong_field() -> service_pb2.ModelInferRequest:
    request = _request()
    request.inputs[0].contents.int_contents.extend([1] * 16)
    return request


def _twice() -> service_pb2.ModelInferRequest:
    request = _request(raw_input_contents=[bytes(64), bytes(64)])
    request.inputs.add().CopyFrom(request.inputs[0])
    return request


def _echo(datatype: str, shape: list[int], raw: bytes) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="echo.BYTES", raw_input_contents=[raw])
    request.inputs.add(name="INPUT0", datatype=datatype, shape=shape)
    return request


MALFORMED = {
    "no protobuf": (b"\xff\xff\xff\xff", "not a valid ModelInferRequest"),
    "cut off": (_request(raw_input_contents=[bytes(64)]).SerializeToString()[:-3], "not a valid"),
    "no inputs": (service_pb2.ModelInferRequest(model_name="test.identity"), "inputs: empty"),
    "no data": (_request(), "0 elements"),
    "raw too short": (_request(raw_input_contents=[bytes(63)]), "63 bytes"),
    "raw count": (_request(raw_input_contents=[bytes(64)] * 2), "2 entries for 1 inputs"),
    "raw and typed": (_both(), "not allowed beside"),
    "wrong field": (_wrong_field(), "belongs in fp32_contents"),
    "given twice": (_twice(), "given twice"),
    "typed FP16": (
        service_pb2.ModelInferRequest(
            model_name="echo.FP16",
            inputs=[
                service_pb2.ModelInferRequest.InferInputTensor(
                    name="INPUT0", datatype="FP16", shape=[1, 1]
                )
            ],
        ),
        "only accepted in raw_input_contents",
    ),
    "out of range": (typed_request("INT8", np.array([[300]])), "out of bounds"),
    "negative size": (_echo("FP32", [-1, 2], b""), "outside"),
    "unknown datatype": (_echo("FP8", [1, 2], b"12"), "unknown datatype"),
    "bytes overrun": (_echo("BYTES", [1, 1], b"\xff\0\0\0ab"), "malformed BYTES"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_requests_are_invalid_arguments(infer, case):
    request, message = MALFORMED[case]
    with pytest.raises(grpc.RpcError, match=message) as refused:
        infer(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_answers_independent_requests_and_errors(triton):
    answers: queue.Queue = queue.Queue()
    triton.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(20):
        triton.async_stream_infer("test.identity", [identity()], request_id=f"good-{number}")
    triton.async_stream_infer("test.absent", [identity()], request_id="bad")
    triton.async_stream_infer(
        "test.identity", [identity()], request_id="last", enable_empty_final_response=True
    )
    got = [answers.get(timeout=20) for _ in range(22)]
    triton.stop_stream()
    good = {result.get_response().id: result for result, error in got if error is None}
    assert good.keys() == {f"good-{number}" for number in range(20)} | {"last"}
    assert good["last"].get_response().parameters["triton_final_response"].bool_param
    (failure,) = [error for _, error in got if error is not None]
    assert "no model" in str(failure)


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
async def test_asyncio_client(served, datatype):
    values = sample(datatype)
    async with aio_client.InferenceServerClient(served.grpc_url) as connected:
        assert await connected.is_server_ready()
        answer = await connected.infer(f"echo.{datatype}", [tensor("INPUT0", values, datatype)])
        np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), values)
        with pytest.raises(InferenceServerException, match="no model"):
            await connected.infer("test.absent", [identity()])
