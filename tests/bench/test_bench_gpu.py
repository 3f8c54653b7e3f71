"""The GPU's rows, on a processor: the same programs, questions and rows, all but CUDA's own calls."""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.dataplane import gpu, gpu_lanes, mps
from bench.dataplane.children import Child, ChildFailed
from bench.dataplane.closed import Bench, examples
from bench.dataplane.gpu import Place, chosen_cap, close, halves, loop_rate
from bench.dataplane.graphs import HostSlot, parts_ms, rows_per_s
from bench.dataplane.main import main
from bench.dataplane.targets import Line, lines
from bench.harness import Row
from bench.models.networks import network
from bench.peers.base import WORKS
from bench.processes import living

from tessera_runtime import mps as installed

CORES = tuple(sorted(os.sched_getaffinity(0)))
WORK = WORKS["bottlenecks"]
PLACE = Place("cpu", "a processor", *halves(CORES))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each network is exported once."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def bench(models: Path, tmp_path: Path) -> Bench:
    return Bench(
        models=models,
        directory=tmp_path / "run",
        server_cores=CORES[:1],
        load_core=CORES[-1],
        open_cores=CORES[-1:],
        cores=CORES,
        dispatcher_core=None,
        peers=(),
        rounds=1,
        seconds=0.2,
        quick=True,
        profile=False,
        says=lambda _: None,
    )


def gpu_lines(rows: list[Row]) -> list[Line]:
    return [line for line in lines(rows) if "GPU" in line.what or "over 1 lane" in line.what]


# What is decided


def loop(cap: int, slots: int, rate: float) -> Row:
    figures = {"rate_per_s": rate, "batch_ms": cap * slots / rate * 1e3}
    return Row({"server": "loop", "cap": str(cap), "slots": str(slots)}, (figures,))


def test_the_cap_is_the_largest_whose_batch_takes_a_third_of_the_bound():
    rows = [loop(8, 1, 4000.0), loop(16, 1, 5000.0), loop(32, 1, 6000.0), loop(16, 2, 5500.0)]
    assert chosen_cap(rows) == 16
    assert loop_rate(rows, 16) == 5500.0
    assert chosen_cap([loop(8, 1, 10.0), loop(16, 1, 10.0)]) == 8


@pytest.mark.parametrize(
    ("cores", "server", "load"),
    [((3,), (3,), (3,)), ((0, 1), (0,), (1,)), (range(5), (0, 1), (2, 3, 4))],
)
def test_server_and_load_share_the_cores(cores, server, load):
    assert halves(cores) == (server, load)


def test_answers_must_be_near_and_each_its_own():
    right = np.eye(3, 8, dtype=np.float32)
    assert close(right * np.float32(1.04), right)
    assert not close(right * np.float32(1.06), right)
    assert not close(right[[1, 0, 2]], right)
    assert not close(np.full_like(right, np.nan), right)
    assert not close(right[:2], right)


def test_stages_are_read_from_metrics_and_told_per_batch():
    page = """
tessera_stage_seconds_bucket{member="a",stage="inference",le="0.1"} 4.0
tessera_stage_seconds_count{member="a",service="s",stage="inference"} 4.0
tessera_stage_seconds_sum{member="a",service="s",stage="inference"} 0.008
tessera_stage_seconds_count{member="a",service="s",stage="queue"} 20.0
tessera_stage_seconds_sum{member="a",service="s",stage="queue"} 1.2e-1
"""
    found = gpu.per_batch({}, gpu.parse_stages(page) | {"rows": 20.0})
    assert found["rows_per_batch"] == 5
    assert found["inference_ms"] == pytest.approx(2)
    assert found["queue_ms"] == pytest.approx(6)
    assert math.isnan(found["preprocess_ms"])
    assert math.isnan(gpu.per_batch(found, found | {"rows": 0.0})["rows_per_batch"])


def test_lines_hold_the_better_count_of_instances_and_lanes_against_one():
    def served(count: str, rate: float) -> Row:
        labels = {"group": "gpu", "work": "resnet50", "server": "Tessera", "instances": count}
        return Row(labels, ({"rate_per_s": rate, "loop_per_s": 1000.0},))

    def lanes(where: str, count: str, rate: float) -> Row:
        labels = {"group": "gpu", "work": "resnet18", "batch": "4", "in": where, "lanes": count}
        return Row(labels, ({"rate_per_s": rate},))

    no_mps = Row({"group": "gpu", "in": "4 processes, MPS", "problem": "not installed"}, ())
    rows = [served("1", 600.0), served("2", 700.0), no_mps]
    rows += [lanes("1 process", "1", 100.0), lanes("1 process", "4", 160.0)]
    rows += [lanes("4 processes", "4", 90.0)]
    poisson, several, processes, under_mps = gpu_lines(rows)
    assert (poisson.ratio, poisson.verdict) == (0.7, "reached")
    assert (several.ratio, several.verdict) == (1.6, "aim reached")
    assert (processes.ratio, processes.verdict) == (0.9, "reported")
    assert (under_mps.verdict, under_mps.note) == ("not measured", "no MPS")


# The network


def test_the_network_takes_bytes_and_tells_images_apart():
    net, rows = network("bottlenecks"), torch.from_numpy(examples(WORK))
    with torch.inference_mode():
        found = net(rows).numpy()
        again = net(rows[:1]).numpy()
    assert rows.dtype == torch.uint8
    assert found.dtype == np.float32
    assert np.allclose(found[:1], again, 1e-4, 1e-4)
    assert close(found, gpu.reference(WORK, rows.numpy()))
    assert close(network("bottlenecks").half()(rows).detach().numpy(), found)


# The programs


def test_steps_of_a_batch_are_timed_and_its_answer_is_the_models():
    net, rows = network("bottlenecks"), torch.from_numpy(examples(WORK))
    with torch.inference_mode():
        slots = [HostSlot(net, rows), HostSlot(net, rows)]
        for slot in slots:
            slot.given.copy_(rows)
        assert rows_per_s(slots, 0.05) > 0
        found = parts_ms(slots[0], 3)
        assert np.allclose(slots[1].answer.numpy(), net(rows).numpy(), 1e-4, 1e-4)
    assert found.keys() == {"copy_in_ms", "kernel_ms", "copy_out_ms", "host_ms"}
    assert found["kernel_ms"] > found["copy_in_ms"] > 0


def test_what_a_program_cannot_do_is_told(tmp_path: Path):
    with Child("bench.dataplane.graphs", [WORK.name, str(tmp_path), "cpu"], CORES[:1]) as child:
        for _ in range(2):
            with pytest.raises(ChildFailed, match=r"graphs: .*bottlenecks\.pt2"):
                child.ask(batch=1, slots=1, seconds=0.1)
    with (
        Child("bench.dataplane.lanes", [str(tmp_path)], CORES[:1]) as child,
        pytest.raises(ChildFailed, match="lanes ended with 1"),
    ):
        child.ask(work="cnn", batch=1, open=1)


def test_one_that_fails_leaves_no_answer_behind_for_the_next_question(bench: Bench):
    bench.export(WORKS["cnn"])
    there, nowhere = [str(bench.models), "cpu"], [str(bench.directory), "cpu"]
    with ExitStack() as stack:
        group = [
            stack.enter_context(Child("bench.dataplane.lanes", arguments, CORES[:1]))
            for arguments in (nowhere, there)
        ]
        with pytest.raises(ChildFailed):
            gpu_lanes.all_answer(group, work="cnn", batch=2, open=1)
        (answer,) = gpu_lanes.all_answer(group[1:], work="cnn", batch=2, runs=1)
        assert answer["run_ms"] > 0


# The groups


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_served_network_is_measured_beside_its_loop(bench: Bench):
    rows = gpu.served_rows(bench, PLACE, WORK, caps=(2, 4), instances=(2,))
    assert bench.problems == []
    loops = [row for row in rows if row.labels["server"] == "loop"]
    assert {(row.labels["cap"], row.labels["slots"]) for row in loops} == {
        *(("2", "1"), ("2", "2"), ("4", "1"), ("4", "2"))
    }
    (alone,) = (row for row in rows if row.labels["server"] == "a batch alone")
    assert alone.medians["lane_ms"] > 0
    (served,) = (row for row in rows if row.labels["server"] == "Tessera")
    assert served.labels["instances"] == "2"
    assert "workers" not in served.labels
    assert served.labels["cap"] == str(chosen_cap(rows))
    assert served.medians["loop_per_s"] == loop_rate(rows, chosen_cap(rows))
    assert 1 <= served.medians["rows_per_batch"] <= chosen_cap(rows)
    assert served.medians["inference_ms"] > 0


def test_a_server_with_other_answers_is_not_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    right = gpu.reference
    monkeypatch.setattr(gpu, "reference", lambda work, rows: right(work, rows) * np.float32(1.3))
    rows = gpu.served_rows(bench, PLACE, WORK, caps=(2,))
    assert rows == []
    assert bench.problems == ["gpu: the loop's answers differ from single precision's"]


def test_without_mps_its_row_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(installed, "ALSO_IN", ())
    (without,) = gpu_lanes.lane_rows(bench, PLACE, ())
    assert without.labels["in"] == "4 processes, MPS"
    assert without.labels["problem"] == "nvidia-cuda-mps-control is not installed"
    assert bench.problems == ["gpu: 4 processes, MPS: nvidia-cuda-mps-control is not installed"]


# MPS, by a program that stands in for NVIDIA's

_DAEMON = """#!/bin/sh
pid="$CUDA_MPS_PIPE_DIRECTORY/pid"
if [ "$1" = -f ]; then
  [ -e "$REFUSES" ] && { echo "cannot start"; exit 3; }
  echo $$ > "$pid"
  exec sleep 1000
fi
read -r command rest
[ -e "$pid" ] || exit 1
case "$command" in
  get_server_list) echo 4711 ;;
  quit) kill "$(cat "$pid")"; rm "$pid" ;;
esac
"""


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its refusal to start: make this file."""
    program = tmp_path / "bin" / installed.CONTROL
    program.parent.mkdir()
    program.write_text(_DAEMON)
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("REFUSES", str(tmp_path / "refuses"))
    return tmp_path / "refuses"


def test_the_daemon_lives_as_long_as_its_block(tmp_path: Path, daemon: Path):
    with mps.mps(tmp_path / "mps", CORES[:1]) as clients:
        pid = int((tmp_path / "mps" / "pipes" / "pid").read_text())
        assert clients == {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "mps" / "pipes")}
        assert mps.servers(clients) == ("4711",)
        assert pid in living()
    assert pid not in living()
    assert mps.servers(clients) is None


def test_a_daemon_that_does_not_start_says_why(tmp_path: Path, daemon: Path):
    daemon.touch()
    with pytest.raises(mps.MpsFailed, match="cannot start"), mps.mps(tmp_path / "mps", CORES[:1]):
        pass


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_lanes_are_measured_in_one_process_in_several_and_under_mps(bench: Bench, daemon: Path):
    everywhere = replace(PLACE, server_cores=CORES)  # nine processes import torch
    rows = gpu_lanes.lane_rows(bench, everywhere, (("cnn", 2),))
    assert bench.problems == []
    rates = {(row.labels["in"], row.labels["lanes"]): row.medians["rate_per_s"] for row in rows}
    assert rates.keys() == {
        *(("1 process", "1"), ("1 process", "4")),
        *(("4 processes", "4"), ("4 processes, MPS", "4")),
    }
    assert all(rate > 0 for rate in rates.values())


# Without a GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_table_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "out.json"
    argv = ["--quick", "--only", "gpu", "--peers", "none", "--write", str(path)]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "no GPU found" in said
    written = json.loads(path.read_text())
    (row,) = written["rows"]
    assert row["problem"].startswith("no GPU found: torch")
    own = [line for line in written["lines"] if "no GPU found" in line["note"]]
    assert len(own) == 4
    assert {(line["tessera"], line["verdict"]) for line in own} == {(None, "not measured")}
