"""Real runs of control: what is decided without a server, and a whole run on one that serves a model without weights."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from bench.control_real import main, pictures
from bench.control_real.comparing import COMPARISON, SWEEP, Size, best_of, likely, swept
from bench.control_real.driving import Answers, Pilot, under_load
from bench.control_real.judged import ablations, ratios
from bench.control_real.places import GPU_TASKS, Place, Task, on_gpu, on_processor
from bench.control_real.policies import CLIPPER, COMPARED, DNNSCALER, STATIC, TESSERA, pilot
from bench.control_real.served import Measured, Server, serving, typical
from bench.control_real.stepping import LESS, RATE, STEADY, Span, back_s, step_rows, steps
from bench.harness import Row
from bench.models.networks import pixels
from bench.models.timed import TAU0_S
from bench.peers.base import WORKS
from bench.processes import living, tree
from rich.console import Console

from support.server import wait_until
from tessera_cli.loadgen import LoadFailed, Phase
from tessera_core.control.dnnscaler import Probe
from tessera_core.control.setpoint import Goal, Setpoint, Window
from tessera_core.control.steer import window
from tessera_core.perf import LatencyProfile, ProfileRow

CORES = tuple(sorted(os.sched_getaffinity(0)))
TIMED = Path(main.__file__).parents[1] / "models" / "timed.py"
TASK = Task(WORKS["identity"], 150.0, TIMED)
PLACE = replace(on_processor(CORES), tasks=(TASK,), caps=(1, 8), counts=(1, 2))


def measured(alpha_ms: float = 1.0, tau0_ms: float = 10.0, counts: tuple[int, ...] = (1, 2, 3, 4)):
    rows = [
        ProfileRow(batch, n, ms, ms, 1e3 * batch * n / ms, 1.0)
        for n in counts
        for batch in (1, 2, 4, 8, 16, 32, 64)
        for ms in [alpha_ms * batch + tau0_ms]
    ]
    profile = LatencyProfile(tuple(rows))
    probe = Probe(profile.throughput(1), profile.throughput(32), 8 * profile.throughput(1))
    return Measured(profile, probe, profile.service_ms(1), profile.service_ms(1))


def cell_of(batch: int, ms: float) -> ProfileRow:
    return ProfileRow(batch, 1, ms, 2 * ms, 1e3 * batch / ms, 1.0)


def place(most: Setpoint) -> Place:
    return replace(PLACE, caps=(1, most.cap), counts=(1, most.instances))


# What is decided


@pytest.mark.parametrize(
    ("cores", "dispatcher", "load", "instances"),
    [
        ((4,), (4,), (4,), (4,)),
        ((2, 3), (2,), (3,), (2, 3)),
        ((0, 1, 2, 3), (0,), (1,), (2, 3)),
    ],
)
def test_dispatcher_and_load_have_cores_of_their_own_where_there_are_enough(
    cores, dispatcher, load, instances
):
    found = on_processor(cores)
    assert (found.dispatcher, found.load, found.device.cores) == (dispatcher, load, instances)
    assert found.at_once == len(instances)
    assert found.most == max(found.grid, key=lambda each: each.cap * each.instances)


def test_a_gpu_has_the_half_of_the_cores_and_many_generators():
    found = on_gpu(range(16), "some GPU")
    assert (found.dispatcher, found.load) == (tuple(range(8)), tuple(range(8, 14)))
    assert found.at_once == 1
    assert {task.work.dtype for task in found.tasks} == {"u1"}


@pytest.mark.parametrize("task", GPU_TASKS[:1], ids=lambda task: task.name)
def test_networks_of_bytes_answer_with_numbers(task):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8))
    with torch.inference_mode():
        found = pixels(task.name, torch.float)(images)
    assert found.shape == (2, 1000)
    assert bool(torch.isfinite(found).all())


def test_searches_come_to_rest_on_what_was_measured():
    most, slo_ms = Setpoint(64, 4), 50.0
    seen = measured()
    clipper = pilot(CLIPPER, place(most), slo_ms, seen).setpoint
    assert 0.85 * slo_ms <= seen.profile.service_ms(clipper.cap) <= slo_ms
    assert pilot(DNNSCALER, place(most), slo_ms, seen).setpoint.instances == 1
    # Where rows cost much and instances nothing its probe turns these, as far as there is room.
    assert pilot(DNNSCALER, place(most), slo_ms, measured(5.0)).setpoint == Setpoint(1, 4)


def test_a_policy_of_ours_begins_without_a_search():
    assert pilot(TESSERA, place(Setpoint(64, 2)), 50.0, measured()).setpoint.instances == 1


def test_answers_count_when_they_were_wanted_and_in_time():
    answers = Answers(
        intended=np.array([0.1, 0.6, 0.7, 0.8, 1.2]),
        sent=np.array([0.1, 0.6, 0.71, 0.8, 1.2]),
        done=np.array([0.2, 0.61, 0.76, np.nan, 1.21]),
        good=np.array([True, True, True, False, True]),
    )
    found = answers.figures(0.5, 1.0, 50.0)
    assert found["offered_per_s"] == 6.0
    assert found["good_per_s"] == 2.0  # one took 60 ms, one was never answered
    assert found["share"] == pytest.approx(1 / 3)
    assert found["sent_late"] == pytest.approx(1 / 3)
    assert math.isnan(answers.figures(5.0, 6.0, 50.0)["share"])


def test_of_about_equal_settings_the_best_finishes_most():
    seen = measured()
    shares = {
        Setpoint(1, 1): 0.2,
        Setpoint(8, 2): 0.995,
        Setpoint(16, 1): 1.0,
        Setpoint(64, 2): 0.9,
    }
    sweep = {setpoint: {"share": share} for setpoint, share in shares.items()}
    assert best_of(sweep, seen) == Setpoint(8, 2)


@pytest.mark.parametrize(
    ("shares", "second"),
    [
        ([1.0, 1.0, 1.0], 0.0),
        ([0.2, 0.9, 1.0, 0.98], 2.0),
        ([1.0, 0.2, 1.0, 1.0], 2.0),  # one good second before a bad one is not enough
        ([1.0, 1.0, 0.2], math.nan),
    ],
)
def test_being_back_means_to_stay(shares, second):
    assert back_s(np.array(shares), 0.97) == pytest.approx(second, nan_ok=True)


def test_a_stall_in_one_pass_is_not_in_the_profile():
    quiet = (cell_of(1, 4.0), cell_of(2, 6.0), cell_of(4, 10.0))
    stalled = (cell_of(1, 70.0), cell_of(2, 90.0))  # and no further: that took longer than the SLO
    assert typical([quiet, stalled, quiet]) == quiet


def test_the_capacity_is_sought_first_where_half_of_the_slo_is_left():
    seen = measured(alpha_ms=1.0, tau0_ms=10.0, counts=(1,)).profile
    grid = [Setpoint(cap, 1) for cap in (1, 2, 4, 8, 16, 32, 64)]
    assert [each.cap for each in likely(seen, grid, 40.0)] == [8, 4, 2, 1, 16, 32, 64]
    # Where no batch leaves so much, those are tried that leave most, and not the largest.
    assert [each.cap for each in likely(seen, grid, 15.0)] == [1, 2, 4, 8, 16, 32, 64]


def goodput(policy: str, *rates: float) -> Row:
    labels = {"case": COMPARISON, "network": "deep", "load": "1.2", "policy": policy}
    return Row(labels, tuple({"good_per_s": rate, "share": rate / 120} for rate in rates))


def cell(setting: str, share: float) -> Row:
    labels = {"case": SWEEP, "network": "deep", "load": "1.2", "setting": setting}
    return Row(labels, ({"share": share},))


def test_what_misses_says_by_how_much():
    rows = [
        goodput(STATIC, 100, 100, 96),
        goodput(CLIPPER, 90, 90, 90),
        goodput(DNNSCALER, 80, 79, 1),
    ]
    (good,) = ratios([*rows, goodput(TESSERA, 91, 92, 70)])
    assert good.noise == pytest.approx(0.04)
    assert not good.missed
    (bad,) = ratios([*rows, goodput(TESSERA, 80, 80, 80)])
    assert bad.missed == [
        "deep at 1.2: 0.800 of best static, to reach 0.900",
        "deep at 1.2: 0.889 of clipper, to reach 0.960",
    ]


def test_one_knob_is_told_from_both():
    cells = [cell("1 x 1", 0.1), cell("8 x 1", 0.5), cell("1 x 4", 0.2), cell("8 x 4", 0.8)]
    knobs = [goodput("tessera, batching only", 40), goodput("tessera, multi-tenancy only", 20)]
    (found,) = ablations([*cells, *knobs, goodput(TESSERA, 80)])
    assert found.medians == pytest.approx(
        {
            "static_batching": 0.625,
            "static_instances": 0.25,
            "policy_batching": 0.5,
            "policy_instances": 0.25,
        }
    )


# On a real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(PLACE, TASK, tmp_path_factory.mktemp("served")) as running:
        yield running


def test_the_servers_own_profile_is_what_policies_know(server):
    found = server.measure(0.02, passes=2)
    assert {(row.batch, row.instances) for row in found.profile.rows} == {
        (1, 1),
        (8, 1),
        (1, 2),
        (8, 2),
    }
    assert found.profile.service_ms(1) >= 1e3 * TAU0_S
    assert found.probe.shared > 0
    assert found.probe_ms >= 1e3 * TAU0_S


def test_a_setting_holds_from_when_it_is_told(server):
    server.set(Setpoint(3, 1))
    before = server.told()
    asked = under_load(server, (Phase(300.0, 0.5),), 1, 0.25, lambda _: None)
    found = window(before, server.told(), frozenset({PLACE.device.id}))
    assert found is not None
    assert found.arrivals == len(asked.intended)
    assert sum(found.latencies) + found.lost == found.arrivals
    assert max(batch.rows for batch in found.batches[0]) <= 3


class OneMore:
    """Raises the cap by one in each decision."""

    wait_s = 0.25

    def __init__(self) -> None:
        self.setpoint = Setpoint(1, 1)
        self.windows: list[Window] = []

    def start(self, goal: Goal) -> OneMore:
        return self

    def step(self, state: OneMore, seen: Window, goal: Goal) -> OneMore:
        self.windows.append(seen)
        self.setpoint = Setpoint(self.setpoint.cap + 1, 1)
        return self


def test_a_policy_is_asked_while_the_load_goes_on_and_told_of_the_new_slo(server):
    rule = OneMore()
    each = Pilot(rule, Goal(400.0, PLACE.most))
    each.fly(server, (Phase(100.0, 1.1),), 2, [(0.5, Goal(200.0, PLACE.most))])
    assert len(rule.windows) >= 2
    assert sum(seen.arrivals for seen in rule.windows) > 0
    assert (
        max(batch.rows for seen in rule.windows for batch in seen.batches[0]) <= rule.setpoint.cap
    )
    assert each.goal.slo_ms == 200.0


def test_settings_take_turns_under_one_load(server):
    pair = (Setpoint(1, 1), Setpoint(8, 2))
    found = swept(server, pair, 100.0, 0.2, seed=3)
    assert set(found) == set(pair)
    assert all(seen["offered_per_s"] > 0 for seen in found.values())


def test_a_step_is_flown_by_the_best_setting_and_by_the_policy(server):
    sweep = {each: {"share": 1.0, "share_in_half": 1.0} for each in PLACE.grid}
    span = Span(0.3, 1.0)
    rate, slo = steps(TASK.slo_ms, {STEADY: sweep, LESS: sweep}, 150.0, span)
    assert rate.phases[1].rate_per_s == 4 * rate.phases[0].rate_per_s
    assert slo.slo_ms == TASK.slo_ms / 2
    found = list(step_rows(server, measured(), slo, span, seed=4))
    assert [row.labels["policy"] for row in found] == [STATIC, TESSERA]


def test_a_network_that_is_never_in_time_is_a_problem_of_its_own():
    too_soon = Task(WORKS["identity"], 2.0, TIMED)
    size = Size(rounds=1, turn_s=0.02, cell_s=0.02, passes=1)
    before = tree(os.getpid()).keys()
    rows, problems = main.measure(
        replace(PLACE, tasks=(too_soon,)), (STEADY,), size, Span(), Console(quiet=True)
    )
    assert {row.labels["case"] for row in rows} == {"profile"}
    (said,) = problems
    assert said.startswith("identity: no row was answered within 2 ms")
    assert tree(os.getpid()).keys() <= before


def test_a_server_ends_when_a_load_fails(tmp_path):
    pids: set[int] = set()

    def fail() -> None:
        with serving(PLACE, TASK, tmp_path) as failing:
            pids.update(tree(failing.pid))
            under_load(failing, (Phase(0.0, 1.0),), 1, 0.25, lambda _: None)

    with pytest.raises(LoadFailed):
        fail()
    assert len(pids) > 1
    assert not pids & living()


SERVES = """
import os
import sys
from dataclasses import replace
from pathlib import Path
from bench.control_real.places import Task, on_processor
from bench.control_real.served import serving
from bench.peers.base import WORKS

model, folder = map(Path, sys.argv[1:])
place = replace(on_processor(sorted(os.sched_getaffinity(0))[:1]), caps=(1,), counts=(1,))
with serving(place, Task(WORKS["identity"], 400.0, model), folder) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


def test_a_server_ends_when_the_bench_is_killed(tmp_path):
    bench = subprocess.Popen(
        (sys.executable, "-c", SERVES, str(TIMED), str(tmp_path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with bench:
        assert bench.stdout is not None
        pids = tree(int(bench.stdout.readline())).keys()
        bench.kill()
    assert bench.returncode == -signal.SIGKILL
    assert len(pids) > 1
    wait_until(lambda: not pids & living(), "the end of what the bench had started")


@pytest.mark.timeout(120)
def test_a_run_measures_every_case_and_draws_it(server, tmp_path):
    size = Size(rounds=1, seconds=0.2, settle_s=0.3, turn_s=0.02, cell_s=0.02)
    quiet = Console(quiet=True)
    rows = list(main.network_rows(server, (STEADY,), size, Span(), quiet))
    cases = {row.labels["case"] for row in rows}
    assert cases == {"profile", "capacity", SWEEP, COMPARISON}
    compared = {row.labels["policy"] for row in rows if row.labels["case"] == COMPARISON}
    assert compared == {STATIC, *COMPARED}
    assert len(ratios(rows)) == 1
    stepped = Row({"case": RATE, "network": "deep", "policy": TESSERA}, ({"back_s": math.nan},))
    pictures.draw([*rows, *ablations(rows), stepped], tmp_path / "control-real.json")
    drawn = sorted(tmp_path.glob("*.svg"))
    assert [each.stem.removeprefix("control-real-") for each in drawn] == [
        "ablation",
        "goodput",
        "steps",
        "sweep",
    ]
    assert all(ElementTree.parse(each).getroot().tag.endswith("svg") for each in drawn)
