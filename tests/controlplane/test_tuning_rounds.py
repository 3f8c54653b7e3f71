"""Tuning by whole rounds of the operator: free GPUs try variants, the best one is measured, then rolled out node by node."""

from __future__ import annotations

from itertools import pairwise

import pytest

from support.memory_operator import PROFILE, SERVICE
from support.objects import service
from support.tuning_nodes import FAST, LOW, TuningNodes, outcome, tuned
from tessera_core.api import ModelProfile
from tessera_core.api.tuning import TuningPhase
from tessera_operator.tunable import AGAIN, CANCELLED

LOW_TOO = {"mode": "Auto", "precisions": ["fp32", "bf16"]}


def until_tuned(operator: TuningNodes) -> None:
    for _ in range(60):
        operator.rounds(1)
        if operator.tuning().phase is TuningPhase.TUNED:
            break
    operator.rounds(12)


def test_the_fastest_variant_is_measured_and_runs_where_the_model_serves() -> None:
    operator = tuned(2)
    until_tuned(operator)
    assert operator.variants() == {"n0": FAST}
    status = operator.tuning()
    assert (status.phase, status.promoted) == (TuningPhase.TUNED, FAST)
    assert status.done == status.total == len(status.outcomes)
    variants = [
        found
        for key, each in operator.cluster.objects.items()
        if key[0] == "ModelProfile" and (found := ModelProfile.from_dict(each)).spec.variant
    ]
    assert [each.spec.variant for each in variants] == [FAST]
    assert variants[0].status.rows
    (line,) = operator.nodes()[0].spec.services[0].members[0].batch_lines
    assert line.tau0_ms == pytest.approx(1.0)  # half of what the untuned model takes
    assert "Tuned" in operator.events()


def test_nothing_is_tried_twice_and_nothing_is_written_when_all_is_done() -> None:
    operator = tuned(4)
    until_tuned(operator)
    assert set(operator.tried.values()) == {1}
    calls = list(operator.cluster.calls)
    operator.rounds(10)
    assert operator.cluster.calls == calls


def test_the_candidates_of_a_model_are_spread_over_the_free_gpus() -> None:
    operator = tuned(4)
    until_tuned(operator)
    assert operator.at_once == 3  # n0 serves


def test_no_more_tasks_are_given_than_the_platform_allows() -> None:
    operator = tuned(5, tasks=2)
    until_tuned(operator)
    assert operator.at_once == 2


def test_nothing_is_tuned_where_nothing_is_free() -> None:
    operator = tuned(1)
    operator.rounds(12)
    assert operator.tuning().phase is TuningPhase.PENDING
    assert operator.tried == {}
    assert operator.variants() == {"n0": ""}


def test_nothing_is_tuned_for_a_service_that_does_not_ask() -> None:
    operator = tuned(2, tuning={"mode": "Off"})
    operator.rounds(12)
    assert operator.tasks() == {}
    assert ModelProfile.from_dict(operator.cluster.objects[PROFILE]).status.tuning is None


@pytest.mark.parametrize(("allowed", "variant"), [(LOW_TOO, LOW), ({"mode": "Auto"}, FAST)])
def test_lower_precision_is_used_where_the_service_allows_it(
    allowed: dict[str, object], variant: str
) -> None:
    operator = tuned(2, tuning=allowed)
    until_tuned(operator)
    assert operator.variants() == {"n0": variant}


def test_services_of_one_model_use_what_each_of_them_allows() -> None:
    operator = tuned(3, tuning=LOW_TOO)
    strict = service("t", "a", scaling={"minReplicas": 1}, tuning={"mode": "Auto"})
    operator.cluster.create(strict.to_dict())
    until_tuned(operator)
    told = {
        instance.service: instance.variant
        for node in operator.nodes()
        for device in node.spec.devices
        for instance in device.instances
    }
    assert told == {"vision.s": LOW, "vision.t": FAST}


def test_a_variant_is_told_to_one_node_after_the_other() -> None:
    operator = tuned(4, rps=8_000)
    told = [0]
    while told[-1] < 2:
        operator.rounds(1)
        told.append(list(operator.variants().values()).count(FAST))
        assert operator.now_s < 60
    assert max(after - before for before, after in pairwise(told)) == 1


def test_plans_count_with_a_variant_when_all_copies_run_it() -> None:
    operator = tuned(5, rps=8_000)
    operator.rounds(1)
    before = len(operator.running())
    until_tuned(operator)
    operator.rounds(20)
    assert len(operator.running()) < before
    assert set(operator.variants().values()) == {FAST}


def test_switching_tuning_off_takes_tasks_and_variants_back() -> None:
    operator = tuned(2)
    until_tuned(operator)
    operator.cluster.objects[SERVICE]["spec"]["tuning"] = {"mode": "Off"}
    operator.rounds(4)
    assert operator.variants() == {"n0": ""}
    assert operator.tasks() == {}
    assert operator.tuning().promoted == ""


def test_cancelling_keeps_what_was_found_and_resuming_tries_only_the_rest() -> None:
    operator = tuned(2, tuning=LOW_TOO)
    operator.rounds(4)
    assert operator.tasks()
    head = operator.cluster.objects[PROFILE]["metadata"]
    head["annotations"] = {CANCELLED: "true"}
    operator.rounds(4)
    assert operator.tasks() == {}
    status = operator.tuning()
    assert status.phase is TuningPhase.CANCELLED
    assert 0 < status.done < status.total
    operator.cluster.objects[PROFILE]["metadata"]["annotations"] = {}
    until_tuned(operator)
    assert operator.tuning().phase is TuningPhase.TUNED
    assert set(operator.tried.values()) == {1}


def test_a_plan_that_needs_the_gpu_takes_it_at_once_and_outcomes_stay() -> None:
    operator = tuned(2, tuning=LOW_TOO)
    operator.rounds(4)
    assert operator.tasks().keys() == {"n1"}
    done = operator.tuning().done
    spec = operator.cluster.objects[SERVICE]["spec"]
    spec["scaling"] = {"mode": "Fixed", "minReplicas": 2}
    operator.rounds(1)
    assert operator.tasks() == {}
    assert operator.variants().keys() == {"n0", "n1"}
    operator.rounds(2)
    assert operator.tuning().phase is TuningPhase.PENDING
    assert operator.tuning().done >= done > 0


def test_another_leader_goes_on_where_the_first_one_was() -> None:
    operator = tuned(2, tuning=LOW_TOO)
    operator.rounds(4)
    operator.restart()
    until_tuned(operator)
    assert operator.variants() == {"n0": LOW}
    assert set(operator.tried.values()) == {1}


def test_a_variant_that_a_node_falls_back_from_is_quarantined_and_the_next_one_is_used() -> None:
    operator = tuned(2, tuning=LOW_TOO)
    until_tuned(operator)
    operator.broken[LOW] = "3 batches in a row failed"
    operator.rounds(12)
    assert operator.variants() == {"n0": FAST}
    status = operator.tuning()
    assert [(each.variant, each.reason) for each in status.quarantined] == [
        (LOW, "3 batches in a row failed")
    ]
    assert "Quarantined" in operator.events()
    operator.broken.clear()
    operator.rounds(10)
    assert operator.variants() == {"n0": FAST}


def test_a_variant_that_cannot_be_measured_is_quarantined() -> None:
    operator = tuned(2)
    operator.unmeasurable.add(FAST)
    until_tuned(operator)
    assert operator.variants() == {"n0": ""}
    (held,) = operator.tuning().quarantined
    assert held.variant == FAST
    assert "out of memory" in held.reason


def test_an_annotation_has_everything_tried_again() -> None:
    operator = tuned(2)
    operator.broken[FAST] = "it ended"
    until_tuned(operator)
    assert operator.tuning().quarantined
    operator.broken.clear()
    operator.cluster.objects[PROFILE]["metadata"]["annotations"] = {AGAIN: "driver 600"}
    operator.rounds(2)
    until_tuned(operator)
    assert operator.tuning().again == "driver 600"
    assert operator.tuning().quarantined == ()
    assert operator.variants() == {"n0": FAST}


def test_a_variant_that_nobody_finds_faster_is_not_used() -> None:
    operator = tuned(2)
    operator.found = {FAST: outcome(FAST, 0.98)}
    until_tuned(operator)
    assert operator.variants() == {"n0": ""}
    assert operator.tuning().promoted == ""
