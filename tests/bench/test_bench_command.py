"""`tessera bench`: loads made up from metadata, and what it refuses."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import numpy as np
import pytest

from support.front_ends import FrontEnds
from support.served_models import served_plane
from tessera_cli import bench
from tessera_cli.bench import BenchFailed, row_shapes, synthetic_inputs


@pytest.fixture(scope="module")
def fronts() -> Iterator[FrontEnds]:
    with FrontEnds(served_plane()) as running:
        yield running


def bench_with(fronts: FrontEnds, *options: str) -> int:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    url = f"http://127.0.0.1:{fronts.http.port}"
    return bench.run(parser.parse_args(["--url", url, "--seconds", "1", *options]))


@pytest.mark.parametrize("shape", [("--rate", "80"), ("--concurrency", "3")])
@pytest.mark.parametrize("over_grpc", [False, True])
def test_a_load_prints_its_figures(
    fronts: FrontEnds, capsys: pytest.CaptureFixture[str], shape: tuple[str, str], over_grpc: bool
) -> None:
    address = ("--grpc", f"127.0.0.1:{fronts.grpc.port}") if over_grpc else ()
    options = ("--model", "test.identity", "--output", "json", "--slo", "1000", *shape, *address)
    assert bench_with(fronts, *options) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["requests"] > 0
    assert figures["lost"] == figures["failed"] == 0
    assert set(figures["statuses"]) == {"OK" if over_grpc else "200"}
    assert figures["p50_ms"] <= figures["p99_ms"] <= figures["worst_ms"]
    assert 0 <= figures["attainment"] <= 1


def test_the_table_is_for_people(fronts: FrontEnds, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_with(fronts, "--model", "test.identity") == 0
    assert "p99_ms" in capsys.readouterr().out


def test_failed_requests_are_exit_status_1(
    fronts: FrontEnds, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_with(fronts, "--model", "test.busy", "--output", "json") == 1
    assert json.loads(capsys.readouterr().out)["statuses"].keys() == {"429"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "no.such"), "no.such"),
        (("--model", "echo.FP32"), "--shape INPUT0=N"),
        (("--model", "echo.BYTES", "--shape", "INPUT0=2"), "BYTES"),
        (("--model", "test.identity", "--rate", "0"), "--rate: found 0.0"),
        (("--model", "test.identity", "--rows", "0"), "--rows: found 0"),
        (("--model", "test.identity", "--concurrency", "100000"), "allowed: 1 to 512"),
        (("--model", "test.identity", "--grpc", "nowhere"), "HOST:PORT"),
        (("--model", "test.identity", "--shape", "INPUT0=-1"), "positive sizes"),
        (("--model", "test.identity", "--url", "ftp://x"), "http://HOST"),
        (("--model", "test.identity", "--url", "http://127.0.0.1:1"), "no model metadata"),
    ],
)
def test_what_cannot_be_sent_says_why(
    fronts: FrontEnds, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert bench_with(fronts, *options) == 1
    assert said in capsys.readouterr().err


def test_synthetic_inputs_follow_metadata_and_seed() -> None:
    metadata = [
        {"name": "a", "datatype": "FP16", "shape": [-1, 3]},
        {"name": "b", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "c", "datatype": "BOOL", "shape": [-1]},
    ]
    made = [synthetic_inputs(metadata, 4, {"b": (5,)}, np.random.default_rng(1)) for _ in range(2)]
    assert {name: (array.shape, str(array.dtype)) for name, array in made[0].items()} == {
        "a": ((4, 3), "float16"),
        "b": ((4, 5), "int64"),
        "c": ((4,), "bool"),
    }
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])


def test_row_shapes_are_read_by_input() -> None:
    assert row_shapes(["x=3,224,224", "y="]) == {"x": (3, 224, 224), "y": ()}
    with pytest.raises(BenchFailed, match="x=0"):
        row_shapes(["x=0"])
