"""Measuring on slices that are cut for it, while operator, agents and partitioners are killed: it ends all the same."""

from __future__ import annotations

from functools import cache

import pytest

from support.cutting_nodes import MODEL
from support.measuring_nodes import SLICES, MeasuringNodes, fresh
from tessera_core.gpu.covers import covers

TICKS = 44
"""That it takes until all is measured and served, and a bit more."""
SHORT_S, LONG_S = 4.0, 60.0
"""For how long a process is away: less and more than it takes a node to count as lost."""
CUTS = len(covers(MODEL, SLICES))


@cache
def undisturbed() -> tuple[MeasuringNodes, ...]:
    """Two services whose models nobody has measured, on whole GPUs, after each tick."""
    cluster = fresh("a", "b")
    found = [cluster.twin()]
    for _ in range(TICKS):
        cluster.tick()
        found.append(cluster.twin())
    return tuple(found)


def after(tick: int) -> MeasuringNodes:
    """The case after so many ticks, under another leader."""
    cluster = undisturbed()[tick].twin()
    cluster.watch()
    return cluster


def assert_all_was_measured_and_is_served(cluster: MeasuringNodes) -> None:
    """Nobody lost a copy, all plans are over, and no more was cut than measuring and serving need."""
    assert cluster.known() == {(name, kind) for name in "ab" for kind in ("full", *SLICES)}
    assert cluster.ready() == {("vision.a", "a"): 1, ("vision.b", "b"): 1}
    assert len(cluster.used()) == 1
    assert min(cluster.fewest.values(), default=1) >= 1
    plans = cluster.plan_objects()
    scouting = [plan for plan in plans if any(", to measure " in each for each in plan.spec.diff)]
    assert len(scouting) <= CUTS
    assert all(cut.ended_at and not cut.problem for plan in plans for cut in plan.status.cuts)
    settled = [{each.type: each.status.value for each in plan.status.conditions} for plan in plans]
    assert all("True" in (each["Applied"], each["Superseded"]) for each in settled)


def test_undisturbed_it_is_done_within_the_ticks_of_the_matrix() -> None:
    done = undisturbed()[-1]
    assert_all_was_measured_and_is_served(done)
    assert done.gpus == undisturbed()[-2].gpus


@pytest.mark.parametrize("tick", range(TICKS))
def test_whoever_leads_goes_on_with_the_cuts_and_measures_nothing_twice(tick: int) -> None:
    cluster = after(tick)
    cluster.settle()
    assert_all_was_measured_and_is_served(cluster)
    assert set(cluster.tried.values()) == {1}


@pytest.mark.parametrize("tick", range(0, TICKS, 3))
@pytest.mark.parametrize("who", ["agent", "partitioner"])
def test_whoever_is_killed_on_the_node_all_is_measured_in_the_end(who: str, tick: int) -> None:
    cluster = after(tick)
    for name in ("n0", "n1", "n2"):
        cluster.kill(who, name, SHORT_S)
    cluster.settle()
    assert_all_was_measured_and_is_served(cluster)


@pytest.mark.parametrize("tick", range(0, TICKS, 6))
@pytest.mark.parametrize("name", ["n0", "n2"])
def test_a_node_that_nobody_hears_of_for_long_ends_nothing(name: str, tick: int) -> None:
    cluster = after(tick)
    cluster.kill("agent", name, LONG_S)
    cluster.kill("partitioner", name, LONG_S)
    cluster.settle(400)
    assert cluster.known() == {(name, kind) for name in "ab" for kind in ("full", *SLICES)}
    assert cluster.ready() == {("vision.a", "a"): 1, ("vision.b", "b"): 1}
