"""Who may name which service."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_runtime.dataplane import Keys
from tessera_runtime.dispatch.access import MOST_PRESENTED, Gates
from tessera_runtime.errors import Unauthorized

ONE, TWO, FREE = "vision.digits", "audio.digits", "vision.free"
KEYS = st.lists(st.text("abc", min_size=1, max_size=3), max_size=4).map(tuple)


def gates(keys: dict[str, Keys] | None = None, **needed: bool) -> Gates:
    found = Gates()
    found.set({ONE: True, TWO: True, FREE: False} | needed, (), keys or {})
    return found


def is_open(found: Gates, name: str, *keys: str) -> bool:
    try:
        found.check(name, keys)
    except Unauthorized:
        return False
    return True


def test_a_service_is_closed_until_keys_were_handed_over() -> None:
    found = gates()
    assert not is_open(found, ONE)
    assert not is_open(found, ONE, "")
    assert not is_open(found, ONE, "k")
    assert found.is_closed(ONE)
    found.set({ONE: True}, (), {ONE: ("k",)})
    assert is_open(found, ONE, "k")
    assert not found.is_closed(ONE)


def test_a_service_that_asks_for_none_is_open() -> None:
    found = gates()
    assert is_open(found, FREE)
    assert is_open(found, FREE, "anything")
    assert is_open(found, "nobody.knows")
    assert not found.is_closed(FREE)


def test_a_key_is_of_one_service() -> None:
    found = gates({ONE: ("mine",), TWO: ("theirs",)})
    assert is_open(found, ONE, "mine")
    assert not is_open(found, ONE, "theirs")
    assert not is_open(found, TWO, "mine")


@given(KEYS, KEYS)
def test_one_of_the_keys_is_enough_and_less_is_not(known: Keys, given_keys: Keys) -> None:
    found = gates({ONE: known})
    assert is_open(found, ONE, *given_keys) == bool(set(known) & set(given_keys))
    assert found.open_to(ONE, given_keys) == is_open(found, ONE, *given_keys)


@pytest.mark.parametrize("close", [("k", "K"), ("key", "ke"), ("key", "keys"), ("key", "key ")])
def test_almost_is_not_enough(close: tuple[str, str]) -> None:
    known, said = close
    assert not is_open(gates({ONE: (known,)}), ONE, said)


def test_new_keys_replace_the_old_ones_and_none_leave_none() -> None:
    found = gates({ONE: ("old",)})
    found.set({ONE: True}, (), {ONE: ("old", "new")})
    assert is_open(found, ONE, "old")
    assert is_open(found, ONE, "new")
    found.set({ONE: True}, (), {ONE: ("new",)})
    assert not is_open(found, ONE, "old")
    found.set({ONE: True}, (), {ONE: ()})
    assert not is_open(found, ONE, "new")
    assert found.is_closed(ONE)


def test_who_hands_over_nothing_changes_nothing() -> None:
    found = gates({ONE: ("k",)})
    found.set({ONE: True}, (), {})
    assert is_open(found, ONE, "k")


def test_what_still_answers_stays_closed_and_what_comes_back_is_closed() -> None:
    """Calls of peers reach a service that goes; one of the same name that comes later has keys of its own."""
    found = gates({ONE: ("k",)})
    found.set({}, {ONE}, {})
    assert not is_open(found, ONE)
    assert is_open(found, ONE, "k")
    found.set({ONE: True}, {ONE}, {})
    assert not is_open(found, ONE, "k")
    found.set({ONE: True}, (), {ONE: ("l",)})
    found.set({}, (), {})
    found.set({ONE: True}, (), {})
    assert not is_open(found, ONE, "l")


def test_a_service_that_asks_no_more_is_open_and_has_forgotten() -> None:
    found = gates({ONE: ("k",)})
    found.set({ONE: False}, (), {})
    assert is_open(found, ONE)
    found.set({ONE: True}, (), {})
    assert not is_open(found, ONE, "k")


def test_what_is_said_tells_what_to_do_and_no_key() -> None:
    found = gates({ONE: ("hunter2",)})
    for keys, words in (((), "Authorization: Bearer"), (("guess",), "none of its keys")):
        with pytest.raises(Unauthorized, match=words) as caught:
            found.check(ONE, keys)
        assert "hunter2" not in str(caught.value)
        assert "guess" not in str(caught.value)
    with pytest.raises(Unauthorized, match="no valid key now"):
        found.check(TWO, ("k",))
    assert found.refused() == {ONE: 2, TWO: 1}


def test_a_call_to_a_peer_carries_few_keys_and_a_stranger_costs_few_looks() -> None:
    many = tuple(f"k{i}" for i in range(MOST_PRESENTED + 3))
    found = gates({ONE: many})
    assert found.presented(ONE) == many[:MOST_PRESENTED]
    assert found.presented(FREE) == ()
    assert not is_open(found, ONE, *["x"] * MOST_PRESENTED, many[0])
    assert is_open(found, ONE, many[-1])
