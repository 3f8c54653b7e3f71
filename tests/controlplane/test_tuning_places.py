"""Where models may be tuned: on what nothing uses, beside what can bear it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import A100
from support.objects import cpu, gpu, instance, node, seen
from tessera_core.api import RuntimeNode
from tessera_core.api.measurements import ProfilingTask, TuningTask
from tessera_core.api.runtimenode import Health, MigMode, SliceStatus
from tessera_core.plan.decision import Assignment, Refusal, ServicePlan, Why
from tessera_core.plan.state import Slice
from tessera_core.plan.state_in import parse_slice
from tessera_operator.tuning_places import MOST_LATENCY, MOST_LOAD, crosses, free_spots, has_slack

CORES = ("cpu", "cpu-2")
WHOLE = (A100, "full")
SMALL = (A100, "1g.10gb")
S = "vision.s"


def assigned(piece: Slice, *, load: float = 10.0, rate: float = 100.0) -> Assignment:
    kind = "cpu" if piece.cores else A100
    return Assignment(S, "m", "n0", "cpu", piece, kind, 4, 1, rate, load, 5.0)


def service(latency_ms: float = 10.0, short: Refusal | None = None) -> ServicePlan:
    return ServicePlan(S, 10.0, 100.0, latency_ms, 50.0, 99.0, short)


def pieces(of: RuntimeNode, place: tuple[str, str], **settings: object) -> list[str]:
    values: dict = {"planned": (), "profiling": (), "reserved_cores": 0} | settings
    return [spot[2] for spot in free_spots(of, place, **values)]


def on_cores(*used: str, cores: int = 8, tuning: tuple[str, ...] = ()) -> RuntimeNode:
    made = node("n0", cpu(*(seen(instance(piece=piece)) for piece in used)), cores=cores)
    tasks = tuple(TuningTask(S, "m", "cpu", piece, ("a/b",), 0.1) for piece in tuning)
    return replace(made, spec=replace(made.spec, tuning=tasks))


def test_free_cores_are_cut_from_the_end_and_do_not_cross() -> None:
    assert pieces(on_cores(), CORES) == ["cpu-2@6", "cpu-2@4", "cpu-2@2", "cpu-2@0"]
    assert pieces(on_cores("cpu-1@5"), CORES) == ["cpu-2@6", "cpu-2@3", "cpu-2@1"]


def test_reserved_cores_and_those_of_the_next_plan_are_not_free() -> None:
    assert pieces(on_cores(), CORES, reserved_cores=3) == ["cpu-2@6", "cpu-2@4"]
    planned = [assigned(parse_slice("cpu-2@6"))]
    assert pieces(on_cores(), CORES, planned=planned) == ["cpu-2@4", "cpu-2@2", "cpu-2@0"]


def test_what_is_tuned_stays_where_it_is_while_that_is_free() -> None:
    assert pieces(on_cores(tuning=("cpu-2@3",)), CORES) == ["cpu-2@3", "cpu-2@6", "cpu-2@1"]
    assert "cpu-2@3" not in pieces(on_cores("cpu-1@4", tuning=("cpu-2@3",)), CORES)


def test_nothing_is_tuned_on_a_processor_that_measures() -> None:
    task = ProfilingTask(S, "m", "cpu", "cpu-1@0")
    assert pieces(on_cores(), CORES, profiling=[task]) == []


@given(st.sets(st.integers(0, 11)), st.integers(1, 4), st.integers(0, 3))
def test_no_free_cores_are_used_or_given_twice(used: set[int], size: int, reserved: int) -> None:
    of = on_cores(*(f"cpu-1@{core}" for core in used), cores=12)
    found = [
        parse_slice(each).cores
        for each in pieces(of, ("cpu", f"cpu-{size}"), reserved_cores=reserved)
    ]
    given_away = [core for cores in found for core in cores]
    assert len(set(given_away)) == len(given_away)
    assert set(given_away).isdisjoint(used | set(range(reserved)))
    assert all(len(cores) == size and max(cores) < 12 for cores in found)


def test_a_whole_gpu_is_free_when_nothing_runs_on_it() -> None:
    assert pieces(node("n0", gpu("GPU-1")), WHOLE) == ["full"]
    assert pieces(node("n0", gpu("GPU-1", seen(instance()))), WHOLE) == []
    assert pieces(node("n0", gpu("GPU-1", health=Health.UNHEALTHY)), WHOLE) == []


def test_a_gpu_that_still_runs_what_it_is_no_longer_told_is_not_free() -> None:
    assert pieces(node("n0", gpu("GPU-1", seen(instance())), told={}), WHOLE) == []


def test_slices_of_the_kind_that_nothing_runs_on_are_free() -> None:
    cut = tuple(SliceStatus(f"MIG-{start}", "1g.10gb", start) for start in (0, 1, 2))
    used = seen(instance(piece="1g.10gb@1"))
    of = node("n0", gpu("GPU-1", used, mig_mode=MigMode.ENABLED, slices=cut))
    assert pieces(of, SMALL) == ["1g.10gb@2", "1g.10gb@0"]
    assert pieces(of, WHOLE) == []


def test_a_gpu_that_is_cut_for_a_plan_is_left_alone() -> None:
    cut = (SliceStatus("MIG-0", "1g.10gb", 0),)
    of = node("n0", gpu("GPU-1", mig_mode=MigMode.ENABLED, slices=cut), told={"GPU-1": ()})
    device = replace(of.spec.devices[0], cut=True)
    of = replace(of, spec=replace(of.spec, devices=(device,)))
    assert pieces(of, SMALL) == []


REFUSED = Refusal(Why.INSUFFICIENT_CAPACITY, "")


@pytest.mark.parametrize(
    ("load", "latency_ms", "short", "bears"),
    [
        (10.0, 10.0, None, True),
        (100.0 * MOST_LOAD, 50.0 * MOST_LATENCY, None, True),
        (100.0 * MOST_LOAD + 1, 10.0, None, False),
        (10.0, 50.0 * MOST_LATENCY + 1, None, False),
        (10.0, 10.0, REFUSED, False),
    ],
)
def test_neighbours_bear_it_while_they_have_time_to_spare(
    load: float, latency_ms: float, short: Refusal | None, bears: bool
) -> None:
    beside = [assigned(parse_slice("cpu-2@0"), load=load)]
    assert has_slack(beside, {S: service(latency_ms, short)}) is bears


def test_a_neighbour_that_nobody_has_planned_has_no_slack() -> None:
    assert not has_slack([assigned(parse_slice("cpu-2@0"))], {})
    assert has_slack([], {})


def test_slices_cross_where_they_share_a_core_of_one_device() -> None:
    taken = [("n0", "cpu", "cpu-2@2")]
    assert crosses(("n0", "cpu", "cpu-2@3"), taken)
    assert not crosses(("n0", "cpu", "cpu-2@4"), taken)
    assert not crosses(("n1", "cpu", "cpu-2@2"), taken)
    assert crosses(("n0", "GPU-1", "full"), [("n0", "GPU-1", "full")])
