"""Deadlines, bounds, cancellation, batching and shapes, as clients meet them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, infer_grpc, infer_http
from support.model_files import WIDTH, ModelFile, rows
from support.server import Server, wait_until
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.target import ServiceTime, TensorTarget

MODEL = "test.m"

VARIABLE = """
import os, time
import numpy as np

class Model:
    inputs = {{"x": ("FP32", (-1,))}}
    outputs = {{"sum": ("FP32", (1,)), "batch": ("INT64", (2,))}}

    def __call__(self, batch):
        x = batch["x"]
        while os.path.exists({gate!r} + ".closed"):
            os.utime({gate!r} + ".entered")
            time.sleep(0.002)
        shape = np.broadcast_to(np.array(x.shape, "i8"), (len(x), 2)).copy()
        return {{"sum": x.sum(axis=1, keepdims=True), "batch": shape}}

def load(device, options):
    return Model()
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ModelFile]:
    file = ModelFile(tmp_path / "model.py", scale=2.0)
    yield file
    file.let_go()


@pytest.fixture
def variable(file: ModelFile) -> ModelFile:
    file.path.write_text(VARIABLE.format(gate=str(file.path)))
    return file


def one(file: ModelFile, service_settings: dict | None = None, **settings: object):
    return target(service("m", member("a", file, **settings), **(service_settings or {})))


def queued(server: Server, count: int) -> None:
    server.wait_for(lambda r: r.services[0].members[0].queued_rows == count, f"{count} rows queued")


# Deadlines


def test_the_timeout_parameter_is_kept(server: Server, file: ModelFile):
    server.apply(one(file))
    file.hold()
    with pytest.raises(InferenceServerException, match="no answer within 300 ms") as raised:
        infer_http(server.http(), MODEL, rows(1), timeout=300_000)
    assert raised.value.status() == "504"
    with pytest.raises(InferenceServerException, match="no answer within 300 ms") as raised:
        infer_grpc(server.grpc(), MODEL, rows(1), timeout=300_000)
    assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_the_grpc_deadline_is_kept(server: Server, file: ModelFile):
    server.apply(one(file))
    file.hold()
    with pytest.raises(InferenceServerException) as raised:
        infer_grpc(server.grpc(), MODEL, rows(1), client_timeout=0.3)
    assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    file.let_go()
    wait_until(lambda: server.report().arena_used == 0, "the inputs let go")


def test_an_answer_later_than_the_slo_is_given_and_counted(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(one(file, {"slo_ms": 50.0}))
    file.hold()
    answer = crowd.ask(MODEL, rows(1))
    file.wait_held()
    with pytest.raises(InferenceServerException, match="300 ms"):
        infer_http(server.http(), MODEL, rows(2), timeout=300_000)  # the SLO has passed by now
    file.let_go()
    np.testing.assert_array_equal(answer.result(), file(rows(1)))
    report = server.service(MODEL)
    assert (report.good, report.total) == (0, 2)
    assert report.codes == {"200": 1, "504": 1}


# Bounds


def test_more_rows_than_a_batch_are_refused(server: Server, file: ModelFile):
    server.apply(one(file, max_batch=4))
    http = server.http()
    np.testing.assert_array_equal(
        infer_http(http, MODEL, rows(1, 4)).as_numpy("y"), file(rows(1, 4))
    )
    with pytest.raises(InferenceServerException, match="1 to 4") as raised:
        infer_http(http, MODEL, rows(1, 5))
    assert raised.value.status() == "400"


def test_a_full_queue_refuses(server: Server, crowd: Crowd, file: ModelFile):
    server.apply(one(file, max_batch=128))  # 64 batches of 128 rows may wait
    file.hold()
    asked = [(rows(0), crowd.ask(MODEL, rows(0)))]
    file.wait_held()
    more = Crowd(server.ports().grpc, threads=64)
    asked += [(x := rows(i, 128), more.ask(MODEL, x)) for i in range(1, 65)]
    queued(server, 64 * 128)
    with pytest.raises(InferenceServerException, match="queue is full") as raised:
        infer_http(server.http(), MODEL, rows(99))
    assert raised.value.status() == "429"
    file.let_go()
    for x, answer in asked:
        np.testing.assert_array_equal(answer.result(), file(x))
    more.close()


def test_work_that_would_be_late_is_refused_at_once(server: Server, file: ModelFile):
    slow = ServiceTime(alpha_ms=0.0, tau0_ms=5_000.0)
    server.apply(one(file, service_time=slow))
    with pytest.raises(InferenceServerException, match="would be late") as raised:
        infer_http(server.http(), MODEL, rows(1), timeout=4_000_000)
    assert raised.value.status() == "429"
    result = infer_http(server.http(), MODEL, rows(1), timeout=30_000_000)
    np.testing.assert_array_equal(result.as_numpy("y"), file(rows(1)))


def test_a_busy_instance_takes_no_more_than_it_can_answer_in_time(
    server: Server, crowd: Crowd, file: ModelFile
):
    """Ten seconds a batch of one: the running one, those that wait, and its own; of 45, one tenth is kept."""
    ten_s = ServiceTime(alpha_ms=0.0, tau0_ms=10_000.0)
    server.apply(one(file, service_time=ten_s, max_batch=1))
    file.hold()
    asked = [(rows(0), crowd.ask(MODEL, rows(0), timeout=45_000_000, client_timeout=90))]
    file.wait_held()
    for waiting in (1, 2, 3):
        asked.append(
            (x := rows(waiting), crowd.ask(MODEL, x, timeout=45_000_000, client_timeout=90))
        )
        queued(server, waiting)
    with pytest.raises(InferenceServerException, match="3 rows are waiting") as raised:
        infer_http(server.http(), MODEL, rows(4), timeout=45_000_000)
    assert raised.value.status() == "429"
    patient = rows(5), crowd.ask(MODEL, rows(5), timeout=80_000_000, client_timeout=90)
    queued(server, 4)
    file.let_go()
    for x, answer in [*asked, patient]:
        np.testing.assert_array_equal(answer.result(), file(x))


def test_a_batch_is_never_larger_than_the_model_itself_allows(
    server: Server, crowd: Crowd, tmp_path: Path
):
    file = ModelFile(tmp_path / "small.py", max_rows=2)
    server.apply(one(file, max_batch=8))
    file.hold()
    asked = [(rows(0), crowd.ask(MODEL, rows(0)))]
    file.wait_held()
    asked += [(x := rows(i), crowd.ask(MODEL, x)) for i in range(1, 7)]
    queued(server, 6)
    file.let_go()
    for x, answer in asked:
        np.testing.assert_array_equal(answer.result(), file(x))
    report = server.member(MODEL)
    assert (report.batches, report.rows) == (4, 7), "1 alone, then pairs, none refused by the model"


# Cancellation


def test_a_client_that_leaves_frees_its_place_in_the_queue(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(one(file))
    file.hold()
    first = crowd.ask(MODEL, rows(1))
    file.wait_held()
    body = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, WIDTH], "data": [0.0] * WIDTH}]}
    ).encode()
    head = (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.ports().http)) as sock:
        sock.sendall(head.encode() + body)
        queued(server, 1)
    queued(server, 0)
    with pytest.raises(InferenceServerException):
        infer_grpc(server.grpc(), MODEL, rows(2), client_timeout=0.3)
    queued(server, 0)
    file.let_go()
    np.testing.assert_array_equal(first.result(), file(rows(1)))
    wait_until(lambda: server.report().arena_used == 0, "the inputs let go")


# Batches and shapes


def test_requests_that_wait_are_batched_and_their_rows_counted(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(one(file, max_batch=8))
    file.hold()
    asked = [(rows(0), crowd.ask(MODEL, rows(0)))]
    file.wait_held()
    asked += [(x := rows(i, 2), crowd.ask(MODEL, x)) for i in range(1, 5)]
    queued(server, 8)
    file.let_go()
    for x, answer in asked:
        np.testing.assert_array_equal(answer.result(), file(x))
    assert (server.member(MODEL).batches, server.member(MODEL).rows) == (2, 9)


def widths_of_batches(server: Server, crowd: Crowd, variable: ModelFile, widths: list[int]):
    """What shape of batch each request found itself in, all having waited together."""
    variable.hold()
    crowd.ask(MODEL, np.ones((1, 1), np.float32))
    variable.wait_held()
    inputs = [np.full((1, width), width, np.float32) for width in widths]
    asked = [crowd.submit(infer_grpc, crowd.client, MODEL, x) for x in inputs]
    queued(server, len(widths))
    variable.let_go()
    results = [answer.result() for answer in asked]
    for width, result in zip(widths, results, strict=True):
        assert result.as_numpy("sum").item() == width * width, "padding changes no sum"
    return [tuple(result.as_numpy("batch")[0].tolist()) for result in results]


def test_only_equal_shapes_share_a_batch_without_buckets(
    server: Server, crowd: Crowd, variable: ModelFile
):
    server.apply(one(variable))
    found = widths_of_batches(server, crowd, variable, [3, 5, 3, 3, 7])
    assert found == [(3, 3), (1, 5), (3, 3), (3, 3), (1, 7)]


def test_shapes_are_padded_up_to_their_bucket_and_share_it(
    server: Server, crowd: Crowd, variable: ModelFile
):
    buckets = TensorTarget("x", "FP32", (-1,), ((4,), (8,)))
    server.apply(one(variable, {"inputs": (buckets,)}))
    found = widths_of_batches(server, crowd, variable, [3, 5, 4, 8, 1])
    assert found == [(3, 4), (2, 8), (3, 4), (2, 8), (3, 4)]
    with pytest.raises(InferenceServerException, match="largest padding bucket") as raised:
        infer_http(server.http(), MODEL, np.ones((1, 9), np.float32))
    assert raised.value.status() == "400"


def test_empty_rows_are_served(server: Server, variable: ModelFile):
    server.apply(one(variable))
    result = infer_http(server.http(), MODEL, np.ones((2, 0), np.float32))
    assert result.as_numpy("sum").tolist() == [[0.0], [0.0]]
