"""ModelService: its defaults, and what is said about a document that is wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tessera_core.api import (
    Combine,
    Datatype,
    ModelFormat,
    ModelService,
    ObjectMeta,
    OnTimeout,
    SpecInvalid,
    admission,
)
from tessera_core.api.modelservice import ScalingMode
from tessera_core.api.tuning import TuningMode


def member(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "model": {"uri": f"s3://models/{name}.onnx", "format": "ONNX"}, **fields}


def service(*members: dict[str, Any], **spec: Any) -> dict[str, Any]:
    objectives = [{"target": "50ms", "percent": "99"}]
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "digits"},
        "spec": {"members": list(members), "slo": {"objectives": objectives}} | spec,
    }


def ensemble(**fields: Any) -> dict[str, Any]:
    return {"combine": "Mean"} | fields


def errors_of(document: object) -> dict[str, str]:
    """Path to the whole line of every error."""
    with pytest.raises(SpecInvalid) as caught:
        ModelService.from_dict(document)
    lines = {error.path: str(error) for error in caught.value.errors}
    assert len(lines) == len(caught.value.errors), "one error per field"
    return lines


def changed(path: str, value: Any) -> dict[str, Any]:
    """A valid document with two members and an image input, but for the value at ``path``."""
    image = {"name": "x", "datatype": "FP32", "shape": [3, -1], "padding": {"buckets": [[3, 8]]}}
    document: Any = copy.deepcopy(
        service(member("a"), member("b"), ensemble=ensemble(), inputs=[image])
    )
    *parents, last = path.split(".")
    at = document
    for step in parents:
        at = at[int(step)] if step.isdigit() else at.setdefault(step, {})
    at[int(last) if last.isdigit() else last] = value
    return document


def test_the_least_document_gets_every_default() -> None:
    decoded = ModelService.from_dict(service(member("only")))

    assert decoded.metadata == ObjectMeta(name="digits", namespace="default")
    assert decoded.served_name == "default.digits"
    (only,) = decoded.spec.members
    assert (only.required, only.weight, only.batch.max, only.profile_ref) == (True, None, 64, None)
    assert only.model.format is ModelFormat.ONNX
    assert decoded.spec.ensemble.combine is Combine.NONE
    assert decoded.spec.ensemble.min_members == 1
    assert decoded.spec.ensemble.on_timeout is OnTimeout.FAIL
    (objective,) = decoded.spec.slo.objectives
    assert (objective.target_s, objective.percent, objective.window_s) == (0.05, 99.0, 300.0)
    traffic = decoded.spec.traffic
    assert (traffic.requests_per_second, traffic.items_per_request, traffic.burstiness) == (0, 1, 1)
    assert decoded.spec.scaling.mode is ScalingMode.SLO
    assert decoded.spec.scaling.min_replicas == 1
    assert decoded.spec.tuning.mode is TuningMode.OFF


@pytest.mark.parametrize(
    ("required", "quorum"),
    [([True, True, True], 3), ([True, False, False], 1), ([False, False], 1)],
)
def test_the_quorum_defaults_to_the_required_members(required: list[bool], quorum: int) -> None:
    members = [member(f"m{i}", required=each) for i, each in enumerate(required)]
    decoded = ModelService.from_dict(service(*members, ensemble=ensemble()))
    assert decoded.spec.ensemble.min_members == quorum


def test_null_is_the_same_as_an_absent_field() -> None:
    document = service(member("only", weight=None), ensemble={"combine": None}, traffic=None)
    assert ModelService.from_dict(document) == ModelService.from_dict(service(member("only")))


def test_a_bare_bucket_length_stands_for_a_shape() -> None:
    tokens = {"name": "ids", "datatype": "INT64", "shape": [-1], "padding": {"buckets": [8, [16]]}}
    (tensor,) = ModelService.from_dict(service(member("only"), inputs=[tokens])).spec.inputs
    assert tensor.datatype is Datatype.INT64
    assert tensor.padding is not None
    assert tensor.padding.buckets == ((8,), (16,))
    assert tensor.padding.mixed


def test_all_errors_of_a_document_come_at_once_each_with_path_found_and_allowed() -> None:
    document = service(
        member("a", weight="heavy", batch={"max": 0}),
        member("a"),
        member("B", requierd=False),
        slo={"objectives": [{"target": "fast", "percent": 99}]},
        traffic={"requestsPerSecond": -1},
        replicas=2,
    )
    document["metadata"]["name"] = "digits.v2"
    errors = errors_of(document)

    assert errors["spec.members[0].weight"] == (
        "spec.members[0].weight: found 'heavy', allowed: a decimal string above 0 such as \"0.5\""
    )
    assert errors["spec.members[2].requierd"] == (
        "spec.members[2].requierd: found an unknown field, allowed: name, model, weight, required, batch, "
        "profileRef (did you mean required?)"
    )
    assert errors["spec.ensemble.combine"].startswith(
        "spec.ensemble.combine: found nothing, allowed: "
    )
    assert set(errors) == {
        "metadata.name",
        "spec.members[0].weight",
        "spec.members[0].batch.max",
        "spec.members[1].name",
        "spec.members[2].name",
        "spec.members[2].requierd",
        "spec.ensemble.combine",
        "spec.slo.objectives[0].target",
        "spec.slo.objectives[0].percent",
        "spec.traffic.requestsPerSecond",
        "spec.replicas",
    }


@pytest.mark.parametrize(
    ("path", "value", "wrong"),
    [
        ("apiVersion", "tessera.dev/v2", "apiVersion"),
        ("kind", "ModelProfile", "kind"),
        ("spec", [], "spec"),
        ("spec.members", [], "spec.members"),
        ("spec.members", {}, "spec.members"),
        ("spec.members.0.model.uri", "ftp://models/a", "spec.members[0].model.uri"),
        ("spec.members.0.model.uri", "models/a", "spec.members[0].model.uri"),
        ("spec.members.0.model.uri", "s3://b/a b", "spec.members[0].model.uri"),
        ("spec.members.0.model.digest", "sha256:AB", "spec.members[0].model.digest"),
        ("spec.members.0.model.digest", "md5:00", "spec.members[0].model.digest"),
        ("spec.members.0.model.format", "onnx", "spec.members[0].model.format"),
        ("spec.members.0.name", "-a", "spec.members[0].name"),
        ("spec.members.0.required", "yes", "spec.members[0].required"),
        ("spec.ensemble.minMembers", 0, "spec.ensemble.minMembers"),
        ("spec.ensemble.onTimeout", "Wait", "spec.ensemble.onTimeout"),
        ("spec.slo", {}, "spec.slo.objectives"),
        ("spec.slo.objectives", [{"target": "1s", "percent": "9"}] * 9, "spec.slo.objectives"),
        ("spec.slo.objectives.0.percent", "100", "spec.slo.objectives[0].percent"),
        ("spec.slo.objectives.0.percent", "0", "spec.slo.objectives[0].percent"),
        ("spec.slo.objectives.0.target", "0s", "spec.slo.objectives[0].target"),
        ("spec.slo.objectives.0.window", 300, "spec.slo.objectives[0].window"),
        ("spec.traffic.itemsPerRequest", 0, "spec.traffic.itemsPerRequest"),
        ("spec.traffic.burstiness", "0", "spec.traffic.burstiness"),
        ("spec.scaling", {"minReplicas": 3, "maxReplicas": 2}, "spec.scaling.minReplicas"),
        ("spec.scaling", {"mode": "Fixed", "maxReplicas": 2}, "spec.scaling.maxReplicas"),
        ("spec.inputs.0.datatype", "FLOAT", "spec.inputs[0].datatype"),
        ("spec.inputs.0.shape", [0], "spec.inputs[0].shape[0]"),
        ("spec.inputs.0.shape", [-2, 3], "spec.inputs[0].shape[0]"),
        ("spec.inputs.0.padding.buckets", [[3, 8], [4, 8]], "spec.inputs[0].padding.buckets[1]"),
        ("spec.inputs.0.padding.buckets", [[3, 8], [3, 8]], "spec.inputs[0].padding.buckets[1]"),
        ("spec.inputs.0.padding.buckets", [8], "spec.inputs[0].padding.buckets[0]"),
        ("spec.inputs.0.padding.buckets", [[3, -1]], "spec.inputs[0].padding.buckets[0][1]"),
        ("spec.inputs.0.shape", [3, 8], "spec.inputs[0].padding"),
        ("spec.inputs.0.datatype", "BYTES", "spec.inputs[0].padding"),
        (
            "spec.outputs",
            [{"name": "y", "datatype": "FP32", "shape": [1]}] * 2,
            "spec.outputs[1].name",
        ),
        ("spec.preprocess", {}, "spec.preprocess"),
        ("spec.preprocess", {"image": {"size": [2, 2]}, "audio": {}}, "spec.preprocess"),
        ("spec.preprocess.image", {"size": [2]}, "spec.preprocess.image.size"),
        ("spec.preprocess.image", {"size": [9, 9], "resize": 8}, "spec.preprocess.image.resize"),
        (
            "spec.preprocess.image",
            {"size": [9, 9], "mean": ["0", "0"]},
            "spec.preprocess.image.std",
        ),
        ("spec.preprocess.audio", {"window": "5ms", "step": "9ms"}, "spec.preprocess.audio.step"),
        ("spec.placement", {"isolation": "Shared"}, "spec.placement.isolation"),
        ("spec.tuning", {"precisions": []}, "spec.tuning.precisions"),
    ],
)
def test_one_wrong_field_gives_one_error_at_its_path(path: str, value: Any, wrong: str) -> None:
    assert list(errors_of(changed(path, value))) == [wrong]


WEIGHTED = ensemble(combine="WeightedVote")
PARTIAL = ensemble(onTimeout="Partial")
OPTIONAL = member("b", required=False)


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        (
            service(member("a", weight="1"), member("b"), ensemble=WEIGHTED),
            "spec.members[1].weight",
        ),
        (
            service(member("a", weight="1"), member("b"), ensemble=ensemble()),
            "spec.members[0].weight",
        ),
        (service(member("a"), member("b")), "spec.ensemble.combine"),
        (service(member("a"), ensemble=ensemble(minMembers=2)), "spec.ensemble.minMembers"),
        (service(member("a"), member("b"), ensemble=PARTIAL), "spec.ensemble.onTimeout"),
        (
            service(member("a"), OPTIONAL, ensemble=PARTIAL | {"minMembers": 2}),
            "spec.ensemble.minMembers",
        ),
        (
            service(member("a"), member("b"), ensemble=ensemble(minMembers=1)),
            "spec.ensemble.minMembers",
        ),
        (service(member("a"), replicas=2), "spec.replicas"),
        (service(member("a"), replicas=2, scaling={"mode": "Fixed"}), "spec.replicas"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    document: dict[str, Any], wrong: str
) -> None:
    assert list(errors_of(document)) == [wrong]


def test_fields_that_go_together_are_accepted() -> None:
    weighted = service(member("a", weight="1"), member("b", weight="2"), ensemble=WEIGHTED)
    partial = service(member("a"), OPTIONAL, ensemble=PARTIAL)
    scaled = service(member("a"), replicas=0, scaling={"mode": "External"})
    for document in (weighted, partial, scaled):
        ModelService.from_dict(document)


@pytest.mark.parametrize("mode", [False, "off", "Of"])
def test_a_choice_that_is_nearly_right_gets_a_hint(mode: object) -> None:
    (line,) = errors_of(changed("spec.tuning.mode", mode)).values()
    assert "in quotes" in line if mode is False else "did you mean Off?" in line


@pytest.mark.parametrize("user", ["user", "u" * 90])
def test_credentials_in_a_uri_are_refused_and_not_repeated(user: str) -> None:
    document = changed("spec.members.0.model.uri", f"https://{user[:9]}:hunter2{user}@models/a")
    (line,) = errors_of(document).values()
    assert "hunter2" not in line
    assert "without user and password" in line


def test_an_at_sign_in_the_path_is_no_credential() -> None:
    ModelService.from_dict(changed("spec.members.0.model.uri", "hf://org/model@main/a.onnx"))


def test_unknown_fields_are_ignored_where_the_document_is_not_a_file() -> None:
    document = changed("spec.newField", 1)
    assert list(errors_of(document)) == ["spec.newField"]
    ModelService.from_dict(document, strict=False)


@pytest.mark.parametrize(
    ("local", "allow_code", "wrong"),
    [
        (True, True, []),
        (True, False, ["spec.members[1].model.format", "spec.members[2].model.format"]),
        (False, True, ["spec.members[0].model.uri"]),
    ],
)
def test_files_are_admitted_locally_and_code_where_it_is_allowed(
    local: bool, allow_code: bool, wrong: list[str]
) -> None:
    models = [
        ("file:///m/a.pt2", "TorchExport"),
        ("s3://m/b", "TorchScript"),
        ("s3://m/c", "Python"),
    ]
    members = [
        {"name": f"m{i}", "model": {"uri": uri, "format": kind}}
        for i, (uri, kind) in enumerate(models)
    ]
    spec = ModelService.from_dict(service(*members, ensemble=ensemble())).spec
    found = admission(spec, local=local, allow_code=allow_code)
    assert [error.path for error in found] == wrong


def test_keys_are_of_a_cluster_and_refused_where_there_are_no_secrets() -> None:
    access = {"keysSecretRef": {"name": "keys"}}
    spec = ModelService.from_dict(service(member("a"), access=access)).spec
    assert spec.access is not None
    assert spec.access.keys_secret_ref.name == "keys"
    assert admission(spec, local=False, allow_code=False) == ()
    [error] = admission(spec, local=True, allow_code=False)
    assert error.path == "spec.access.keysSecretRef.name"
    assert "remove it" in error.allowed


@pytest.mark.parametrize(
    ("access", "path"),
    [
        ({}, "spec.access.keysSecretRef"),
        ({"keysSecretRef": {}}, "spec.access.keysSecretRef.name"),
        ({"keysSecretRef": {"name": "No Name"}}, "spec.access.keysSecretRef.name"),
        ({"keysSecretRef": {"name": "keys"}, "public": True}, "spec.access.public"),
    ],
)
def test_access_that_says_nothing_is_no_access_for_all(access: object, path: str) -> None:
    assert list(errors_of(service(member("a"), access=access))) == [path]
