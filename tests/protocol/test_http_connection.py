"""HTTP/1.1 as bytes on a socket: framing, pipelining, connection reuse, and refusal of what is malformed."""

from __future__ import annotations

import asyncio
import gzip

import numpy as np
import pytest

from support.front_ends import FrontEnds
from support.raw_http import INFER, RawClient, binary_infer, json_infer, request
from support.served_models import served_plane
from tessera_runtime.protocol.http_server import SCRATCH


@pytest.fixture
def raw(served: FrontEnds):
    with RawClient(served.http.port) as client:
        yield client


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    framed = [f"{len(piece):x};note=1\r\n".encode() + piece + b"\r\n" for piece in pieces]
    return b"".join(framed) + b"0\r\n" + trailer + b"\r\n"


def test_pipelined_requests_are_answered_in_order(raw):
    """Inferences are answered later than what the server knows at once: order must hold all the same."""
    wanted = []
    for number in range(30):
        if number % 3:
            raw.send(request("POST", INFER, json_infer(f"r{number}")))
            wanted.append(f"r{number}")
        else:
            raw.send(request("GET", "/v2"))
            wanted.append("tessera")
    answers = [raw.read() for _ in wanted]
    assert [one.status for one in answers] == [200] * 30
    assert [one.json.get("id") or one.json.get("name") for one in answers] == wanted


def test_a_flood_of_pipelined_requests_is_held_back_and_answered(raw):
    raw.send(*[request("POST", INFER, json_infer(f"r{number}")) for number in range(500)])
    assert [raw.read().json["id"] for _ in range(500)] == [f"r{number}" for number in range(500)]


def test_a_request_may_arrive_byte_by_byte(raw):
    whole = request("POST", INFER, json_infer("slow"))
    raw.send(*[whole[at : at + 1] for at in range(len(whole))])
    assert raw.read().json["id"] == "slow"


def test_a_large_body_is_received_into_the_slot_it_is_read_from(served, raw):
    values = np.random.default_rng(1).random((64, 16384)).astype(np.float32)
    body, headers = binary_infer(values)
    path = "/v2/models/echo.FP32/infer"
    raw.send(request("POST", path, body, headers), request("GET", "/v2/health/live"))
    answer = raw.read()
    start = int(answer.headers["inference-header-content-length"])
    assert answer.body[start:] == values.tobytes()
    (call,) = served.plane.calls
    assert len(call.slots) == 1
    assert served.http.copied <= SCRATCH
    assert raw.read().status == 200


@pytest.mark.parametrize("behind", [b"", request("GET", "/v2/health/live")])
def test_a_client_that_repeats_itself_has_its_bodies_received_in_place_from_the_first_byte(
    served, raw, behind
):
    values = np.random.default_rng(1).random((3, 64, 64)).astype(np.float32)
    body, headers = binary_infer(values.reshape(1, -1))
    copied = []
    for _ in range(3):
        raw.send(request("POST", "/v2/models/echo.FP32/infer", body, headers) + behind)
        answer = raw.read()
        assert answer.body.endswith(values.tobytes())
        if behind:
            assert raw.read().status == 200
        copied.append(served.http.copied)
    assert 0 < copied[0] == copied[1] == copied[2]


def test_a_head_of_another_length_than_the_last_one_is_read_as_well(raw):
    values = np.random.default_rng(1).random((1, 20_000)).astype(np.float32)
    body, headers = binary_infer(values)
    for more in ("", "X-Longer: than before\r\n", "", "X-Much-Longer: " + "x" * 3000 + "\r\n", ""):
        raw.send(request("POST", "/v2/models/echo.FP32/infer", body, headers + more))
        assert raw.read().body.endswith(values.tobytes())
        raw.send(request("GET", "/v2/health/live", headers=more))
        assert raw.read().status == 200
        raw.send(request("POST", INFER, json_infer("short"), more))
        assert raw.read().json["id"] == "short"


def test_the_standard_event_loop_serves_too():
    loop = asyncio.new_event_loop()
    values = np.random.default_rng(1).random((64, 16384)).astype(np.float32)
    body, headers = binary_infer(values)
    with (
        FrontEnds(served_plane(), grpc=False, loop=loop) as front_ends,
        RawClient(front_ends.http.port) as raw,
    ):
        raw.send(request("POST", "/v2/models/echo.FP32/infer", body, headers))
        raw.send(request("POST", INFER, json_infer("second")))
        assert raw.read().body.endswith(values.tobytes())
        assert raw.read().json["id"] == "second"


def test_a_chunked_body_keeps_the_connection(raw):
    body = json_infer("chunks")
    head = request("POST", INFER, headers="Transfer-Encoding: chunked\r\n")
    raw.send(head + chunked(body[:1], body[1:50], body[50:], trailer=b"X-Sum: 1\r\n") + head)
    assert raw.read().json["id"] == "chunks"
    whole = chunked(body)
    raw.send(*[whole[at : at + 1] for at in range(len(whole))])
    assert raw.read().json["id"] == "chunks"


def test_a_large_chunked_body(raw):
    values = np.random.default_rng(1).random((8, 30_000)).astype(np.float32)
    body, headers = binary_infer(values)
    pieces = [body[at : at + 7000] for at in range(0, len(body), 7000)]
    head = request(
        "POST", "/v2/models/echo.FP32/infer", headers=headers + "Transfer-Encoding: chunked\r\n"
    )
    raw.send(head, chunked(*pieces))
    assert raw.read().body.endswith(values.tobytes())


@pytest.mark.parametrize("framing", ["Content-Length: {}\r\n", "Transfer-Encoding: chunked\r\n"])
def test_expect_100_continue(raw, framing):
    body = json_infer("late")
    raw.send(request("POST", INFER, headers=framing.format(len(body)) + "Expect: 100-continue\r\n"))
    assert raw.read().status == 100
    raw.send(chunked(body) if "chunked" in framing else body)
    assert raw.read().json["id"] == "late"


@pytest.mark.parametrize(
    ("version", "header", "kept"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.0", "", False),
        ("1.0", "Connection: keep-alive\r\n", True),
    ],
)
def test_connection_reuse_follows_version_and_header(raw, version, header, kept):
    raw.send(request("POST", INFER, json_infer(), header, version))
    answer = raw.read()
    assert answer.status == 200
    assert (answer.headers.get("connection") != "close") is kept
    if kept:
        raw.send(request("GET", "/v2"))
        assert raw.read().status == 200
    else:
        assert raw.ended()


def test_head_options_and_wrong_methods(raw):
    raw.send(request("HEAD", "/v2"))
    answer = raw.read(without_body=True)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    raw.send(request("OPTIONS", INFER))
    answer = raw.read()
    assert (answer.status, answer.headers["allow"]) == (204, "POST, OPTIONS")
    raw.send(request("GET", INFER))
    answer = raw.read()
    assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
    raw.send(request("POST", "/v2/health/live", b"ignored"))
    assert raw.read().status == 405
    raw.send(request("GET", "/nowhere"))
    assert raw.read().status == 404


def test_absolute_targets_queries_and_percent_encoding(raw):
    for target in ("http://test/v2?x=1", "/v2/models/test%2Eidentity", "/v2/"):
        raw.send(request("GET", target))
        assert raw.read().status == 200
    raw.send(request("GET", "/v2/models/%ff"))
    assert raw.read().status == 400


MALFORMED = {
    "no HTTP": (b"hello\r\n\r\n", 400),
    "unknown method": (b"FETCH / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /v2\r\n\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\n", 400),
    "no host": (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /v2 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "folded header": (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400),
    "bare LF": (b"GET /v2 HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", 400),
    "space before colon": (b"GET /v2 HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    "length twice": (request("POST", INFER, b"{}", "Content-Length: 2\r\n"), 400),
    "lengths differ": (request("POST", INFER, b"{}", "Content-Length: 3\r\n"), 400),
    "length and chunks": (request("POST", INFER, b"{}", "Transfer-Encoding: chunked\r\n"), 400),
    "two codings": (request("POST", INFER, headers="Transfer-Encoding: gzip, chunked\r\n"), 400),
    "unknown coding": (request("POST", INFER, headers="Transfer-Encoding: gzip\r\n"), 400),
    "chunked twice": (request("POST", INFER, headers="Transfer-Encoding: chunked\r\n" * 2), 400),
    "chunked HTTP/1.0": (
        request("POST", INFER, headers="Transfer-Encoding: chunked\r\n", version="1.0"),
        400,
    ),
    "signed length": (request("POST", INFER, headers="Content-Length: -1\r\n"), 400),
    "hex length": (request("POST", INFER, headers="Content-Length: 0x10\r\n"), 400),
    "endless length": (request("POST", INFER, headers=f"Content-Length: {'9' * 40}\r\n"), 400),
    "json length": (
        request("POST", INFER, b"{}", "Inference-Header-Content-Length: x\r\n"),
        400,
    ),
    "expectation": (request("POST", INFER, headers="Expect: more\r\n"), 417),
    "content coding": (request("POST", INFER, b"{}", "Content-Encoding: br\r\n"), 415),
    "huge head": (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
    "endless head": (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000, 431),
}

BAD_CHUNKS = {
    "no size": b"\r\n",
    "not hexadecimal": b"xyz\r\n",
    "signed": b"+5\r\nhello\r\n",
    "prefixed": b"0x5\r\nhello\r\n",
    "too many digits": b"000000005\r\nhello\r\n",
    "longer than its size": b"2\r\nhello\r\n",
    "bare LF": b"5\nhello\r\n",
    "endless extension": b"5;" + b"x" * 1000,
    "control character": b"5;\x00\r\nhello\r\n",
    "endless trailers": b"0\r\n" + b"X: 1\r\n" * 100,
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_heads_end_the_connection(raw, case):
    sent, status = MALFORMED[case]
    raw.send(sent)
    answer = raw.read()
    assert answer.status == status
    assert answer.json["error"]
    assert answer.headers["connection"] == "close"
    assert raw.ended()


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_bad_chunks_end_the_connection(raw, case):
    head = request("POST", INFER, headers="Transfer-Encoding: chunked\r\n")
    raw.send(head + BAD_CHUNKS[case])
    answer = raw.read()
    assert answer.status == 400
    assert raw.ended()


INPUT = '{"name":"INPUT0","datatype":"FP32","shape":[1,16]'
BINARY = INPUT + ',"parameters":{"binary_data_size":64}}'

BAD_BODIES = {
    "no JSON": ("nonsense", "not valid V2 JSON"),
    "cut off": ('{"inputs":[' + INPUT, "not valid V2 JSON"),
    "not an object": ("[]", "Expected `object`"),
    "not UTF-8": (b'{"inputs":[],"id":"\xff"}', "not valid V2 JSON"),
    "deep nesting": ('{"inputs":' + "[" * 10_000, "not valid V2 JSON"),
    "no inputs": ("{}", "missing required field `inputs`"),
    "empty inputs": ('{"inputs":[]}', "inputs: empty"),
    "no data": ('{"inputs":[' + INPUT + "}]}", "inputs[0].data: missing"),
    "typed wrongly": ('{"inputs":[{"name":1}]}', "$.inputs[0].name"),
    "too few": ('{"inputs":[' + INPUT + ',"data":[1]}]}', "1 elements"),
    "a string": ('{"inputs":[' + INPUT + ',"data":["1"]}]}', "Expected `float`"),
    "a boolean": ('{"inputs":[' + INPUT + ',"data":[true]}]}', "Expected `float`"),
    "ragged": ('{"inputs":[' + INPUT + ',"data":[[1,2],[3]]}]}', "on axis 0"),
    "data not a list": ('{"inputs":[' + INPUT + ',"data":5}]}', "Expected `array`"),
    "over range": ('{"inputs":[' + INPUT + ',"data":[' + "1e39," * 15 + "1]}]}", "out of range"),
    "NaN": ('{"inputs":[' + INPUT + ',"data":[NaN]}]}', "not valid V2 JSON"),
    "datatype": (
        '{"inputs":[{"name":"x","datatype":"F4","shape":[1],"data":[1]}]}',
        "allowed: BOOL",
    ),
    "negative shape": (
        '{"inputs":[{"name":"x","datatype":"FP32","shape":[-1],"data":[1]}]}',
        "outside",
    ),
    "huge shape": (
        '{"inputs":[{"name":"x","datatype":"FP32","shape":[2147483647,2147483647],"data":[1]}]}',
        "spans more than",
    ),
    "huge and empty": (
        '{"inputs":[{"name":"x","datatype":"FP32","shape":[0,2147483647,2147483647],"data":[]}]}',
        "spans more than",
    ),
    "many dimensions": (
        '{"inputs":[{"name":"x","datatype":"FP32","shape":[' + "1," * 99 + '1],"data":[1]}]}',
        "100 dimensions",
    ),
    "given twice": (
        '{"inputs":[' + ",".join([INPUT + ',"data":[' + "1," * 15 + "1]}"] * 2) + "]}",
        "given twice",
    ),
    "binary size beyond the body": ('{"inputs":[' + BINARY + "]}", "0 bytes left"),
    "asked twice": (
        '{"outputs":[{"name":"O"},{"name":"O"}],"inputs":[]}',
        "asked for twice",
    ),
    "parameter object": ('{"inputs":[],"parameters":{"x":{}}}', "$.parameters"),
    "timeout a string": ('{"inputs":[],"parameters":{"timeout":"5"}}', "parameters.timeout"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_bad_bodies_are_explained_and_the_connection_lives(raw, case):
    body, message = BAD_BODIES[case]
    raw.send(request("POST", INFER, body if isinstance(body, bytes) else body.encode()))
    answer = raw.read()
    assert answer.status == 400
    assert message in answer.json["error"]
    raw.send(request("POST", INFER, json_infer()))
    assert raw.read().status == 200


@pytest.mark.parametrize(
    ("json_length", "tail", "message"),
    [
        (0, b"", "Inference-Header-Content-Length is 0"),
        (10_000, b"", "Inference-Header-Content-Length is 10000"),
        (None, bytes(63), "63 bytes left"),
        (None, bytes(65), "belong to no input"),
    ],
)
def test_binary_bodies_must_add_up(raw, json_length, tail, message):
    text = ('{"inputs":[' + BINARY + "]}").encode()
    length = len(text) if json_length is None else json_length
    header = f"Inference-Header-Content-Length: {length}\r\n"
    raw.send(request("POST", INFER, text + tail, header))
    answer = raw.read()
    assert answer.status == 400
    assert message in answer.json["error"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"plain", "not valid gzip"),
        (gzip.compress(json_infer())[:-6], "cut off"),
        (gzip.compress(json_infer()) + b"more", "followed by other data"),
    ],
)
def test_bad_compression_is_refused(raw, body, message):
    raw.send(request("POST", INFER, body, "Content-Encoding: gzip\r\n"))
    answer = raw.read()
    assert answer.status == 400
    assert message in answer.json["error"]


def test_bytes_tensors_with_bad_lengths_are_refused(raw):
    given = (
        b'{"inputs":[{"name":"INPUT0","datatype":"BYTES","shape":[1,1],'
        b'"parameters":{"binary_data_size":6}}]}'
    )
    header = f"Inference-Header-Content-Length: {len(given)}\r\n"
    raw.send(request("POST", "/v2/models/echo.BYTES/infer", given + b"\xff\xff\xff\xffab", header))
    answer = raw.read()
    assert answer.status == 400
    assert "malformed BYTES" in answer.json["error"]


def test_an_empty_body_is_refused(raw):
    raw.send(request("POST", INFER, headers="Content-Length: 0\r\n"))
    assert "body is empty" in raw.read().json["error"]
