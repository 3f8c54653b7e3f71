"""The data plane's bench: its decisions as tables, and a quick run on the real server without peers."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.dataplane.generators import missing_programs
from bench.dataplane.loop import Loop
from bench.dataplane.main import main
from bench.dataplane.open_loop import WARMUP_S, highest_rate, outcome
from bench.dataplane.running import Running, ServerFailed
from bench.dataplane.targets import Line, lines, number
from bench.harness import Row
from bench.models.networks import export
from bench.models.served import load
from bench.peers import base, install
from bench.peers.base import WORKS, Wire
from bench.peers.litserve import LitServe
from bench.peers.mlserver import MLServer
from bench.peers.mosec import Mosec
from bench.peers.tessera import Tessera
from bench.peers.triton import Triton
from bench.processes import end_session, living, on_cores, start_session, tree, usage

from tessera_cli.loadgen import Samples

CORES = tuple(sorted(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("line", "ratio", "verdict"),
    [
        (Line("x", 15.0, 40.0, 20.0, 30.0, "p", higher_is_better=False), 0.5, "aim reached"),
        (Line("x", 40.0, 40.0, 20.0, 30.0, "p", higher_is_better=False), 4 / 3, "reached"),
        (Line("x", 41.0, 40.0, 20.0, higher_is_better=False), math.nan, "MISSED"),
        (Line("x", 70.0, 0.6, 0.8, base=100.0), 0.7, "reached"),
        (Line("x", 50.0, 0.6, 0.8, base=100.0), 0.5, "MISSED"),
        (Line("x", 50.0, base=100.0), 0.5, "reported"),
        (Line("x", math.nan, 0.6, 0.8, base=100.0), math.nan, "not measured"),
        (Line("x", 4.0, aim=5.0, higher_is_better=False), math.nan, "aim reached"),
        (Line("x", 6.0, aim=5.0, higher_is_better=False), math.nan, "MISSED"),
    ],
)
def test_a_line_is_judged_by_its_ratio_or_itself(line: Line, ratio: float, verdict: str) -> None:
    assert line.ratio == pytest.approx(ratio, nan_ok=True)
    assert line.verdict == verdict


def closed(work: str, server: str, protocol: str, **figures: float) -> Row:
    labels = {"group": "closed", "work": work, "server": server, "protocol": protocol, "c": "32"}
    return Row(labels, (figures,))


def test_lines_take_the_best_peer_and_the_loop() -> None:
    found = lines(
        [
            closed("identity", "Tessera", "http", cpu_us=35.0),
            closed("identity", "Triton", "http", cpu_us=72.0),
            closed("identity", "mosec", "http", cpu_us=23.0),
            closed("identity", "Ray Serve", "http", cpu_us=math.nan),
            closed("ensemble", "Tessera", "http", rate_per_s=600.0),
            closed("ensemble", "Triton", "http", rate_per_s=200.0),
            closed("fused", "mosec", "http", rate_per_s=700.0),
            Row(
                {"group": "closed", "work": "ensemble", "server": "loop"},
                ({"rate_per_s": 1000.0},),
            ),
        ]
    )
    cpu = next(line for line in found if "CPU µs" in line.what)
    assert (cpu.tessera, cpu.peer, cpu.peer_name) == (35.0, 23.0, "mosec http")
    assert cpu.verdict == "reached"
    over_loop = next(line for line in found if "ensemble of three" in line.what)
    assert over_loop.ratio == 0.6
    assert over_loop.verdict == "MISSED"
    assert over_loop.peer_name == "mosec (fused) http"


def test_without_rows_every_line_is_there_and_not_measured() -> None:
    found = lines([])
    assert len(found) > 15
    assert {line.verdict for line in found} == {"not measured"}


@pytest.mark.parametrize(
    ("value", "text"), [(math.nan, ""), (1234.5, "1,234"), (12.34, "12.3"), (0.1234, "0.123")]
)
def test_numbers_have_three_digits_or_so(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("true_share", [0.15, 0.5, 0.77, 0.99])
def test_bisection_ends_below_the_highest_rate_that_holds(true_share: float) -> None:
    found = highest_rate(lambda rate: rate <= true_share * 1000, 1000.0, 8)
    assert true_share * 1000 - 4 <= found <= true_share * 1000


def test_no_rate_is_found_where_none_holds() -> None:
    assert highest_rate(lambda _: False, 1000.0, 4) == 0
    assert highest_rate(lambda rate: rate <= 100, 1000.0, 1) == 100


def test_an_outcome_leaves_warm_up_out_and_tells_refused_from_lost() -> None:
    nan = math.nan
    intended = np.array([0.1, WARMUP_S + 0.1, WARMUP_S + 0.2, WARMUP_S + 0.3, WARMUP_S + 0.4])
    took = np.array([0.9, 0.010, 0.080, 0.002, nan])
    late = np.array([0, 0, 0.006, 0, 0])
    status = np.array([200, 200, 200, 429, 0], np.int32)
    samples = Samples(intended, intended + late, intended + took, status, ())
    seen = outcome([samples], 4.0, 2.0, slo_ms=50.0)
    assert (seen.requests, seen.failed, seen.lost) == (4, 1, 1)
    assert seen.good_per_s == 0.5
    assert seen.late == 0.25
    assert seen.refused_p99_ms == pytest.approx(2.0)
    assert 10 < seen.p50_ms < seen.p99_ms < 81


def test_usage_is_that_of_every_descendant_on_its_cores() -> None:
    # The grandchild leaves the session, as daemons do.
    script = (
        "import os, signal\n"
        "if os.fork() == 0:\n os.setsid()\n"
        "[0 for _ in range(10**6)]\nsignal.pause()"
    )
    process = start_session([sys.executable, "-c", script], CORES[:1], {"UNUSED": "1"})
    try:
        while len(tree(process.pid)) < 2:
            assert process.poll() is None
        used = usage(process.pid)
        assert used.processes == 2
        assert used.pss_mib > 1
        assert used.descriptors >= 6
        assert os.sched_getaffinity(process.pid) == set(CORES[:1])
        pids = tree(process.pid).keys()
    finally:
        end_session(process)
    assert process.returncode == -signal.SIGTERM
    assert not pids & living()
    assert os.sched_getaffinity(0) == set(CORES)


def test_cores_are_given_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="inside"), on_cores(CORES[:1]):
        raise ValueError("inside")
    assert os.sched_getaffinity(0) == set(CORES)


def test_served_answers_are_those_of_the_model(tmp_path: Path) -> None:
    work = WORKS["identity"]
    rows = np.random.default_rng(0).standard_normal((2, 16), dtype=np.float32)
    with Running(Tessera(), work, tmp_path, tmp_path / "server", CORES[:1]) as server:
        server.check(rows, rows)
        with pytest.raises(ServerFailed, match="differs"):
            server.check(rows, rows + np.float32(0.01))
        server.watch_idle()
        server.pause()
        server.resume()
        assert not server.warmed(Wire.HTTP)
        assert server.warmed(Wire.HTTP)
        pid = server.pid
    assert not tree(pid)


def test_a_server_that_ends_says_its_last_words(tmp_path: Path) -> None:
    class Broken(Tessera):
        def prepare(self, work: object, models: Path, directory: Path) -> None:
            (directory / "service.json").write_text("{}")

        def ready(self, work: object, directory: Path, ports: object) -> bool:
            return False

        def command(self, *arguments: object) -> object:
            command = super().command(*arguments)  # type: ignore[arg-type]
            return type(command)((sys.executable, "-c", "import sys; sys.exit('no such thing')"))

    server = Running(Broken(), WORKS["identity"], tmp_path, tmp_path / "server", CORES[:1])
    with pytest.raises(ServerFailed, match="no such thing"), server:
        pass


def test_the_loop_computes_what_the_network_says_and_counts(tmp_path: Path) -> None:
    work = WORKS["cnn"]
    export("cnn0", work.row_shape, tmp_path)
    rows = np.random.default_rng(0).standard_normal((2, *work.row_shape), dtype=np.float32)
    with (
        Loop(work, tmp_path, CORES[:1], tuned=True) as tuned,
        Loop(work, tmp_path, CORES[:1], tuned=False, naive=True) as naive,
    ):
        expected = load(tmp_path, work.networks)(rows)
        assert np.allclose(tuned.answer(rows), expected, 1e-4, 1e-5)
        assert np.allclose(naive.answer(rows), expected, 1e-4, 1e-5)
        assert tuned.rate(8, 0.05) > 0


def test_every_environment_is_pinned_by_version() -> None:
    for name, wanted in install.pins().items():
        assert wanted["packages"]
        if name != "apt":
            assert sum("==" in package for package in wanted["packages"]) >= 1


@pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}")
def test_a_quick_run_measures_tessera_and_names_who_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    argv = ["--quick", "--only", "identity", "--peers", "none", "--write", str(path)]
    assert main(argv) == 0
    written = json.loads(path.read_text())
    (cpu, *_) = written["lines"]
    assert cpu["tessera"] > 0
    assert cpu["peer"] is None
    assert "Triton: not chosen" in written["not_measured"]
    assert {row["server"] for row in written["rows"]} == {"Tessera"}
    said = capsys.readouterr().out
    assert "not run" in said
    assert "not measured" in said


@pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}")
@pytest.mark.skipif(len(CORES) < 4, reason="two servers and two generators take four cores")
def test_two_servers_on_shared_ports_are_measured_beside_one(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    argv = ["--quick", "--only", "dispatchers", "--peers", "none", "--write", str(path)]
    assert main(argv) == 0
    written = json.loads(path.read_text())
    figures = {(row["protocol"], row["servers"]): row["medians"] for row in written["rows"]}
    assert figures.keys() == {(wire.value, count) for wire in Wire for count in "12"}
    for (_, count), found in figures.items():
        assert found["rate_per_s"] > 0
        assert found["generators"] > 0
        assert (found["most_connections"] == 1) is (count == "1")
        assert (found["most_requests"] == 1) is (count == "1")
    judged = {line["what"]: line for line in written["lines"]}
    line = judged["identity, http, c=32 each: req/s of two servers on shared ports over one"]
    assert line["ratio"] == pytest.approx(
        figures["http", "2"]["rate_per_s"] / figures["http", "1"]["rate_per_s"]
    )


@pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}")
def test_servers_that_would_share_a_core_are_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with on_cores(CORES[:3]):
        assert main(["--quick", "--only", "dispatchers", "--peers", "none", f"--write={path}"]) == 0
    written = json.loads(path.read_text())
    assert written["rows"] == []
    assert any("four cores" in problem for problem in written["not_measured"])


def test_unknown_groups_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "nothing"])
    assert "unknown: nothing" in capsys.readouterr().err


def test_every_peer_reads_its_own_kind_of_answer() -> None:
    row = np.arange(16, dtype=np.float32)[None]
    work = WORKS["identity"]
    raw = Mosec().request(work, Wire.HTTP, row)
    assert np.array_equal(raw.read(raw.body), row)
    encoded = LitServe().request(work, Wire.HTTP, row)
    assert np.array_equal(encoded.read(encoded.body), row)
    listed = MLServer().request(work, Wire.HTTP, row)
    answer = json.dumps({"outputs": json.loads(listed.body)["inputs"]}).encode()
    assert np.array_equal(listed.read(answer), row)
    binary = Triton().request(work, Wire.HTTP, row)
    assert binary.raw_http.startswith(b"POST /v2/models/identity/infer HTTP/1.1\r\n")
    assert binary.raw_http.endswith(row.tobytes())


def test_a_peer_that_could_not_be_installed_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "ENVIRONMENTS", tmp_path)
    assert base.not_installed("mosec") == "not installed: make bench-peers"
    (tmp_path / "mosec.failed").write_text("not installed: no wheel\n")
    assert base.not_installed("mosec") == "not installed: no wheel"


def test_tritons_ensemble_is_three_models_and_their_mean(tmp_path: Path) -> None:
    Triton().prepare(WORKS["ensemble"], tmp_path / "models", tmp_path)
    repository = tmp_path / "repository"
    assert {path.name for path in repository.iterdir()} == {
        *("ensemble", "cnn0", "cnn1", "cnn2", "mean")
    }
    config = (repository / "ensemble" / "config.pbtxt").read_text()
    assert config.count("model_name:") == 4
    for name in ("cnn0", "mean"):
        compile((repository / name / "1" / "model.py").read_text(), name, "exec")
