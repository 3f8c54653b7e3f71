"""What the partitioner does next and what it says: without a GPU and without an API server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.api import SpecInvalid
from tessera_core.api.runtimenode import CutProblem, CutStatus, SliceStatus
from tessera_core.gpu.geometry import GeometryError, Placement
from tessera_core.gpu.recut import Create
from tessera_core.gpu.tables import H100_80_SXM
from tessera_runtime.partitioner import errors
from tessera_runtime.partitioner.decide import (
    FIRST_PAUSE_S,
    MOST_MESSAGE,
    MOST_PAUSE_S,
    Order,
    Tried,
    due,
    failed,
    next_due_s,
    order,
    said_before,
    settled,
    told,
    tried_before,
)
from tessera_runtime.partitioner.gpu import Slice

HALF, OTHER = Placement("3g.40gb", 0), Placement("3g.40gb", 4)


def whole(placement: Placement) -> Slice:
    return Slice(placement, placement.start, 0, f"MIG-{placement.start}")


def document(*devices: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "RuntimeNode",
        "metadata": {"name": "n", "generation": 7},
        "spec": {"epoch": 3, "devices": list(devices)},
        **rest,
    }


def test_only_devices_that_are_to_be_cut_are_ordered() -> None:
    geometry = [{"profile": "3g.40gb", "start": start} for start in (4, 0)]
    found = order(
        document(
            {"uuid": "GPU-1", "geometry": geometry, "cut": True},
            {"uuid": "GPU-2", "geometry": geometry, "cut": False},
            {"uuid": "GPU-3", "geometry": geometry},
            {"uuid": "GPU-4", "cut": True},
        )
    )
    assert found == Order(7, 3, {"GPU-1": (HALF, OTHER), "GPU-4": ()})


def test_what_of_a_spec_is_of_no_concern_here_is_not_read() -> None:
    """A newer operator may write services that this partitioner cannot read."""
    unknown = {"epoch": 3, "services": [{"name": 5}], "planRef": {"name": "a"}, "new": {}}
    assert order({**document(), "spec": unknown}) == Order(7, 3)


@pytest.mark.parametrize(
    "device",
    [
        {"uuid": "GPU-1", "geometry": [{"profile": "half", "start": 0}], "cut": True},
        {"geometry": [], "cut": True},
        {"uuid": "GPU-1", "geometry": [{"profile": "3g.40gb", "start": 99}], "cut": True},
    ],
)
def test_an_order_that_cannot_be_read_is_refused(device: dict[str, Any]) -> None:
    with pytest.raises(SpecInvalid):
        order(document(device))


def test_what_was_told_before_is_what_was_tried_before() -> None:
    said = [
        {"uuid": "GPU-1", "generation": 6, "problem": "InUse", "message": "by 5"},
        {"uuid": "GPU-2", "slices": [{"uuid": "MIG-0", "profile": "3g.40gb", "start": 0}]},
    ]
    before = said_before(document(status={"cuts": said, "devices": "of a newer agent"}))
    assert [each.uuid for each in before] == ["GPU-1", "GPU-2"]
    assert tried_before(before) == {"GPU-1": Tried(6, CutProblem.IN_USE, "by 5")}
    assert said_before(document()) == ()


def test_what_was_never_tried_is_due_and_so_is_all_of_a_new_generation() -> None:
    wanted = Order(7, 3, {"a": (HALF,), "b": (OTHER,)})
    assert due(wanted, {}, 0.0) == "a"
    assert due(wanted, {"a": Tried(7)}, 0.0) == "b"
    late = {each: Tried(6, CutProblem.IN_USE, "", 9, again_s=1e9) for each in "ab"}
    assert due(wanted, late, 0.0) == "a"
    assert due(wanted, {**late, "a": Tried(7)}, 0.0) == "b"
    assert due(Order(8), late, 0.0) is None


def test_what_fails_again_and_again_holds_up_no_other() -> None:
    wanted = Order(7, 3, {"a": (HALF,), "b": (OTHER,)})
    tried = {
        "a": Tried(7, CutProblem.IN_USE, "", 2, 10.0),
        "b": Tried(7, CutProblem.IN_USE, "", 1, 5.0),
    }
    assert [due(wanted, tried, now_s) for now_s in (4.9, 5.0, 10.0)] == [None, "b", "b"]
    assert due(replace(wanted, generation=8), tried, 0.0) == "b", "though both are due at once"
    assert next_due_s(wanted, tried) == 5.0
    assert next_due_s(wanted, {"a": Tried(7), "b": Tried(7)}) is None


def test_what_is_as_wanted_is_settled_whoever_cut_it() -> None:
    wanted = Order(7, 3, {"a": (HALF,)})
    in_use = Tried(6, CutProblem.IN_USE, "by 5", 3, 50.0)
    assert settled(wanted, {"a": (whole(HALF),)}, {"a": in_use}) == {"a": Tried(7)}
    assert settled(wanted, {"a": (whole(HALF),)}, {}) == {"a": Tried(7)}


@pytest.mark.parametrize(
    "present",
    [
        (),
        (whole(OTHER),),
        (whole(HALF), whole(OTHER)),
        (Slice(HALF, 0, None, None),),
        (whole(HALF), Slice(OTHER, 1, None, None)),
    ],
    ids=["nothing", "another", "one more", "unfinished", "one more, unfinished"],
)
def test_what_is_as_wanted_no_longer_is_due_again(present: tuple[Slice, ...]) -> None:
    wanted = Order(7, 3, {"a": (HALF,)})
    left = settled(wanted, {"a": present}, {"a": Tried(7)})
    assert left == {}
    assert due(wanted, left, 0.0) == "a"
    in_use = {"a": Tried(7, CutProblem.IN_USE, "by 5", 3, 50.0)}
    assert settled(wanted, {"a": present}, in_use) == in_use


def test_what_is_ordered_no_more_is_forgotten() -> None:
    tried = {"a": Tried(7, CutProblem.IN_USE, "by 5", 3, 50.0)}
    assert settled(Order(8, 3), {"a": ()}, tried) == {}


ERRORS = [
    (errors.NotPartitionable("x"), CutProblem.NOT_PARTITIONABLE),
    (GeometryError(H100_80_SXM, ()), CutProblem.NOT_PARTITIONABLE),
    (errors.ResetRequired("x"), CutProblem.RESET_REQUIRED),
    (errors.InUse("x", ()), CutProblem.IN_USE),
    (errors.NoRoom("x"), CutProblem.NO_ROOM),
    (errors.NotPermitted("x"), CutProblem.NOT_PERMITTED),
    (errors.DriverLost("x"), CutProblem.DRIVER_LOST),
    (errors.OutOfTime("g", (Create(HALF),)), CutProblem.OUT_OF_TIME),
    (errors.PartitionError("x"), CutProblem.FAILED),
]


@pytest.mark.parametrize(
    ("error", "problem"), ERRORS, ids=[type(each[0]).__name__ for each in ERRORS]
)
def test_each_error_has_its_problem_and_is_told_in_its_words(
    error: Exception, problem: CutProblem
) -> None:
    found = failed(7, None, error, 100.0)
    assert (found.problem, found.message, found.again_s) == (
        problem,
        str(error),
        100 + FIRST_PAUSE_S,
    )


def test_every_problem_of_the_api_can_be_told_but_for_those_of_nvidias_manager() -> None:
    of_manager = {CutProblem.MANAGER_FAILED, CutProblem.CHANGED_BY_HAND}
    assert {problem for _, problem in ERRORS} == set(CutProblem) - of_manager


@given(st.integers(0, 200))
def test_pauses_double_within_their_bound(failures: int) -> None:
    last = Tried(7, CutProblem.IN_USE, "", failures) if failures else None
    found = failed(7, last, errors.InUse("x" * 5000, ()), 0.0)
    assert found.failures == failures + 1
    assert found.again_s == min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0**failures)
    assert len(found.message) == MOST_MESSAGE


def test_told_is_each_gpu_that_is_there_and_each_that_should_be() -> None:
    seen = {"b": (whole(HALF), Slice(OTHER, 1, None, None)), "a": ()}
    tried = {"b": Tried(7), "c": Tried(7, CutProblem.DRIVER_LOST, "gone", 1, 5.0)}
    assert told(seen, tried) == (
        CutStatus("a"),
        CutStatus("b", (SliceStatus("MIG-0", "3g.40gb", 0),), 7),
        CutStatus("c", (), 7, CutProblem.DRIVER_LOST, "gone"),
    )
