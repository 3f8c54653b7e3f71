"""Documents of any kind, the rules of the operator's kinds, and documents that mean harm."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera_core.api import (
    PlacementPlan,
    RuntimeNode,
    RuntimePool,
    SpecInvalid,
    TaintEffect,
    TaintStatus,
    Toleration,
    TolerationOperator,
    decode,
)
from tessera_core.api.errors import SHOWN_ERRORS, FieldError, Report
from tessera_core.api.places import MIG_PROFILE, SLICE_KIND
from tessera_core.gpu.tables import MODELS

FOLDER = Path(__file__).parent / "documents"


def document(name: str) -> Any:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def errors_of(value: object) -> tuple[FieldError, ...]:
    with pytest.raises(SpecInvalid) as caught:
        decode(value)
    return caught.value.errors


@pytest.mark.parametrize("value", [None, [], "ModelService", 3, {}])
def test_what_is_no_object_is_refused(value: object) -> None:
    assert errors_of(value)


def test_an_unknown_kind_gets_a_suggestion() -> None:
    (error,) = errors_of({"kind": "ModelServices"})
    assert error.path == "kind"
    assert "did you mean ModelService?" in error.allowed


@pytest.mark.parametrize(
    ("name", "path", "value", "wrong"),
    [
        ("modelprofile", "spec.deviceClass.slice", "cpu-4", "spec.deviceClass.slice"),
        ("modelprofile", "spec.deviceClass.slice", "small", "spec.deviceClass.slice"),
        ("modelprofile", "status.rows.0.neighbours", "Loud", "status.rows[0].neighbours"),
        ("modelprofile", "status.drift.ratio", "0", "status.drift.ratio"),
        ("runtimepool", "spec.size.min", 21, "spec.size.min"),
        ("runtimepool", "spec.node.resources", {}, "spec.node.resources"),
        (
            "runtimepool",
            "spec.node.resources",
            {"nvidia.com/gpu": "500m"},
            "spec.node.resources[nvidia.com/gpu]",
        ),
        ("runtimepool", "spec.node.resources", {"cpu": 8}, "spec.partition"),
        ("runtimepool", "spec.node.sharedMemory", "901Gi", "spec.node.sharedMemory"),
        (
            "runtimepool",
            "spec.partition.allowedProfiles.0",
            "small",
            "spec.partition.allowedProfiles[0]",
        ),
        (
            "runtimepool",
            "spec.partition.disruption.windows.0.schedule",
            "daily",
            "spec.partition.disruption.windows[0].schedule",
        ),
        ("runtimepool", "spec.cost.idleWatts", "-1", "spec.cost.idleWatts"),
        ("runtimepool", "spec.node.tolerations.0.key", None, "spec.node.tolerations[0].operator"),
        (
            "runtimepool",
            "spec.node.tolerations.0.operator",
            "Exists",
            "spec.node.tolerations[0].value",
        ),
        (
            "runtimepool",
            "spec.node.tolerations.0.effect",
            "NoSchedule",
            "spec.node.tolerations[0].tolerationSeconds",
        ),
        ("runtimepool", "metadata.namespace", "vision", "metadata.namespace"),
        ("runtimenode", "spec.epoch", -1, "spec.epoch"),
        (
            "runtimenode",
            "spec.devices.0.instances.0.service",
            "digits",
            "spec.devices[0].instances[0].service",
        ),
        (
            "runtimenode",
            "spec.devices.0.instances.0.slice",
            "3g.40gb",
            "spec.devices[0].instances[0].slice",
        ),
        ("runtimenode", "spec.devices.0.geometry.0.start", 16, "spec.devices[0].geometry[0].start"),
        ("runtimenode", "status.taints.0.key", "no key", "status.taints[0].key"),
        ("runtimenode", "status.taints.0.effect", "NoRun", "status.taints[0].effect"),
        ("runtimenode", "status.taints.0.effect", None, "status.taints[0].effect"),
        ("placementplan", "spec.steps.0.id", "cut-1", "spec.steps[1].id"),
        ("placementplan", "spec.steps.0.requires", ["launch-1"], "spec.steps[0].requires[0]"),
        ("placementplan", "spec.steps.2.target.batch", None, "spec.steps[2].target.batch"),
        ("placementplan", "spec.steps.1.requires.0", "nothing", "spec.steps[1].requires[0]"),
    ],
)
def test_the_rules_of_the_other_kinds_name_the_field(
    name: str, path: str, value: object, wrong: str
) -> None:
    damaged = document(name)
    *parents, last = path.split(".")
    at = damaged
    for step in parents:
        at = at[int(step) if step.isdigit() else step]
    at[int(last) if last.isdigit() else last] = value
    assert wrong in [error.path for error in errors_of(damaged)]


def test_instances_of_one_member_on_one_slice_are_one_entry() -> None:
    damaged = document("runtimenode")
    instances = damaged["spec"]["devices"][0]["instances"]
    instances.append(copy.deepcopy(instances[0]))
    assert [error.path for error in errors_of(damaged)] == ["spec.devices[0].instances[2]"]


def test_a_taint_is_read_as_the_api_server_writes_it() -> None:
    node = document("runtimenode")
    added = {"key": "node.kubernetes.io/unreachable", "timeAdded": "2026-01-31T12:00:00Z"}
    node["status"]["taints"] = [added | {"effect": "NoExecute"}]
    (taint,) = RuntimeNode.from_dict(node).status.taints
    assert taint == TaintStatus("node.kubernetes.io/unreachable", TaintEffect.NO_EXECUTE, "")


def test_a_toleration_of_everything_has_neither_key_nor_effect() -> None:
    pool = document("runtimepool")
    pool["spec"]["node"]["tolerations"] = [{"operator": "Exists"}]
    (everything,) = RuntimePool.from_dict(pool).spec.node.tolerations
    assert everything == Toleration(operator=TolerationOperator.EXISTS)


def test_every_tabled_mig_profile_can_be_written_in_documents() -> None:
    report = Report()
    for model in MODELS:
        for profile in model.profiles:
            MIG_PROFILE.decode(profile.name, profile.name, report)
            SLICE_KIND.decode(profile.name, profile.name, report)
    assert report.errors == []


def test_a_plan_is_named_by_its_content_and_not_by_its_approval_or_leader() -> None:
    spec = PlacementPlan.from_dict(document("placementplan")).spec
    reordered = document("placementplan")
    reordered["spec"] = dict(reversed(reordered["spec"].items()))

    assert PlacementPlan.from_dict(reordered).spec.name == spec.name
    assert replace(spec, approved=True).name == spec.name
    assert replace(spec, epoch=5).name == spec.name
    assert replace(spec, basis="sha256:ab02").name != spec.name
    assert replace(spec, steps=spec.steps[:1]).name != spec.name
    decode(document("placementplan") | {"metadata": {"name": spec.name}})


def test_objects_are_frozen_and_their_quantities_count() -> None:
    pool = RuntimePool.from_dict(document("runtimepool"))
    assert dict(pool.spec.node.resources)["memory"].value == 900 * 1024**3
    with pytest.raises(FrozenInstanceError):
        pool.spec.size.min = 3  # type: ignore[misc]


def nested(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = {"spec": [value]}
    return value


@pytest.mark.parametrize("place", ["spec", "metadata", "status"])
def test_a_document_of_any_depth_is_refused_without_recursion(place: str) -> None:
    hostile = document("modelservice")
    hostile[place] = nested(100_000)
    assert errors_of(hostile)


def test_too_long_a_list_is_refused_without_reading_its_items() -> None:
    hostile = document("modelservice")
    hostile["spec"]["members"] = [{"name": i} for i in range(300)]
    errors = [error for error in errors_of(hostile) if error.path.startswith("spec.members")]
    assert [str(error) for error in errors] == [
        "spec.members: found a list of 300 items, allowed: a list of 1 to 32 items"
    ]


def test_many_unknown_fields_are_counted_and_not_listed() -> None:
    hostile = document("modelservice")
    hostile["spec"] |= {f"field{i}" * 20: i for i in range(50_000)}
    errors = errors_of(hostile)
    assert len(errors) < 10
    assert errors[-1].found == "49992 more unknown fields"
    assert len(str(errors[0])) < 1000


def test_a_message_of_many_errors_ends_with_their_number() -> None:
    errors = tuple(FieldError(f"f{i}", "x", "y") for i in range(SHOWN_ERRORS + 5))
    assert str(SpecInvalid(errors)).splitlines()[-1] == "and 5 more errors"


@pytest.mark.parametrize(
    "value", [10**5000, "x" * 10_000, ["y"] * 10_000, {"z": 1}, object()], ids=type
)
def test_a_found_value_of_any_size_is_described_in_short(value: object) -> None:
    damaged = document("modelservice")
    damaged["spec"]["replicas"] = value
    error = next(error for error in errors_of(damaged) if error.path == "spec.replicas")
    assert len(error.found) < 80
