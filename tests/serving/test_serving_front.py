"""What the server says about itself: health, metadata, statistics, metrics, the repository."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, infer_grpc, infer_http
from support.model_files import RAISE, WIDTH, ModelFile, rows, told
from support.server import Server, wait_until
from support.targets import member, service
from support.targets import server as target

MODEL = "test.m"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ModelFile]:
    file = ModelFile(tmp_path / "model.py", scale=2.0)
    yield file
    file.let_go()
    file.let_load()


@pytest.fixture
def served(server: Server, file: ModelFile) -> Server:
    server.apply(target(service("m", member("a", file))))
    return server


def families(server: Server) -> dict[str, Metric]:
    url = f"http://127.0.0.1:{server.ports().metrics}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return {f.name: f for f in text_string_to_metric_families(answer.read().decode())}


def values(family: Metric, name: str = "", **labels: str) -> list[float]:
    return [
        sample.value
        for sample in family.samples
        if sample.name == (name or family.name) and labels.items() <= sample.labels.items()
    ]


def test_health_and_metadata_are_those_of_the_loaded_model(served: Server):
    http, grpc = served.http(), served.grpc()
    assert http.is_server_live()
    assert http.is_server_ready()
    assert http.is_model_ready(MODEL)
    assert grpc.is_model_ready(MODEL, "1")
    found = http.get_model_metadata(MODEL)
    assert found["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, WIDTH]}]
    assert found["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, WIDTH]}]
    with pytest.raises(InferenceServerException, match="no version '2'"):
        http.get_model_metadata(MODEL, "2")


def test_a_request_that_its_caller_samples_is_logged_with_its_ids(served: Server):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
    headers = {"traceparent": f"{trace}-01"}
    infer_http(served.http(), MODEL, rows(1), request_id="seen", headers=dict(headers))
    infer_grpc(served.grpc(), MODEL, rows(1), request_id="over grpc", headers=dict(headers))
    infer_http(served.http(), MODEL, rows(1), request_id="not sampled")

    def logged() -> dict[str, dict]:
        return {line["request_id"]: line for line in served.log_lines() if "request_id" in line}

    wait_until(lambda: "over grpc" in logged(), "the line of the request")
    line = logged()["seen"]
    assert (line["code"], line["rows"], line["service"]) == (200, 1, MODEL)
    assert line["traceparent"] == f"{trace}-01"
    assert "not sampled" not in logged()


def test_a_server_whose_model_is_being_loaded_is_not_ready(server: Server, file: ModelFile):
    file.hold_loading()
    server.apply(target())
    server.apply(target(service("m", member("a", file))), wait=False)
    http = server.http()
    assert http.is_server_live()
    assert not http.is_server_ready()
    assert not http.is_model_ready(MODEL)
    with pytest.raises(InferenceServerException, match="still being loaded") as raised:
        infer_http(http, MODEL, rows(1))
    assert raised.value.status() == "503"
    file.let_load()
    server.wait_served()
    assert http.is_server_ready()


def test_statistics_move_with_requests_and_batches(served: Server):
    http = served.http()
    before = http.get_inference_statistics(MODEL)["model_stats"][0]
    for count in (1, 3):
        infer_http(http, MODEL, rows(1, count))
    with pytest.raises(InferenceServerException):
        infer_http(http, MODEL, told(RAISE))
    after = http.get_inference_statistics(MODEL)["model_stats"][0]
    assert before["inference_count"] == 0
    assert after["inference_count"] == 4
    assert after["execution_count"] == 2
    assert after["inference_stats"]["success"]["count"] == 2
    assert after["inference_stats"]["fail"]["count"] == 1
    assert after["inference_stats"]["success"]["ns"] > after["inference_stats"]["queue"]["ns"] > 0
    assert {b["batch_size"]: b["compute_infer"]["count"] for b in after["batch_stats"]} == {
        1: 1,
        3: 1,
    }
    assert after["last_inference"] > 1_600_000_000_000


def test_metrics_have_every_family_and_count_what_was_asked(server: Server, tmp_path: Path):
    members = [member(name, ModelFile(tmp_path / f"{name}.py")) for name in "ab"]
    server.apply(target(service("m", *members)))
    for count in (1, 2, 5):
        infer_grpc(server.grpc(), MODEL, rows(1, count))
    found = families(server)
    for name in [
        "requests",
        "slo_good_requests",
        "slo_requests",
        "slo_attainment_ratio",
        "partial_answers",
        "request_seconds",
        "stage_seconds",
        "batch_rows",
        "failed_batches",
        "queued_rows",
        "instances",
        "batch_cap",
        "instance_restarts",
        "arena_used_bytes",
        "arena_size_bytes",
        "worker_memory_bytes",
        "worker_cpu_seconds",
        "gpu_memory_used_bytes",
        "gpu_utilisation_ratio",
    ]:
        assert f"tessera_{name}" in found, f"tessera_{name} of {sorted(found)}"
    own = {"service": MODEL, "version": "1"}
    requests = found["tessera_requests"]
    assert values(requests, "tessera_requests_total", code="200", **own) == [3]
    assert values(found["tessera_slo_attainment_ratio"], **own) == [1.0]
    seconds = found["tessera_request_seconds"]
    assert values(seconds, "tessera_request_seconds_count", **own) == [3]
    assert values(seconds, "tessera_request_seconds_bucket", le="+Inf", **own) == [3]
    batches = found["tessera_batch_rows"]
    assert values(batches, "tessera_batch_rows_count", member="a", **own) == [3]
    assert values(batches, "tessera_batch_rows_sum", member="a", **own) == [8]
    assert values(batches, "tessera_batch_rows_bucket", member="a", le="2", **own) == [2]
    stages = found["tessera_stage_seconds"]
    assert {s.labels["stage"] for s in stages.samples} == {
        "combine",
        "queue",
        "preprocess",
        "inference",
    }
    assert values(found["tessera_instances"], member="b", **own) == [1]
    workers = {str(pid) for pid in server.worker_pids()}
    assert {s.labels["pid"] for s in found["tessera_worker_memory_bytes"].samples} == workers


def test_buckets_of_every_histogram_only_grow(served: Server):
    for count in (1, 4, 8):
        infer_grpc(served.grpc(), MODEL, rows(1, count))
    for family in families(served).values():
        if family.type != "histogram":
            continue
        series: dict[tuple, list[tuple[float, float]]] = {}
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                labels = {k: v for k, v in sample.labels.items() if k != "le"}
                key = tuple(sorted(labels.items()))
                series.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
        for buckets in series.values():
            counts = [count for _, count in sorted(buckets)]
            assert counts == sorted(counts), family.name


def test_a_model_is_unloaded_and_loaded_again(served: Server, file: ModelFile):
    http = served.http()
    infer_http(http, MODEL, rows(1))
    http.unload_model(MODEL)
    served.wait_for(lambda r: not r.workers, "the worker ended")
    assert not http.is_model_ready(MODEL)
    [entry] = http.get_model_repository_index()
    assert (entry["name"], entry["state"], entry["reason"]) == (MODEL, "UNAVAILABLE", "unloaded")
    with pytest.raises(InferenceServerException, match="unloaded") as raised:
        infer_http(http, MODEL, rows(1))
    assert raised.value.status() == "503"
    assert http.is_server_ready(), "a model that a client unloaded is not missing"
    http.load_model(MODEL)
    assert http.is_model_ready(MODEL)
    np.testing.assert_array_equal(infer_http(http, MODEL, rows(1)).as_numpy("y"), file(rows(1)))
    [entry] = served.http().get_model_repository_index()
    assert entry["state"] == "READY"


def test_unloading_finishes_what_was_accepted(served: Server, crowd: Crowd, file: ModelFile):
    file.hold()
    asked = [(x := rows(0), crowd.ask(MODEL, x))]
    file.wait_held()  # those that come together are run together
    asked += [(x := rows(i), crowd.ask(MODEL, x)) for i in range(1, 4)]
    served.wait_for(lambda r: r.services[0].members[0].queued_rows == 3, "the rest queued")
    unloading = crowd.submit(served.grpc().unload_model, MODEL)

    def refused() -> bool:
        try:
            infer_http(served.http(), MODEL, rows(9), timeout=10_000_000)
        except InferenceServerException as error:
            return "unloaded" in str(error)
        return False

    wait_until(refused, "new requests refused")
    file.let_go()
    for x, answer in asked:
        np.testing.assert_array_equal(answer.result(), file(x))
    unloading.result()
    served.grpc().load_model(MODEL)


def test_a_model_that_cannot_be_loaded_says_why(served: Server, file: ModelFile):
    http = served.http()
    http.unload_model(MODEL)
    file.path.write_text("raise RuntimeError('the disk is gone')")
    with pytest.raises(InferenceServerException, match="the disk is gone"):
        http.load_model(MODEL)


def test_plain_names_are_not_guessed_by_default(served: Server):
    with pytest.raises(InferenceServerException, match="no model 'm'") as raised:
        infer_http(served.http(), "m", rows(1))
    assert raised.value.status() == "404"
