"""When a correction that nodes report is recorded: once it has lasted, and only where it is of now."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import A100, digest
from support.memory_cluster import MemoryCluster
from support.objects import NOW, counters, gpu, instance, node, seen, served, service
from tessera_core.api import ModelProfile, RuntimeNode
from tessera_core.api.meta import ObjectMeta
from tessera_core.api.modelprofile import Drift, ModelProfileSpec, ModelProfileStatus
from tessera_core.api.runtimenode import Correction
from tessera_core.control.joint import MOST_ERROR
from tessera_core.gpu.devices import DeviceClass
from tessera_core.perf import LatencyProfile
from tessera_operator.cluster import Unreachable
from tessera_operator.config import Config
from tessera_operator.drift import CHANGED, DRIFTED, Drifts, Way, way_of
from tessera_operator.drifting import Drifting
from tessera_operator.kinds import key_of
from tessera_operator.variants import Use
from tessera_operator.write import Writer

S = service("s", "a")
REPORT_S = 30.0
LASTING_S = Config().drift_after_s
PLACE = DeviceClass(A100, "full", 108, 81_920)


def profile(ratio: float | None = None) -> ModelProfile:
    """A measurement on a whole A100, with what is recorded."""
    rows = LatencyProfile.from_fit(0.2, 2.0).rows
    drift = Drift(ratio, NOW, 1) if ratio is not None else None
    return ModelProfile(
        metadata=ObjectMeta(name="profile-a", namespace="vision", uid="u"),
        spec=ModelProfileSpec(digest("a"), PLACE, "torch 2.8.0"),
        status=ModelProfileStatus(rows=rows, drift=drift),
    )


def reporting(
    ratio: float, total: int, name: str = "n0", piece: str = "full", generation: int = 1
) -> RuntimeNode:
    """A node that runs the service, has answered ``total`` requests of it and says what its batches take."""
    said = counters(
        total=total, generation=generation, corrections=(Correction("a", A100, piece, ratio),)
    )
    copy = seen(instance("vision.s", "a"))
    made = node(name, gpu(f"GPU-{name}", copy), services=[served(S)])
    return replace(made, status=replace(made.status, services=(said,)))


class Loop:
    """Nodes that report every 30 s, and a record that follows."""

    def __init__(self, recorded: float | None = None, lasting_s: float = LASTING_S) -> None:
        self.drifts, self.recorded = Drifts(lasting_s), recorded
        self.changes: list[float | None] = []
        self._now_s, self._total = 0.0, 0

    def reports(
        self, seconds: float, *ratios: float, answering: bool = True, **said: str | int
    ) -> None:
        """For ``seconds``: one node for each of ``ratios``."""
        for _ in range(int(seconds / REPORT_S)):
            self._now_s += REPORT_S
            self._total += answering
            nodes = [
                reporting(ratio, self._total, f"n{index}", **said)  # type: ignore[arg-type]
                for index, ratio in enumerate(ratios)
            ]
            for change in self.drifts.note([profile(self.recorded)], nodes, self._now_s):
                self.recorded = change.ratio
                self.changes.append(change.ratio)
                self.drifts.written(change)


LONG_S = LASTING_S + 2 * REPORT_S
"""The first report is of unknown age, the second begins the time that has to last."""


@pytest.mark.parametrize(
    ("ratio", "recorded", "way"),
    [
        (1.0, None, None),
        (DRIFTED - 0.01, None, None),
        (1 / DRIFTED + 0.01, None, None),
        (DRIFTED + 0.01, None, Way.UP),
        (1 / DRIFTED - 0.01, None, Way.DOWN),
        (1.5, 1.5, None),
        (1.5 * CHANGED - 0.01, 1.5, None),
        (1.5 * CHANGED + 0.01, 1.5, Way.UP),
        (1.5 / CHANGED - 0.01, 1.5, Way.DOWN),
        # Between what ends a record and what begins one, nothing comes and goes.
        (1.12, 1.2, None),
        (1.12, None, None),
        (CHANGED - 0.01, 1.2, Way.BACK),
        (1 / CHANGED + 0.01, 0.8, Way.BACK),
        (0.5, 2.0, Way.DOWN),
    ],
)
def test_what_is_near_the_record_or_as_measured_changes_nothing(
    ratio: float, recorded: float | None, way: Way | None
) -> None:
    assert way_of(ratio, recorded) is way


def test_what_lasts_is_recorded_and_ends_when_it_is_over_for_as_long() -> None:
    loop = Loop()
    loop.reports(LONG_S - REPORT_S, 1.5)
    assert loop.changes == []
    loop.reports(REPORT_S, 1.5)
    assert loop.changes == [1.5]
    loop.reports(10 * LASTING_S, 1.5)
    assert loop.changes == [1.5]
    loop.reports(LASTING_S, 1.05)
    assert loop.changes == [1.5]
    loop.reports(REPORT_S, 1.05)
    assert loop.changes == [1.5, None]


@pytest.mark.parametrize("lasting_s", [REPORT_S / 2, REPORT_S, 600.0])
def test_how_long_it_has_to_last_is_a_setting(lasting_s: float) -> None:
    loop = Loop(lasting_s=lasting_s)
    whole = max(lasting_s, REPORT_S)  # one report is no time
    loop.reports(whole + REPORT_S, 1.5)
    assert loop.changes == []
    loop.reports(REPORT_S, 1.5)
    assert loop.changes == [1.5]


def test_a_minute_changes_nothing_however_often_it_comes() -> None:
    loop = Loop()
    for _ in range(20):
        loop.reports(60, 3.0)
        loop.reports(60, 1.0)
    assert loop.changes == []


def test_another_ratio_is_recorded_when_it_is_far_from_the_record_for_as_long() -> None:
    loop = Loop(1.5)
    loop.reports(10 * LASTING_S, 1.6)
    assert loop.changes == []
    loop.reports(LONG_S, 2.0)
    assert loop.changes == [2.0]


def test_what_is_above_and_then_below_the_record_has_not_lasted() -> None:
    loop = Loop(1.5)
    loop.reports(LASTING_S, 2.0)
    loop.reports(LASTING_S, 1.25)
    loop.reports(LASTING_S, 1.0)
    assert loop.changes == []


def test_the_record_is_the_median_of_the_time_and_of_the_nodes() -> None:
    loop = Loop()
    loop.reports(LONG_S - REPORT_S, 1.5)
    loop.reports(REPORT_S, 7.0)
    assert loop.changes == [1.5]
    loop = Loop()
    loop.reports(LONG_S, 1.0, 1.4, 6.0)
    assert loop.changes == [1.4]


def test_a_node_on_its_own_is_no_drift_of_the_profile() -> None:
    loop = Loop()
    loop.reports(10 * LASTING_S, 1.0, 1.02, 6.0)
    assert loop.changes == []


def test_what_was_reported_before_nobody_asked_any_more_does_not_last() -> None:
    loop = Loop()
    loop.reports(LASTING_S, 1.5)
    loop.reports(10 * LASTING_S, 1.5, answering=False)
    assert loop.changes == []


@pytest.mark.parametrize(
    "said",
    [{"piece": "3g.40gb"}, {"generation": 2}],
    ids=["on another slice", "of another version"],
)
def test_reports_of_something_else_do_not_count(said: dict[str, str | int]) -> None:
    loop = Loop()
    loop.reports(10 * LASTING_S, 1.5, **said)
    assert loop.changes == []


@pytest.mark.parametrize(("ratio", "recorded"), [(100.0, MOST_ERROR), (0.001, 1 / MOST_ERROR)])
def test_a_record_is_bounded(ratio: float, recorded: float) -> None:
    loop = Loop()
    loop.reports(LONG_S, ratio)
    assert loop.changes == [recorded]


@given(
    drift=st.floats(1.25, 6),
    errors=st.lists(st.floats(0.96, 1.04), min_size=40, max_size=40),
)
def test_noise_changes_no_record(drift: float, errors: list[float]) -> None:
    loop = Loop()
    for error in errors:
        loop.reports(REPORT_S, drift * error)
    assert len(loop.changes) == 1
    assert loop.changes[0] == pytest.approx(drift, rel=0.05)


@given(ratios=st.lists(st.floats(0.05, 20), max_size=60))
def test_records_come_no_faster_than_they_last_and_within_bounds(ratios: list[float]) -> None:
    loop = Loop()
    for ratio in ratios:
        loop.reports(REPORT_S, ratio)
    assert len(loop.changes) <= len(ratios) * REPORT_S / LASTING_S
    assert all(1 / MOST_ERROR <= each <= MOST_ERROR for each in loop.changes if each is not None)


def test_what_could_not_be_written_is_tried_again() -> None:
    cluster = MemoryCluster(profile().to_dict())
    drifting = Drifting(Writer(cluster, {}), LASTING_S)
    written = profile().to_dict()
    cluster.failing[key_of(written)] = Unreachable("no route")
    for count in range(10):
        if count == 8:
            cluster.failing.clear()
        nodes = [reporting(1.5, count)]
        now = f"2026-01-31T12:{count:02}:00Z"
        drifting.keep([profile()], nodes, {}, count * REPORT_S, now)
    status = ModelProfile.from_dict(cluster.objects[key_of(written)]).status
    assert status.drift == Drift(1.5, "2026-01-31T12:08:00Z", 1)
    assert status.rows == profile().status.rows
    (event,) = (each for key, each in cluster.objects.items() if key[0] == "Event")
    assert event["reason"] == "BatchesTakeLonger"
    assert event["type"] == "Warning"
    assert event["message"].startswith("Drifted is True: 1.5 times as long as measured, on 1 node")


VARIANT = "inductor/bf16/max-autotune"
IN_FORCE = {Use("vision.s", "a", digest("a"), (A100, "full")): VARIANT}


def running(told: str, runs: str, total: int) -> RuntimeNode:
    """A node as :func:`reporting` has it, whose copy was told ``told`` and of which ``runs`` answers."""
    made = reporting(1.5, total)
    wanted = replace(made.spec.devices[0].instances[0], variant=told)
    present = replace(made.status.devices[0].instances[0], variant=runs)
    spec = replace(made.spec, devices=(replace(made.spec.devices[0], instances=(wanted,)),))
    status = replace(made.status, devices=(replace(made.status.devices[0], instances=(present,)),))
    return replace(made, spec=spec, status=status)


@pytest.mark.parametrize(
    ("told", "runs", "uses", "drifted"),
    [
        ("", "", {}, [""]),
        (VARIANT, VARIANT, IN_FORCE, [VARIANT]),
        # What it says is over what it was told of the untuned model.
        (VARIANT, VARIANT, {}, []),
        (VARIANT, "", IN_FORCE, []),
    ],
)
def test_drift_is_of_the_variant_whose_times_nodes_were_told(
    told: str, runs: str, uses: dict[Use, str], drifted: list[str]
) -> None:
    untuned = profile()
    tuned = replace(untuned, spec=replace(untuned.spec, variant=VARIANT))
    drifts, changes = Drifts(LASTING_S), []
    for count in range(10):
        nodes = [running(told, runs, count)]
        for change in drifts.note([untuned, tuned], nodes, count * REPORT_S, uses):
            changes.append(change.profile.spec.variant)
            drifts.written(change)
    assert sorted(set(changes)) == drifted
