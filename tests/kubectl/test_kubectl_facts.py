"""What a dry run is made from: the objects of the cluster as the operator takes them, and a file that replays them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera_cli.files import read_state
from tessera_cli.kubectl.explain import answers, concerning, lacks
from tessera_cli.kubectl.facts import AWAKE, Reported, config_of, decide, lost_nodes
from tessera_cli.kubectl.objects import Failed
from tessera_cli.kubectl.plan import dry_run_data, save
from tessera_cli.kubectl.service_page import Place
from tessera_core.api import ModelService
from tessera_core.plan import Policy, diff, plan
from tessera_core.plan.state_in import state_from_dict
from tessera_core.plan.steps import steps_to
from tessera_operator.config import Config

CONFIG = Config()
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
Object = dict[str, Any]


def lease(node: str, seconds_ago: float) -> Object:
    renewed = (NOW - timedelta(seconds=seconds_ago)).isoformat().replace("+00:00", "Z")
    return {"metadata": {"name": f"tessera-node-{node}"}, "spec": {"renewTime": renewed}}


def test_settings_come_from_the_operators_config_map() -> None:
    assert config_of({}) == Config()
    text = 'headroom: "1.5"\noverhead: 2ms\nreservedCores: 1\nlostAfter: 1m\nofLater: 3\n'
    config = config_of({"operator.yaml": text})
    assert config.policy == Policy(headroom=1.5, overhead_ms=2.0, reserved_cores=1)
    assert config.lost_after_s == 60


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("headroom: 1.5", r"operator\.yaml\.headroom: found 1\.5, allowed: a decimal string"),
        ("- headroom", r"operator\.yaml: found a list of 1 items, allowed: a mapping"),
        ("headroom: [", r"operator\.yaml is not YAML"),
    ],
)
def test_settings_that_make_no_sense_are_named(text: str, said: str) -> None:
    with pytest.raises(Failed, match=f"the ConfigMap tessera-operator: {said}"):
        config_of({"operator.yaml": text})


def test_a_node_is_lost_when_its_lease_is_old() -> None:
    others = [
        {"metadata": {"name": "tessera-operator"}, "spec": {"renewTime": "2026-01-01T00:00:00Z"}},
        {"metadata": {"name": "tessera-node-new"}, "spec": {}},
    ]
    leases = [lease("here", 39), lease("gone", 41), *others]
    assert lost_nodes(leases, NOW, 40) == {"gone"}


@pytest.mark.parametrize(
    ("document", "planned"),
    [
        # Nobody has measured: the hint.
        ({}, 600.0),
        # What is measured replaces the hint, except for a service that is new.
        ({"slo": {"total": 9, "requestsPerSecond": 200}}, 200.0),
        ({"slo": {"total": 9, "requestsPerSecond": 200}, "created": "2026-01-31T11:55:00Z"}, 600.0),
        ({"slo": {"total": 9, "requestsPerSecond": 700}, "created": "2026-01-31T11:55:00Z"}, 700.0),
        ({"slo": {"total": 0}}, 0.0),
        # One that may sleep is awake until the operator has put it to sleep.
        ({"slo": {"total": 0}, "least": 0}, AWAKE),
        ({"slo": {"total": 0}, "least": 0, "reason": "ScaledToZero"}, 0.0),
    ],
)
def test_the_rate_to_plan_for_is_what_the_status_says(
    example: dict[str, list[Object]], document: Object, planned: float
) -> None:
    service = example["services"][0]
    if "created" in document:
        service["metadata"]["creationTimestamp"] = document["created"]
    service["spec"]["scaling"] = {"minReplicas": document.get("least", 1)}
    service["status"] = {"slo": document["slo"]} if "slo" in document else {}
    reason = document.get("reason", "Planned")
    service["status"]["conditions"] = [{"type": "Planned", "status": "True", "reason": reason}]
    found = Reported(NOW).planned_rate(ModelService.from_dict(service), 0.0)
    assert found == planned


def test_lost_nodes_and_broken_objects_keep_nothing_else_from_being_planned(
    example: dict[str, list[Object]], objects: list[Object]
) -> None:
    broken = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "broken", "namespace": "forms"},
        "spec": {"members": []},
    }
    stray = {**example["nodes"][0], "metadata": {"name": "stray"}}
    cpu = {"uuid": "cpu", "product": "cpu", "memoryMiB": 57344}
    example["nodes"][1]["status"]["devices"] = [cpu]
    facts = decide([*objects, broken, stray], [lease("cores-1", 90)], CONFIG, NOW)
    assert facts.lost == ("cores-1",)
    assert set(facts.errors) == {"forms.broken"}
    assert set(facts.rejected) == {("RuntimeNode", "", "stray")}
    assert "metadata.labels" in str(facts.rejected["RuntimeNode", "", "stray"])
    assert [each.service for each in facts.plan.services] == ["vision.quality"]
    assert lacks(facts.plan, "forms.digits")
    assert not lacks(facts.plan, "vision.quality")


def test_a_spec_that_is_not_admitted_is_an_error_of_its_service(
    example: dict[str, list[Object]], objects: list[Object]
) -> None:
    (model,) = (each["model"] for each in example["services"][1]["spec"]["members"])
    model["uri"] = "file:///models/mlp.onnx"
    facts = decide(objects, (), CONFIG, NOW)
    assert set(facts.errors) == {"forms.digits"}
    assert [each.service for each in facts.plan.services] == ["vision.quality"]


def test_a_saved_state_decides_the_same(objects: list[Object], tmp_path: Path) -> None:
    facts = decide(objects, (), CONFIG, NOW)
    path = tmp_path / "state.yaml"
    save(facts, str(path))
    state = read_state(str(path))
    assert plan(state) == facts.plan
    assert state.policy == Policy(headroom=1.2)
    with pytest.raises(Failed, match=r"--save .*missing.*: No such file or directory"):
        save(facts, str(tmp_path / "missing" / "state.yaml"))


def test_a_dry_run_has_the_diff_and_the_steps_in_order(objects: list[Object]) -> None:
    facts = decide(objects, (), CONFIG, NOW)
    steps = steps_to(facts.plan, facts.state)
    data = dry_run_data(facts.plan, diff(facts.plan, facts.state), steps)
    assert data["name"] == facts.plan.name
    assert [each["id"] for each in data["steps"]] == [each.id for each in steps.steps]
    assert any(line.startswith("+ forms.digits/mlp: cores-1/cpu cpu-2@0") for line in data["diff"])
    yaml.safe_dump(data)  # plain values only


def test_what_concerns_one_service_is_shown_of_a_difference(
    example: dict[str, list[Object]],
) -> None:
    state = state_from_dict(example)
    changes = diff(plan(state), state)
    assert changes.recut == (("gpu-1", "GPU-1"),)
    mine = concerning("vision.quality", changes)
    assert {each.running.service for each in mine.added} == {"vision.quality"}
    assert mine.recut == changes.recut
    other = concerning("forms.digits", changes)
    assert (len(other.added), other.recut) == (1, ())
    assert concerning("vision.none", changes).empty


def test_instances_that_leave_do_not_count_as_answers() -> None:
    stays = Place(
        "n", "cpu", "cpu-1@0", "m", "Active", 4, wanted=2, present=2, ready=1, memory_mib=0
    )
    leaves = replace(stays, slice="cpu-1@4", wanted=0)
    assert answers([stays, leaves]) == "1 of 2 instances answer"
    assert answers([]) == "0 of 0 instances answer"
