"""Priority classes and quotas from documents: short forms, objects of Kubernetes, and what is refused."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import service
from tessera_core.api import SpecInvalid
from tessera_core.plan import state_from_dict, state_to_dict
from tessera_core.plan.demand import BUILT_IN_PRIORITIES, NO_CLASS, priority_values
from tessera_core.plan.state import Quota


def errors_of(document: object, *, strict: bool = True) -> dict[str, str]:
    with pytest.raises(SpecInvalid) as caught:
        state_from_dict(document, strict=strict)
    return {error.path: error.allowed for error in caught.value.errors}


def priority_object(name: str, value: object, **fields: object) -> dict[str, Any]:
    """As ``kubectl get priorityclass -o yaml`` prints it."""
    return {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name, "uid": "1", "creationTimestamp": "2026-01-31T12:00:00Z"},
        "value": value,
        "description": "any text",
        "preemptionPolicy": "PreemptLowerPriority",
        **fields,
    }


def quota_object(
    hard: object, *, namespace: str = "vision", name: str = "gpus", **spec: object
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": "8123"},
        "spec": {"hard": hard, **spec},
        "status": {"hard": hard, "used": {}},
    }


def hard(**ours: object) -> dict[str, object]:
    return {f"requests.tessera.dev/{name}": amount for name, amount in ours.items()}


def quotas_of(*documents: object) -> tuple[Quota, ...]:
    return state_from_dict({"quotas": list(documents)}).quotas


def test_classes_come_in_short_and_as_kubernetes_has_them() -> None:
    state = state_from_dict(
        {
            "priorityClasses": [
                {"name": "online", "value": 1000},
                priority_object("batch", -(2**31), globalDefault=False),
                priority_object("highest", 1_000_000_000),
                priority_object("system-node-critical", 2_000_001_000),
            ]
        }
    )
    assert state.priorities == (
        ("batch", -(2**31)),
        ("highest", 1_000_000_000),
        ("online", 1000),
        ("system-node-critical", 2_000_001_000),
    )
    assert state.default_priority_class is None


def test_of_two_default_classes_the_least_is_for_services_that_name_none() -> None:
    state = state_from_dict(
        {
            "priorityClasses": [
                {"name": "a", "value": 10, "globalDefault": True},
                priority_object("b", 5, globalDefault=True),
                {"name": "c", "value": 1},
            ]
        }
    )
    assert state.default_priority_class == "b"
    assert priority_values(state)[NO_CLASS] == 5


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ("online", ""),
        ({"value": 1}, ".name"),
        ({"name": "online"}, ".value"),
        ({"name": "On line", "value": 1}, ".name"),
        ({"name": "online", "value": "1"}, ".value"),
        ({"name": "online", "value": 1_000_000_001}, ".value"),
        ({"name": "online", "value": -(2**31) - 1}, ".value"),
        ({"name": "online", "value": 1, "global": True}, ".global"),
        ({"name": "system-mine", "value": 1}, ".name"),
        ({"name": "system-node-critical", "value": 1}, ".name"),
        (priority_object("online", 1_000_000_001), ".value"),
        (priority_object("system-mine", 1), ".metadata.name"),
        (
            priority_object("system-node-critical", 2_000_001_000, globalDefault=True),
            ".metadata.name",
        ),
        (priority_object("online", 1) | {"metadata": {}}, ".metadata.name"),
        (priority_object("online", 1) | {"apiVersion": "v1"}, ".apiVersion"),
        (priority_object("online", 1) | {"kind": "Priority"}, ".kind"),
    ],
    ids=str,
)
def test_a_wrong_class_is_refused_by_field(document: object, path: str) -> None:
    assert list(errors_of({"priorityClasses": [document]})) == [f"priorityClasses[0]{path}"]


def test_one_name_is_one_class_in_either_form() -> None:
    classes = [{"name": "online", "value": 1}, priority_object("online", 1)]
    assert list(errors_of({"priorityClasses": classes})) == ["priorityClasses[1]"]


def test_a_service_of_an_unknown_class_is_refused_with_the_remedy() -> None:
    state = {
        "priorityClasses": [{"name": "online", "value": 1}],
        "services": [service("s", priorityClassName="onlin").to_dict()],
    }
    allowed = errors_of(state)["services[0].spec.priorityClassName"]
    assert "did you mean online?" in allowed
    assert "add its name and value there" in allowed


@pytest.mark.parametrize("name", BUILT_IN_PRIORITIES)
def test_the_classes_of_every_cluster_need_not_be_listed(name: str) -> None:
    state = state_from_dict({"services": [service("s", priorityClassName=name).to_dict()]})
    assert priority_values(state)[name] == BUILT_IN_PRIORITIES[name]


def test_quotas_come_in_short_and_as_kubernetes_has_them() -> None:
    assert quotas_of(
        {"namespace": "vision", "slices": 12, "shares": "2.5"},
        {"namespace": "speech", "slices": 0},
        quota_object(
            hard(slices=7, shares="2500m") | {"requests.cpu": "1e3", "pods": 4}, namespace="text"
        ),
    ) == (Quota("speech", 0, None), Quota("text", 7, 2.5), Quota("vision", 12, 2.5))


def test_a_quota_of_other_things_limits_nothing_here() -> None:
    assert (
        quotas_of(
            quota_object({"requests.nvidia.com/gpu": 4}, scopes=["BestEffort"]),
            quota_object({"pods": 4}, name="pods", scopeSelector={"matchExpressions": []}),
            {"namespace": "text"},
        )
        == ()
    )


def test_a_quota_without_a_namespace_is_of_the_default_one() -> None:
    document = quota_object(hard(slices=7))
    del document["metadata"]["namespace"]
    assert quotas_of(document) == (Quota("default", 7, None),)


AMOUNTS = st.none() | st.integers(0, 20)


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS), max_size=5), st.randoms())
def test_of_several_quotas_the_smallest_count_in_any_order(
    limits: list[tuple[int | None, int | None]], random: Random
) -> None:
    documents = []
    for index, (slices, shares) in enumerate(limits):
        stated = {"slices": slices, "shares": shares}
        present = {name: amount for name, amount in stated.items() if amount is not None}
        documents.append(quota_object(hard(**present), name=f"quota-{index}"))
    random.shuffle(documents)
    counted = [
        min((limit[which] for limit in limits if limit[which] is not None), default=None)
        for which in (0, 1)
    ]
    expected = () if counted == [None, None] else (Quota("vision", *counted),)
    assert quotas_of(*documents) == expected


def test_a_short_quota_and_an_object_of_one_namespace_both_hold() -> None:
    short = {"namespace": "vision", "slices": 4}
    assert quotas_of(quota_object(hard(slices=9, shares=1)), short) == (Quota("vision", 4, 1.0),)


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ("vision", ""),
        ({"slices": 1}, ".namespace"),
        ({"namespace": "Vision", "slices": 1}, ".namespace"),
        ({"namespace": "vision", "slices": -1}, ".slices"),
        ({"namespace": "vision", "slices": "4"}, ".slices"),
        ({"namespace": "vision", "shares": 2.5}, ".shares"),
        ({"namespace": "vision", "shares": "-1"}, ".shares"),
        ({"namespace": "vision", "slice": 4}, ".slice"),
        (quota_object(hard(slices="1500m")), ".spec.hard[requests.tessera.dev/slices]"),
        (quota_object(hard(slices="4G")), ".spec.hard[requests.tessera.dev/slices]"),
        (quota_object(hard(shares="-1")), ".spec.hard[requests.tessera.dev/shares]"),
        (quota_object(hard(shares=2.5)), ".spec.hard[requests.tessera.dev/shares]"),
        (quota_object(hard(slice=4)), ".spec.hard[requests.tessera.dev/slice]"),
        (quota_object({"tessera.dev/slices": 4}), ".spec.hard[tessera.dev/slices]"),
        (quota_object(hard(slices=4), scopes=["BestEffort"]), ".spec.scopes"),
        (
            quota_object(hard(shares=4), scopeSelector={"matchExpressions": []}),
            ".spec.scopeSelector",
        ),
        (quota_object([]), ".spec.hard"),
        (quota_object(hard(slices=4), namespace="Vision"), ".metadata.namespace"),
        (quota_object(hard(slices=4)) | {"apiVersion": "v2"}, ".apiVersion"),
        (quota_object(hard(slices=4)) | {"kind": "Quota"}, ".kind"),
        (quota_object(hard(slices=4)) | {"spec": "hard"}, ".spec"),
    ],
    ids=str,
)
def test_a_wrong_quota_is_refused_by_field(document: object, path: str) -> None:
    assert list(errors_of({"quotas": [document]})) == [f"quotas[0]{path}"]


def test_a_misspelt_resource_gets_a_suggestion() -> None:
    (allowed,) = errors_of({"quotas": [quota_object(hard(slice=4))]}).values()
    assert "did you mean requests.tessera.dev/slices?" in allowed


def test_a_resource_of_a_newer_release_is_no_error_in_a_cluster() -> None:
    document = {"quotas": [quota_object(hard(slices=4, watts=700))]}
    assert state_from_dict(document, strict=False).quotas == (Quota("vision", 4, None),)


@pytest.mark.parametrize(
    "document", [{"namespace": "vision", "slices": 4}, quota_object(hard(slices=4))], ids=str
)
def test_one_quota_comes_once(document: object) -> None:
    assert list(errors_of({"quotas": [document, document]})) == ["quotas[1]"]


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "4", "1e400", "9" * 41, "vision", "9" * 30 + "E"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["hard", "name", "namespace", *hard(slices=1, slice=1)])
            | st.integers(),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)
FORMS = [
    ("priorityClasses", {"name": "online", "value": 1}),
    ("priorityClasses", priority_object("online", 1)),
    ("quotas", {"namespace": "vision", "slices": 1, "shares": "1"}),
    ("quotas", quota_object(hard(slices=1), scopes=[])),
]


@given(st.sampled_from(FORMS), st.data(), JUNK, st.booleans())
def test_a_damaged_document_is_read_or_refused_with_paths(
    form: tuple[str, dict[str, Any]], data: st.DataObject, junk: object, strict: bool
) -> None:
    kind, document = form
    damaged = document | {data.draw(st.sampled_from([*document, "other"])): junk}
    try:
        state = state_from_dict({kind: [damaged]}, strict=strict)
    except SpecInvalid as invalid:
        refused = invalid.errors
    else:
        assert state_from_dict(state_to_dict(state)) == state
        return
    assert all(error.path.startswith(f"{kind}[0]") for error in refused)
