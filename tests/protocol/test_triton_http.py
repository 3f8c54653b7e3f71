"""The real tritonclient over HTTP, blocking and asyncio, against the HTTP front end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as client
import tritonclient.http.aio as aio_client
from tritonclient.utils import InferenceServerException

from support.front_ends import FrontEnds
from support.served_models import sample
from tessera_runtime.datatypes import DATATYPES

JSON_TYPES = [name for name in DATATYPES if name != "FP16"]


@pytest.fixture
def triton(served: FrontEnds) -> Iterator[client.InferenceServerClient]:
    with client.InferenceServerClient(served.http_url, concurrency=2) as connected:
        yield connected


def tensor(name: str, values: np.ndarray, datatype: str, binary: bool = True) -> client.InferInput:
    given = client.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def identity(rows: int = 1) -> client.InferInput:
    return tensor("INPUT0", np.arange(rows * 16, dtype=np.float32).reshape(rows, 16), "FP32")


def arithmetic(binary_a: bool = True, binary_b: bool = True) -> list[client.InferInput]:
    a = np.array([[1, 2], [3, 4]], dtype=np.int32)
    b = np.array([[10, 20], [30, 40]], dtype=np.int32)
    return [tensor("A", a, "INT32", binary_a), tensor("B", b, "INT32", binary_b)]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_binary_round_trip_of_every_datatype(triton, datatype):
    values = sample(datatype)
    answer = triton.infer(f"echo.{datatype}", [tensor("INPUT0", values, datatype)])
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), values)
    assert answer.get_output("OUTPUT0")["datatype"] == datatype


@pytest.mark.parametrize("datatype", JSON_TYPES)
def test_json_round_trip_of_every_datatype(triton, datatype):
    values = sample(datatype)
    outputs = [client.InferRequestedOutput("OUTPUT0", binary_data=False)]
    given = [tensor("INPUT0", values, datatype, binary=False)]
    found = triton.infer(f"echo.{datatype}", given, outputs=outputs).as_numpy("OUTPUT0")
    if datatype == "BYTES":  # the client answers JSON strings as they are
        found = np.array([text.encode() for text in found.ravel()], dtype=object).reshape(3, 2)
    np.testing.assert_array_equal(found, values)


def test_fp16_is_accepted_as_json_numbers(triton):
    values = sample("FP16")
    given = tensor("INPUT0", values, "FP16", binary=False)
    answer = triton.infer("echo.FP16", [given])
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), values)


@pytest.mark.parametrize("binary_a", [True, False])
@pytest.mark.parametrize("binary_b", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_json_and_binary_may_be_mixed_freely(triton, binary_a, binary_b, binary_out):
    outputs = [
        client.InferRequestedOutput("SUM", binary_data=binary_out),
        client.InferRequestedOutput("DIFFERENCE", binary_data=True),
    ]
    answer = triton.infer("test.arithmetic", arithmetic(binary_a, binary_b), outputs=outputs)
    assert answer.as_numpy("SUM").tolist() == [[11, 22], [33, 44]]
    assert answer.as_numpy("DIFFERENCE").tolist() == [[-9, -18], [-27, -36]]


def test_only_the_requested_outputs_are_answered(triton):
    outputs = [client.InferRequestedOutput("DIFFERENCE")]
    answer = triton.infer("test.arithmetic", arithmetic(), outputs=outputs)
    assert answer.as_numpy("SUM") is None
    assert answer.as_numpy("DIFFERENCE").shape == (2, 2)


def test_the_request_id_comes_back_and_the_version_may_be_named(triton):
    answer = triton.infer("test.identity", [identity()], "1", request_id="r-17")
    assert answer.get_response()["id"] == "r-17"
    assert answer.get_response()["model_version"] == "1"


def test_answer_parameters_are_passed_on(served, triton):
    served.plane.parameters = {"members_answered": 2, "partial": True}
    answer = triton.infer("test.identity", [identity()])
    assert answer.get_response()["parameters"] == {"members_answered": 2, "partial": True}


@pytest.mark.parametrize("rows", [0, 1, 7, 64])
def test_a_request_may_carry_several_rows(triton, rows):
    answer = triton.infer("test.identity", [identity(rows)])
    assert answer.as_numpy("OUTPUT0").shape == (rows, 16)


def test_large_tensors_arrive_whole(triton):
    values = np.random.default_rng(0).random((8, 100_000))
    answer = triton.infer("echo.FP64", [tensor("INPUT0", values, "FP64")])
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), values)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_compression_both_ways(triton, request_coding, response_coding):
    outputs = [
        client.InferRequestedOutput("SUM", binary_data=False),
        client.InferRequestedOutput("DIFFERENCE"),
    ]
    answer = triton.infer(
        "test.arithmetic",
        arithmetic(),
        outputs=outputs,
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    assert answer.as_numpy("SUM").tolist() == [[11, 22], [33, 44]]
    assert answer.as_numpy("DIFFERENCE").tolist() == [[-9, -18], [-27, -36]]


def test_the_timeout_parameter_reaches_the_data_plane_in_seconds(served, triton):
    triton.infer("test.identity", [identity()], timeout=250_000, priority=3)
    assert served.plane.calls[-1].timeout_s == pytest.approx(0.25)


def test_a_well_formed_traceparent_is_taken_and_another_ignored(served, triton):
    good = f"00-{'a' * 32}-{'b' * 16}-01"
    triton.infer("test.identity", [identity()], headers={"traceparent": good})
    assert served.plane.calls[-1].traceparent == good
    triton.infer("test.identity", [identity()], headers={"traceparent": "00-zz"})
    assert served.plane.calls[-1].traceparent == ""


def test_health_and_metadata(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("test.identity")
    assert not triton.is_model_ready("test.absent")
    assert triton.get_server_metadata()["name"] == "tessera"
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    about = triton.get_model_metadata("test.identity", "1")
    assert about["inputs"] == [{"name": "INPUT0", "datatype": "FP32", "shape": [-1, 16]}]
    assert about["versions"] == ["1"]


def test_model_configuration_names_the_batch_limit(triton):
    config = triton.get_model_config("echo.BYTES")
    assert config["max_batch_size"] == 64
    assert config["input"] == [{"name": "INPUT0", "data_type": "TYPE_STRING", "dims": [-1]}]


def test_repository_index_load_and_unload(triton):
    triton.unload_model("test.identity")
    states = {entry["name"]: entry["state"] for entry in triton.get_model_repository_index()}
    assert states["test.identity"] == "UNAVAILABLE"
    assert not triton.is_model_ready("test.identity")
    with pytest.raises(InferenceServerException, match="not loaded") as refused:
        triton.infer("test.identity", [identity()])
    assert refused.value.status() == "503"
    triton.load_model("test.identity")
    assert triton.is_model_ready("test.identity")
    with pytest.raises(InferenceServerException, match="takes no parameters"):
        triton.load_model("test.identity", config="{}")


def test_statistics_move(triton):
    before = triton.get_inference_statistics("test.identity")["model_stats"][0]
    triton.infer("test.identity", [identity()])
    after = triton.get_inference_statistics("test.identity", "1")["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 1
    assert after["inference_stats"]["success"]["count"] == 1
    assert len(triton.get_inference_statistics()["model_stats"]) > 10


REFUSED = [
    ("test.absent", {}, "404", "no model"),
    ("test.identity", {"model_version": "9"}, "404", "no version"),
    ("test.identity", {"outputs": [client.InferRequestedOutput("X")]}, "404", "no output"),
    ("test.identity", {"sequence_id": 5, "sequence_start": True}, "400", "sequences"),
    ("test.identity", {"timeout": -1}, "400", "parameters.timeout"),
    (
        "test.identity",
        {"outputs": [client.InferRequestedOutput("OUTPUT0", class_count=2)]},
        "400",
        "classification",
    ),
    ("test.raises", {}, "500", "the model raised"),
    ("test.busy", {}, "429", "queue is full"),
    ("test.down", {}, "503", "no instance"),
]


@pytest.mark.parametrize(("name", "options", "status", "message"), REFUSED)
def test_errors_have_their_status_and_say_why(triton, name, options, status, message):
    with pytest.raises(InferenceServerException, match=message) as refused:
        triton.infer(name, [identity()], **options)
    assert refused.value.status() == status
    assert "/secret/path" not in str(refused.value)
    assert triton.is_server_live()


def test_wrong_inputs_are_refused(triton):
    shaped = tensor("INPUT0", np.zeros((1, 3), np.float32), "FP32")
    typed = tensor("INPUT0", np.zeros((1, 16), np.int8), "INT8")
    short = client.InferInput("INPUT0", [1, 16], "FP32")
    short._raw_data, short._parameters = b"1234", {"binary_data_size": 4}
    shared = client.InferInput("INPUT0", [1, 16], "FP32")
    shared.set_shared_memory("region", 64)
    wanted = [(shaped, "allowed: FP32"), (typed, "INT8"), (short, "need 64"), (shared, "shared")]
    for given, message in wanted:
        with pytest.raises(InferenceServerException, match=message) as refused:
            triton.infer("test.identity", [given])
        assert refused.value.status() == "400"


def test_nan_is_binary_only(triton):
    values = np.full((1, 16), np.nan, dtype=np.float32)
    given = [tensor("INPUT0", values, "FP32")]
    found = triton.infer("test.identity", given).as_numpy("OUTPUT0")
    np.testing.assert_array_equal(found, values)
    outputs = [client.InferRequestedOutput("OUTPUT0", binary_data=False)]
    with pytest.raises(InferenceServerException, match="ask for binary data"):
        triton.infer("test.identity", given, outputs=outputs)


def test_extensions_that_are_not_served_say_so(triton):
    for call in (
        triton.get_log_settings,
        triton.get_trace_settings,
        triton.get_system_shared_memory_status,
    ):
        with pytest.raises(InferenceServerException, match="not supported") as refused:
            call()
        assert refused.value.status() == "501"


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "INT8"])
async def test_asyncio_client(served, datatype):
    values = sample(datatype)
    async with aio_client.InferenceServerClient(served.http_url) as connected:
        assert await connected.is_server_ready()
        for binary in (True, False):
            answer = await connected.infer(
                f"echo.{datatype}",
                [tensor("INPUT0", values, datatype, binary)],
                request_compression_algorithm="gzip",
                response_compression_algorithm="deflate",
            )
            np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), values)
        with pytest.raises(InferenceServerException, match="no model"):
            await connected.infer("test.absent", [identity()])
