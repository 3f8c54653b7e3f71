"""The benchmarks' shared parts, and the runtime benchmark's own measurements on a real server."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bench.harness import Figures, Variant, alternate, machine, write_results
from bench.processes import on_cores, session_usage, start_session
from bench.runtime import (
    Case,
    Failed,
    check_answers,
    identity_case,
    measure_loop,
    measure_served,
    table,
)
from bench.servers import BenchServer

from tessera_cli.loadgen import ClosedLoop, Protocol

CORES = tuple(sorted(os.sched_getaffinity(0)))


def test_variants_alternate_and_keep_every_repeat() -> None:
    seen: list[str] = []

    def variant(name: str) -> Variant:
        def measure() -> Figures:
            seen.append(name)
            return {"rate_per_s": float(len(seen))}

        return Variant({"name": name}, measure)

    rows = alternate([variant("a"), variant("b")], rounds=3)
    assert "".join(seen) == "abbaab"
    assert [row.labels["name"] for row in rows] == ["a", "b"]
    assert [r["rate_per_s"] for r in rows[0].repeats] == [1, 4, 5]
    assert rows[0].medians == {"rate_per_s": 4}


def chosen(quick: bool, write: Path | None) -> argparse.Namespace:
    return argparse.Namespace(quick=quick, write=write, date="2026-01-02T03:04:05+00:00")


def test_results_are_json_with_machine_date_and_repeats(tmp_path: Path) -> None:
    rows = alternate([Variant({"name": "a"}, lambda: {"x": 1.0, "none": float("nan")})], 2)
    path = tmp_path / "results" / "name.json"
    assert write_results("name", chosen(False, path), {"versions": {}}, rows) == path
    document = json.loads(path.read_text())
    assert document["date"] == "2026-01-02T03:04:05+00:00"
    assert document["machine"]["cores"] == machine()["cores"]
    assert document["rows"][0]["repeats"] == [{"x": 1.0, "none": None}] * 2
    assert document["rows"][0]["medians"]["x"] == 1.0


def test_a_quick_run_writes_nothing_unless_told_where(tmp_path: Path) -> None:
    assert write_results("name", chosen(True, None), {}, []) is None
    assert write_results("name", chosen(True, tmp_path / "x.json"), {}, []) == tmp_path / "x.json"


def test_usage_is_that_of_every_process_of_the_session_on_its_cores() -> None:
    script = "import os; os.fork(); [0 for _ in range(10**6)]; os.read(0, 1)"
    process = start_session([sys.executable, "-c", script], CORES[:1], {"UNUSED": "1"})
    try:
        while session_usage(process.pid).processes < 2:
            assert process.poll() is None
        usage = session_usage(process.pid)
        assert usage.pss_mib > 1
        assert os.sched_getaffinity(process.pid) == set(CORES[:1])
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    assert os.sched_getaffinity(0) == set(CORES)


def test_cores_are_given_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="inside"), on_cores(CORES[:1]):
        raise ValueError("inside")
    assert os.sched_getaffinity(0) == set(CORES)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Case, BenchServer]]:
    case = identity_case()
    directory = tmp_path_factory.mktemp("server")
    with BenchServer(case.service, CORES[:1], directory, case.preload) as server:
        yield case, server


def test_served_answers_are_those_of_the_model(served: tuple[Case, BenchServer]) -> None:
    case, server = served
    check_answers(case, server, CORES)
    wrong = Case(
        case.name,
        case.service,
        case.input,
        case.output,
        case.examples,
        lambda x: x + np.float32(0.01),
        case.preload,
    )
    with pytest.raises(Failed, match="differs"):
        check_answers(wrong, server, CORES)


@pytest.mark.parametrize("protocol", Protocol)
def test_a_row_has_every_figure(served: tuple[Case, BenchServer], protocol: Protocol) -> None:
    case, server = served
    figures = measure_served(case, server, protocol, ClosedLoop(4, 0.3, 0.1), CORES)
    assert figures["rate_per_s"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["cpu_us"] > 0
    assert figures["pss_mib"] > 10


def test_the_table_shows_served_rows_beside_the_loop(served: tuple[Case, BenchServer]) -> None:
    case, _ = served
    loop = alternate(
        [
            Variant(
                {"model": case.name, "via": "loop b8", "in flight": ""},
                lambda: measure_loop(case, 8, CORES[:1], 0.05),
            )
        ],
        1,
    )
    assert loop[0].medians["rate_per_s"] > 0
    assert table(loop).row_count == 1
