"""What is seen of a GPU decides whether it may be used, and when again: every Xid, every reading, every return."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.api.runtimenode import Health
from tessera_runtime.devices.health import (
    FORGET_S,
    HOT_S,
    MOST_FAULTS,
    MOST_PROBLEM,
    MOST_RETURN_S,
    RETURN_S,
    WARM_S,
    Action,
    Answer,
    Reading,
    Record,
    Slowdown,
    Verdict,
    Xid,
    back_s,
    look,
)
from tessera_runtime.devices.xids import APPLICATION, CURES, LINKED, Cure, cure_of

OLD = Reading(uncorrected=0)
"""A GPU before Ampere, or an old driver: no recovery action, no row remapping."""
NEW = Reading(action=Action.NONE, uncorrected=0, remap_failed=False)
LOOK_S = 10.0
NUMBER = re.compile(r"\d+")


class Gpu:
    """One GPU that is looked at every ten seconds."""

    def __init__(self, record: Record | None = None) -> None:
        self.now_s = 1000.0
        self.record = Record() if record is None else record

    def see(
        self,
        reading: Reading,
        *codes: int,
        instance: int | None = None,
        after_s: float = LOOK_S,
        cut_ordered: bool = False,
    ) -> Verdict:
        self.now_s += after_s
        xids = [Xid(code, instance) for code in codes]
        self.record, verdict = look(self.record, reading, xids, self.now_s, cut_ordered=cut_ordered)
        return verdict

    def seconds_until_healthy(self, reading: Reading, most_s: float = 2 * MOST_RETURN_S) -> float:
        begun_s = self.now_s
        while self.see(reading).health is not Health.HEALTHY:
            assert self.now_s - begun_s < most_s, "it does not return"
        return self.now_s - begun_s


def is_healthy(verdicts: Iterable[Verdict]) -> list[bool]:
    return [each.health is Health.HEALTHY for each in verdicts]


@pytest.mark.parametrize("code", range(1, 200))
@pytest.mark.parametrize("reading", [OLD, NEW], ids=["old driver", "new driver"])
def test_every_xid_has_the_consequence_of_its_cure(code: int, reading: Reading) -> None:
    gpu = Gpu()
    gpu.see(reading)
    verdict = gpu.see(reading, code)
    if reading is NEW and code in LINKED:
        assert verdict == Verdict()  # the driver asks for nothing
        return
    assert (verdict.health is Health.HEALTHY) == (cure_of(code) is Cure.NOTHING)
    match cure_of(code):
        case Cure.NOTHING:
            assert verdict.problem == ""
        case Cure.TIME:
            assert f"Xid {code}" in verdict.problem
            assert gpu.seconds_until_healthy(reading) == RETURN_S
        case Cure.RESET | Cure.REBOOT as cure:
            assert f"Xid {code}" in verdict.problem
            assert str(cure) in verdict.problem
            later = gpu.see(reading, after_s=MOST_RETURN_S + FORGET_S)
            assert later.health is Health.UNHEALTHY


def test_what_nvidias_device_plugin_takes_for_errors_of_applications_leaves_the_gpu_healthy() -> (
    None
):
    assert {13, 31, 43, 45, 68, 109} == APPLICATION
    assert {CURES[code] for code in APPLICATION} == {Cure.NOTHING}


def test_an_xid_that_no_catalogue_knows_is_waited_for() -> None:
    assert cure_of(max(CURES) + 1000) is Cure.TIME


@pytest.mark.parametrize(
    ("action", "well"),
    [
        (Action.NONE, True),
        (Action.PEERS, True),
        (Action.RESET, False),
        (Action.REBOOT, False),
        (Action.DRAIN_AND_RESET, False),
        (Action.OTHER, False),
    ],
)
def test_what_the_driver_asks_for_is_done_and_nothing_more(action: Action, well: bool) -> None:
    verdict = Gpu().see(replace(NEW, action=action))
    assert (verdict.health is Health.HEALTHY) == well
    assert (str(action) in verdict.problem) == (action is not Action.NONE)


def test_a_gpu_whose_driver_asks_for_nothing_any_more_returns_after_it_was_watched() -> None:
    gpu = Gpu()
    asking = replace(NEW, action=Action.RESET)
    assert gpu.see(asking, 95).health is Health.UNHEALTHY
    verdict = gpu.see(NEW)
    assert verdict.health is Health.UNHEALTHY
    assert (
        verdict.problem
        == f"watched until it was well for 300 s: the driver asks for {Action.RESET}"
    )
    assert gpu.seconds_until_healthy(NEW) == RETURN_S - LOOK_S
    assert gpu.see(NEW) == Verdict()


def test_counters_that_begin_anew_show_a_reset() -> None:
    gpu = Gpu()
    gpu.see(OLD)
    assert "uncorrected ECC" in gpu.see(replace(OLD, uncorrected=2)).problem
    assert gpu.seconds_until_healthy(OLD) == RETURN_S


def test_a_gpu_or_driver_that_was_away_was_reset_when_it_answers_again() -> None:
    for answer in (Answer.LOST, Answer.NO_DRIVER):
        gpu = Gpu()
        gpu.see(OLD, 119)
        gpu.see(Reading(answer, "gone"))
        gpu.see(Reading(answer, "gone"))
        assert gpu.seconds_until_healthy(OLD) <= RETURN_S + LOOK_S, answer


def test_only_a_restart_of_the_machine_cures_what_needs_one() -> None:
    gpu = Gpu()
    gpu.see(OLD, 79)
    gpu.see(Reading(Answer.LOST, "gone"))
    assert "needs a restart of the machine" in gpu.see(OLD, after_s=MOST_RETURN_S).problem


def test_uncorrected_errors_from_before_the_agent_count_only_where_nothing_contains_them() -> None:
    assert Gpu().see(Reading(uncorrected=1)).health is Health.UNHEALTHY
    assert Gpu().see(Reading(uncorrected=1, remap_failed=False)).health is Health.HEALTHY
    assert Gpu().see(replace(NEW, uncorrected=1)).health is Health.HEALTHY


def test_a_lost_gpu_is_unhealthy_at_once_and_an_error_when_it_is_repeated() -> None:
    assert Gpu().see(Reading(Answer.LOST, "GPU is lost")).problem == "is lost: GPU is lost"
    for answer in (Answer.ERROR, Answer.NO_DRIVER):
        gpu = Gpu()
        gpu.see(NEW)
        first, second = gpu.see(Reading(answer, "Timeout")), gpu.see(Reading(answer, "Timeout"))
        assert (first.health, second.health) == (Health.UNKNOWN, Health.UNHEALTHY)
        assert first.problem == second.problem == f"{answer.value}: Timeout"


def test_one_failing_call_moves_nothing() -> None:
    gpu = Gpu()
    found = [gpu.see(each).health for each in (NEW, Reading(Answer.ERROR, "Timeout"), NEW)]
    assert found == [Health.HEALTHY, Health.UNKNOWN, Health.HEALTHY]


def test_memory_that_waits_for_its_replacement_is_told_and_one_that_failed_is_not_used() -> None:
    pending = Gpu().see(replace(NEW, remap_pending=True))
    assert pending == Verdict(problem="the next reset replaces damaged memory")
    assert Gpu().see(replace(NEW, remap_failed=True)).health is Health.UNHEALTHY


def test_heat_is_told_when_it_lasts_and_takes_a_gpu_out_of_use_only_where_the_hardware_slows_it() -> (
    None
):
    for slowdown, ends_unhealthy in (
        (Slowdown.HARDWARE_THERMAL, True),
        (Slowdown.SOFTWARE_THERMAL, False),
    ):
        gpu, hot = Gpu(), replace(NEW, slowdowns=frozenset({slowdown}))
        assert gpu.see(hot) == Verdict()
        warm = gpu.see(hot, after_s=WARM_S)
        assert warm == Verdict(problem="its clocks are held down for its temperature")
        last = gpu.see(hot, after_s=HOT_S)
        assert (last.health is Health.UNHEALTHY) == ends_unhealthy
        assert ("cooling" in last.problem) == ends_unhealthy


@pytest.mark.parametrize("slowdown", [Slowdown.POWER_BRAKE, Slowdown.HARDWARE])
def test_clocks_that_are_held_down_for_other_reasons_are_no_problem_of_the_gpu(
    slowdown: Slowdown,
) -> None:
    gpu, slowed = Gpu(), replace(NEW, slowdowns=frozenset({slowdown}))
    assert [gpu.see(slowed, after_s=HOT_S) for _ in range(4)] == [Verdict()] * 4


def test_heat_that_comes_and_goes_changes_nothing() -> None:
    gpu, hot = Gpu(), replace(NEW, slowdowns=frozenset({Slowdown.HARDWARE_THERMAL}))
    assert {gpu.see(hot if turn % 2 else NEW, after_s=WARM_S - 1) for turn in range(40)} == {
        Verdict()
    }


def test_each_further_fall_within_a_day_takes_twice_as_long() -> None:
    gpu = Gpu()
    taken = []
    for _ in range(8):
        gpu.see(NEW, 167)
        taken.append(gpu.seconds_until_healthy(NEW))
        gpu.see(NEW, after_s=60)
    assert taken == [back_s(fall) for fall in range(1, 9)]
    assert taken[:3] == [RETURN_S, 2 * RETURN_S, 4 * RETURN_S]
    assert taken[-1] == MOST_RETURN_S


def test_a_gpu_that_falls_whenever_it_is_used_moves_models_about_ten_times_a_day() -> None:
    gpu = Gpu()
    verdict, falls = gpu.see(NEW), 0
    while gpu.now_s < 1000 + FORGET_S:
        falls += verdict.health is Health.HEALTHY
        verdict = gpu.see(NEW, *([167] if verdict.health is Health.HEALTHY else []))
    assert 8 <= falls <= 12


SEEN = st.builds(
    Reading,
    answer=st.sampled_from(Answer),
    error=st.sampled_from(["", "Timeout", "x" * 300]),
    action=st.none() | st.sampled_from(Action),
    uncorrected=st.none() | st.integers(0, 3),
    remap_failed=st.none() | st.booleans(),
    remap_pending=st.booleans(),
    slowdowns=st.frozensets(st.sampled_from(Slowdown)),
    slices=st.none() | st.frozensets(st.sampled_from(["MIG-a", "MIG-b", "MIG-c"])),
)
LOOKS = st.lists(
    st.tuples(
        SEEN,
        st.lists(st.sampled_from([13, 48, 79, 94, 95, 119, 154, 167, 999]), max_size=3),
        st.sampled_from([LOOK_S, WARM_S, RETURN_S, MOST_RETURN_S]),
        st.booleans(),
    ),
    max_size=20,
)


@given(LOOKS)
def test_whatever_was_seen_what_is_told_fits_and_a_reset_mends_all_but_what_needs_more(
    looks: list[tuple[Reading, list[int], float, bool]],
) -> None:
    gpu = Gpu()
    for reading, codes, after_s, ordered in looks:
        verdict = gpu.see(reading, *codes, after_s=after_s, cut_ordered=ordered)
        assert len(verdict.problem) <= MOST_PROBLEM
        assert len(gpu.record.faults) <= MOST_FAULTS
        assert verdict.problem or verdict.health is not Health.UNHEALTHY
        assert verdict.health is Health.UNHEALTHY or gpu.record.unwell_s is None
        text = msgspec.json.encode(gpu.record)
        assert msgspec.json.decode(text, type=Record) == gpu.record
    gpu.see(Reading(Answer.LOST))
    gpu.see(NEW, cut_ordered=True)
    if any(fault.cure is Cure.REBOOT for fault in gpu.record.faults):
        assert gpu.see(NEW, after_s=FORGET_S).health is Health.UNHEALTHY
    else:
        assert gpu.see(NEW, after_s=MOST_RETURN_S) == Verdict()


def test_a_fall_is_forgotten_after_a_day() -> None:
    gpu = Gpu()
    gpu.see(NEW, 167)
    gpu.seconds_until_healthy(NEW)
    gpu.see(NEW, after_s=FORGET_S)
    gpu.see(NEW, 167)
    assert gpu.seconds_until_healthy(NEW) == RETURN_S


def test_what_goes_on_while_it_is_watched_begins_the_watch_anew_and_is_one_fall() -> None:
    gpu = Gpu()
    for _ in range(5):
        assert gpu.see(NEW, 167, after_s=RETURN_S - 1).health is Health.UNHEALTHY
    assert gpu.seconds_until_healthy(NEW) == RETURN_S


def test_an_xid_of_a_mig_instance_is_one_of_the_gpu_and_names_the_instance() -> None:
    verdict = Gpu().see(OLD, 95, instance=3)
    assert verdict.health is Health.UNHEALTHY
    assert "Xid 95 of MIG instance 3" in verdict.problem


def test_a_mig_instance_that_goes_without_an_order_is_missed_and_the_gpu_stays() -> None:
    gpu = Gpu()
    both, one = (
        replace(NEW, slices=frozenset(names)) for names in (("MIG-a", "MIG-b"), ("MIG-a",))
    )
    assert gpu.see(both) == Verdict()
    missing = gpu.see(one)
    assert missing.health is Health.HEALTHY
    assert missing.gone == {"MIG-b"}
    assert missing.problem == "MIG instance MIG-b is gone, and nobody ordered that"
    assert gpu.see(both) == Verdict()


def test_mig_instances_come_and_go_while_a_cut_is_ordered() -> None:
    gpu = Gpu()
    gpu.see(replace(NEW, slices=frozenset({"MIG-a"})))
    other = replace(NEW, slices=frozenset({"MIG-b"}))
    assert gpu.see(other, cut_ordered=True) == gpu.see(other) == Verdict()


def test_mig_instances_are_no_longer_missed_when_others_are_there() -> None:
    gpu = Gpu()
    first, none, other = (
        replace(NEW, slices=frozenset(names)) for names in (("MIG-a",), (), ("MIG-b",))
    )
    gpu.see(first)
    assert gpu.see(none).gone == {"MIG-a"}
    assert gpu.see(other) == gpu.see(other) == Verdict()


def test_nothing_is_said_of_mig_instances_while_the_gpu_does_not_answer() -> None:
    gpu = Gpu()
    cut = replace(NEW, slices=frozenset({"MIG-a"}))
    gpu.see(cut)
    assert gpu.see(Reading(Answer.LOST)).gone == frozenset()
    assert gpu.see(cut).gone == frozenset()


def test_a_storm_of_xids_is_bounded() -> None:
    gpu = Gpu()
    for instance in range(100):
        verdict = gpu.see(OLD, 95, instance=instance)
        assert len(verdict.problem) <= MOST_PROBLEM
    assert len(gpu.record.faults) == MOST_FAULTS


def test_what_is_remembered_outlives_being_written_down() -> None:
    gpu = Gpu()
    gpu.see(replace(OLD, slowdowns=frozenset({Slowdown.HARDWARE_THERMAL})), 95, 79)
    text = msgspec.json.encode(gpu.record)
    assert msgspec.json.decode(text, type=Record) == gpu.record


def test_looking_twice_at_the_same_says_the_same() -> None:
    for reading in (NEW, OLD, replace(NEW, remap_failed=True), replace(NEW, action=Action.RESET)):
        gpu = Gpu()
        assert gpu.see(reading) == gpu.see(reading)
    assert is_healthy([Gpu().see(NEW), Gpu().see(OLD)]) == [True, True]


def test_the_page_about_health_names_the_xids_that_take_a_gpu_out_of_use() -> None:
    page = (Path(__file__).parents[2] / "docs" / "health.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| Xid ")]
    named = {
        int(code) for what, health in rows if "Unhealthy" in health for code in NUMBER.findall(what)
    }
    assert named == {code for code in CURES if cure_of(code) is not Cure.NOTHING}
    (linked,) = re.findall(r"linked to \(([^)]*)\)", page)
    first, last = map(int, re.findall(r"(\d+) to (\d+)", linked)[0])
    assert {*map(int, NUMBER.findall(linked)), *range(first, last)} == LINKED
