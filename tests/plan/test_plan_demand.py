"""Which priority the members of a service have."""

from __future__ import annotations

import pytest

from support.clusters import digest, service
from tessera_core.plan import ClusterState, Policy, demands_of
from tessera_core.plan.demand import NO_CLASS, priority_of, priority_values

CLASSES = (("batch", -10), ("online", 1000))


@pytest.mark.parametrize(
    ("default", "expected"),
    [(None, 0), ("online", 1000), ("batch", -10)],
)
def test_a_service_that_names_no_class_has_the_default_ones_priority(
    default: str | None, expected: int
) -> None:
    state = ClusterState(priorities=CLASSES, default_priority_class=default)
    assert priority_values(state)[NO_CLASS] == expected


def test_classes_go_by_name_and_every_cluster_has_two() -> None:
    assert priority_values(ClusterState(priorities=CLASSES)) == {
        NO_CLASS: 0,
        "batch": -10,
        "online": 1000,
        "system-cluster-critical": 2_000_000_000,
        "system-node-critical": 2_000_001_000,
    }


@pytest.mark.parametrize(
    ("name", "expected"), [("online", 1000), (None, -10), ("of-another-cluster", -10)]
)
def test_a_service_has_the_priority_of_its_class(name: str | None, expected: int) -> None:
    values = priority_values(ClusterState(priorities=CLASSES, default_priority_class="batch"))
    assert priority_of(service("s", priorityClassName=name), values) == expected


def test_all_members_of_a_service_have_its_priority() -> None:
    one = service("s", "ab", priorityClassName="online")
    known = {member: digest(member) for member in "ab"}
    assert [each.priority for each in demands_of(one, known, Policy(), {"online": 7})] == [7, 7]
    assert [each.priority for each in demands_of(one, known, Policy())] == [0, 0]
