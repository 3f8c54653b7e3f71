"""How many pods a pool has, and which of them go: never one with something on it, and none too early."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.objects import pool
from tessera_core.api import RuntimePool
from tessera_operator.sizing import Change, Idle, Nodes, size

DELAY_S = 300.0


def sized(least: int, most: int, percent: str = "0") -> RuntimePool:
    return pool(size={"min": least, "max": most, "headroom": {"percent": percent}})


def nodes(
    filled: int = 0,
    idle: int = 0,
    kept: int = 0,
    leaving: int = 0,
    left: int = 0,
    other: int = 0,
    closed: int = 0,
) -> Nodes:
    return Nodes(
        filled=frozenset(f"f{index}" for index in range(filled)),
        kept=frozenset(f"k{index}" for index in range(kept)),
        idle={f"i{index}": float(index) for index in range(idle)},
        leaving=frozenset(f"l{index}" for index in range(leaving)),
        left=frozenset(f"e{index}" for index in range(left)),
        other=other,
        closed=closed,
    )


@pytest.mark.parametrize(
    ("bounds", "present", "missing", "replicas", "released"),
    [
        ((0, 9), nodes(), 0, 0, ()),
        ((2, 9), nodes(), 0, 2, ()),
        ((0, 9), nodes(3, idle=2), 0, 3, ("i0", "i1")),
        ((4, 9), nodes(3, idle=2), 0, 4, ("i0",)),
        ((0, 9), nodes(5), 2, 7, ()),
        # What is idle is part of what is missing, and not given back while anything is.
        ((0, 9), nodes(3, idle=2), 2, 5, ()),
        ((0, 9), nodes(3, idle=2), 3, 6, ()),
        ((0, 9), nodes(3, idle=2), 1, 5, ()),
        ((0, 6), nodes(5), 4, 6, ()),
        ((0, 0), nodes(), 3, 0, ()),
        ((0, 9, "10"), nodes(3, idle=2), 0, 4, ("i0",)),
        ((0, 9, "50"), nodes(4, idle=1), 0, 6, ()),
        ((0, 5, "100"), nodes(4, idle=1), 0, 5, ()),
        ((0, 9), nodes(1, kept=2), 0, 3, ()),
        # Who leaves is replaced while it serves, and goes without delay once it is empty.
        ((2, 2), nodes(1, leaving=1), 0, 3, ()),
        ((0, 9), nodes(2, left=1), 0, 2, ("e0",)),
        # A pod whose node is not known keeps its place.
        ((0, 9), nodes(2, other=1), 0, 3, ()),
        # A node that is cut has no pod meanwhile, and no other node comes in its place.
        ((2, 9), nodes(1, closed=1), 0, 1, ()),
        ((0, 9), nodes(1, closed=1), 1, 1, ()),
        ((0, 9), nodes(1, closed=1), 2, 2, ()),
        ((0, 9), nodes(0, closed=1), 0, 0, ()),
        ((2, 2), nodes(0, other=1, closed=1), 0, 1, ()),
        # The maximum was lowered: nothing that is used is taken, what is idle goes at once.
        ((0, 2), nodes(3, idle=1), 0, 3, ("i0",)),
    ],
)
def test_a_pool_has_the_pods_that_are_needed(
    bounds: tuple[Any, ...], present: Nodes, missing: int, replicas: int, released: tuple[str, ...]
) -> None:
    found = size(sized(*bounds), present, missing, DELAY_S + 10)
    assert (found.replicas, found.released) == (replicas, released)


def test_a_node_is_given_back_when_nothing_was_on_it_for_long_enough() -> None:
    present = nodes(1, idle=2)  # since 0 s and 1 s
    for now_s, released in (
        (DELAY_S - 0.5, ()),
        (DELAY_S, ("i0",)),
        (DELAY_S + 1, ("i0", "i1")),
    ):
        found = size(sized(0, 9), present, 0, now_s)
        assert (found.released, found.replicas) == (released, 3 - len(released))


def test_the_time_without_anything_begins_anew_when_something_comes() -> None:
    idle = Idle()
    assert idle.see({"a", "b"}, 1.0) == {"a": 1.0, "b": 1.0}
    assert idle.see({"b"}, 2.0) == {"b": 1.0}
    assert idle.see({"a", "b"}, 3.0) == {"a": 3.0, "b": 1.0}


@pytest.mark.parametrize(
    ("present", "missing", "change"),
    [
        (nodes(2), 0, Change.STEADY),
        (nodes(2), 1, Change.GROWING),
        (nodes(2, idle=1), 1, Change.STEADY),
        (nodes(2, idle=1), 0, Change.SHRINKING),
        (nodes(2, left=1), 0, Change.SHRINKING),
        (nodes(2), 3, Change.GROWING),
        (nodes(4), 1, Change.AT_MAXIMUM),
    ],
)
def test_users_are_told_what_changes(present: Nodes, missing: int, change: Change) -> None:
    assert size(sized(0, 4), present, missing, 2 * DELAY_S).change is change


def test_a_pool_that_could_help_but_for_its_maximum_says_so() -> None:
    assert size(sized(0, 2), nodes(2), 0, 0.0, full=True).change is Change.AT_MAXIMUM


PRESENT = st.builds(
    nodes, *(st.integers(0, 6) for _ in range(2)), *(st.integers(0, 3) for _ in range(4))
)


@given(
    PRESENT,
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from(("0", "7.5", "100")),
    st.integers(0, 5),
    st.sampled_from((0.0, DELAY_S, 2 * DELAY_S)),
)
def test_whatever_it_is_only_emptied_pods_end(
    present: Nodes, least: int, more: int, percent: str, missing: int, now_s: float
) -> None:
    found = size(sized(least, least + more, percent), present, missing, now_s)
    bound = present.staying + len(present.leaving) + present.other
    given_back = set(found.released) - present.left
    # A ReplicaSet controller finds no pod with a node that would be one too many.
    assert found.replicas >= bound - len(given_back)
    assert given_back <= present.idle.keys()
    assert set(found.released) >= present.left
    # Never below the least, nor what is used; never above the most but for what is there.
    staying = found.replicas - len(present.leaving)
    assert staying >= max(least, len(present.filled) + len(present.kept))
    assert found.replicas <= max(least + more + len(present.leaving), bound - len(given_back))
    assert not (missing and given_back and present.staying <= least + more)
