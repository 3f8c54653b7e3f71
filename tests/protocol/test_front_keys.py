"""Keys over both protocols: whatever names a model asks for one where the model does, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from support.front_ends import FrontEnds
from support.function_plane import FunctionPlane, model
from support.raw_http import RawClient, json_infer, request
from tessera_runtime.protocol.bearer import keys_of, presented
from tessera_runtime.protocol.head import parse_head
from tessera_runtime.protocol.member_call import read_metadata
from tessera_runtime.protocol.messages import SERVICE, message

LOCKED, FREE = "test.locked", "test.identity"
KEY = "the-right-key"
TENSOR = ("FP32", (-1, 16))
OF_MODELS = [
    ("POST", "infer"),
    ("GET", ""),
    ("GET", "/ready"),
    ("GET", "/config"),
    ("GET", "/stats"),
    ("HEAD", "/ready"),
    ("GET", "/versions/1/ready"),
]


def identity(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"OUTPUT0": given["INPUT0"]}


@pytest.fixture
def fronts() -> Iterator[FrontEnds]:
    models = [
        model(name, identity, [("INPUT0", *TENSOR)], [("OUTPUT0", *TENSOR)])
        for name in (LOCKED, FREE)
    ]
    with FrontEnds(FunctionPlane.of(*models, keys={LOCKED: KEY})) as fronts:
        yield fronts


@pytest.fixture
def raw(fronts: FrontEnds) -> Iterator[RawClient]:
    with RawClient(fronts.http.port) as raw:
        yield raw


@pytest.fixture
def channel(fronts: FrontEnds) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(fronts.grpc_url) as channel:
        yield channel


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ("Bearer k", ("k",)),
        ("bearer  k ", ("k",)),
        ("BEARER k==", ("k==",)),
        ("Bearer", ()),
        ("Bearer ", ()),
        ("Basic dXNlcjpr", ()),
        ("k", ()),
        ("", ()),
    ],
)
def test_a_key_is_what_follows_the_scheme(value: str, keys: tuple[str, ...]) -> None:
    assert keys_of(value) == keys


def test_a_call_carries_all_the_keys_that_were_presented() -> None:
    written = presented(("a", "b"))
    assert read_metadata([("user-agent", "x"), *written, ("authorization", "Basic x")]).keys == (
        "a",
        "b",
    )


def test_a_head_that_is_shown_hides_its_key() -> None:
    head = parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer hunter2\r\n\r\n")
    assert head.keys == ("hunter2",)
    assert "hunter2" not in repr(head)


# HTTP


def asked(method: str, path: str, key: str = "", of: str = LOCKED) -> bytes:
    headers = f"Authorization: Bearer {key}\r\n" if key else ""
    if path == "infer":
        return request(method, f"/v2/models/{of}/infer", json_infer(), headers)
    return request(method, f"/v2/models/{of}{path}", headers=headers)


@pytest.mark.parametrize(("method", "path"), OF_MODELS)
@pytest.mark.parametrize("key", ["", "wrong", KEY[:-1]])
def test_whatever_names_the_model_is_refused_without_its_key(
    raw: RawClient, method: str, path: str, key: str
) -> None:
    raw.send(asked(method, path, key))
    answer = raw.read(without_body=method == "HEAD")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    if method != "HEAD":
        assert set(answer.json) == {"error"}
        assert LOCKED in answer.json["error"]


@pytest.mark.parametrize(("method", "path"), OF_MODELS)
def test_with_its_key_it_answers_as_others_do_without(
    raw: RawClient, method: str, path: str
) -> None:
    for sent in (asked(method, path, KEY), asked(method, path, of=FREE)):
        raw.send(sent)
        assert raw.read(without_body=method == "HEAD").status == 200


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_who_has_no_key_neither_loads_nor_unloads(
    fronts: FrontEnds, raw: RawClient, verb: str
) -> None:
    raw.send(request("POST", f"/v2/repository/models/{LOCKED}/{verb}"))
    assert raw.read().status == 401
    assert fronts.plane.unloaded == set()


def test_a_large_body_of_a_stranger_is_not_waited_for(fronts: FrontEnds, raw: RawClient) -> None:
    head = f"POST /v2/models/{LOCKED}/infer HTTP/1.1\r\nHost: test\r\nContent-Length: 9000000\r\n"
    raw.send(head.encode(), b"\r\n", b"x" * 1000)
    assert raw.read().status == 401
    assert not fronts.plane.live_slots
    assert raw.ended()


@pytest.mark.parametrize(
    "length", ["Content-Length: 9000000\r\nExpect: 100-continue", "Transfer-Encoding: chunked"]
)
def test_a_stranger_is_not_told_to_go_on(raw: RawClient, length: str) -> None:
    raw.send(f"POST /v2/models/{LOCKED}/infer HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n".encode())
    assert raw.read().status == 401


def test_the_connection_of_who_forgot_the_key_goes_on(raw: RawClient) -> None:
    raw.send(asked("POST", "infer"))
    assert raw.read().status == 401
    raw.send(asked("POST", "infer", KEY))
    assert raw.read().status == 200


def test_two_authorizations_are_refused(raw: RawClient) -> None:
    both = f"Authorization: Bearer wrong\r\nAuthorization: Bearer {KEY}\r\n"
    raw.send(request("GET", f"/v2/models/{LOCKED}", headers=both))
    assert raw.read().status == 400


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready"])
def test_the_server_itself_is_open(raw: RawClient, path: str) -> None:
    raw.send(request("GET", path))
    assert raw.read().status == 200


def test_lists_leave_out_what_the_key_does_not_open(raw: RawClient) -> None:
    for key, names in (("", [FREE]), (KEY, [FREE, LOCKED])):
        headers = f"Authorization: Bearer {key}\r\n" if key else ""
        raw.send(request("POST", "/v2/repository/index", headers=headers))
        assert [each["name"] for each in raw.read().json] == names
        raw.send(request("GET", "/v2/models/stats", headers=headers))
        assert [each["name"] for each in raw.read().json["model_stats"]] == names


# gRPC


def call(channel: grpc.Channel, method: str, key: str, fields: dict, service: str = SERVICE):
    sent = message(f"{method}Request")(**fields).SerializeToString()
    metadata = presented((key,)) if key else ()
    answer = channel.unary_unary(f"/{service}/{method}")(sent, metadata=metadata, timeout=20)
    name = f"{method}Response"
    return message(name).FromString(answer)


def infer_fields(name: str) -> dict:
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16]}
    return {"model_name": name, "inputs": [tensor], "raw_input_contents": [bytes(64)]}


OVER_GRPC = {
    "ModelInfer": infer_fields,
    "ModelReady": lambda name: {"name": name},
    "ModelMetadata": lambda name: {"name": name},
    "ModelConfig": lambda name: {"name": name},
    "ModelStatistics": lambda name: {"name": name},
    "RepositoryModelLoad": lambda name: {"model_name": name},
    "RepositoryModelUnload": lambda name: {"model_name": name},
}


@pytest.mark.parametrize("method", OVER_GRPC)
@pytest.mark.parametrize("key", ["", "wrong"])
def test_a_call_without_the_key_is_unauthenticated(
    fronts: FrontEnds, channel: grpc.Channel, method: str, key: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, key, OVER_GRPC[method](LOCKED))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert LOCKED in caught.value.details()
    assert fronts.plane.count == 0
    assert fronts.plane.unloaded == set()


@pytest.mark.parametrize("method", OVER_GRPC)
def test_a_call_with_the_key_is_answered(channel: grpc.Channel, method: str) -> None:
    call(channel, method, KEY, OVER_GRPC[method](LOCKED))
    call(channel, method, "", OVER_GRPC[method](FREE))


def test_grpc_asks_no_key_of_the_server_and_lists_what_is_open(channel: grpc.Channel) -> None:
    assert call(channel, "ServerLive", "", {}).live
    assert call(channel, "ServerReady", "", {}).ready
    for key, names in (("", [FREE]), (KEY, [FREE, LOCKED])):
        index = call(channel, "RepositoryIndex", key, {})
        assert [each.name for each in index.models] == names
        stats = call(channel, "ModelStatistics", key, {})
        assert [each.name for each in stats.model_stats] == names


def streamed(channel: grpc.Channel, key: str) -> list:
    sent = [
        message("ModelInferRequest")(**infer_fields(n)).SerializeToString() for n in (FREE, LOCKED)
    ]
    answers = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(
        iter(sent), metadata=presented((key,)) if key else (), timeout=20
    )
    return [message("ModelStreamInferResponse").FromString(each) for each in answers]


def test_each_request_of_a_stream_needs_its_models_key(
    fronts: FrontEnds, channel: grpc.Channel
) -> None:
    with_key = streamed(channel, KEY)
    assert [each.error_message for each in with_key] == ["", ""]
    fronts.plane.calls.clear()
    errors = [each.error_message for each in streamed(channel, "wrong")]
    assert sorted(map(bool, errors)) == [False, True]
    assert LOCKED in max(errors)
    assert [each.model for each in fronts.plane.calls] == [FREE]


def test_health_of_a_model_needs_its_key(channel: grpc.Channel) -> None:
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
    locked = health_pb2.HealthCheckRequest(service=LOCKED).SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        check(locked, timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as caught:
        next(watch(locked, timeout=20))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert check(locked, metadata=presented((KEY,)), timeout=20)
    watching = watch(locked, metadata=presented((KEY,)), timeout=20)
    assert next(watching)
    watching.cancel()
    assert check(health_pb2.HealthCheckRequest().SerializeToString(), timeout=20)
