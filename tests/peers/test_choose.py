"""Where work runs: the shortest expected wait, and here when leaving would gain nothing worth it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_runtime.dispatch.choose import MARGIN, Place, choose

PATIENCE_S = 0.01

places = st.builds(Place, st.floats(0, 1e6), st.floats(0, 1e6))


@pytest.mark.parametrize(
    ("local", "peers", "wanted"),
    [
        (None, [], None),
        (Place(0, 100), [], "here"),
        (Place(10**6, 1), [], "here"),
        (None, [Place(0, 100)], 0),
        (None, [Place(5, 100), Place(0, 100)], 1),
        (None, [Place(5, 1000), Place(0, 100)], 0),
        (None, [Place(0, 100), Place(0, 100)], 0),
        (None, [Place(0, 0), Place(9, 1)], 1),
        (None, [Place(0, 0)], 0),
        (Place(0, 100), [Place(0, 100)], "here"),
        (Place(0, 100), [Place(0, 200)], "here"),
        (Place(3, 100), [Place(0, 200)], 0),
        (Place(1, 100), [Place(0, 100)], "here"),
        (Place(2, 100), [Place(0, 100)], 0),
        (Place(2, 100), [Place(2, 100)], "here"),
        (Place(0, 0), [Place(0, 1)], 0),
        (Place(0, 0), [Place(0, 0)], "here"),
    ],
)
def test_a_row_goes_where_it_is_answered_first(
    local: Place | None, peers: list[Place], wanted: object
):
    choice = choose(1, local, peers, PATIENCE_S)
    if wanted is None:
        assert choice is None
    else:
        assert choice is not None
        assert choice.peer == (None if wanted == "here" else wanted)


@given(st.integers(1, 512), places | st.none(), st.lists(places, max_size=6))
def test_no_place_would_be_much_sooner(rows: int, local: Place | None, peers: list[Place]):
    choice = choose(rows, local, peers, PATIENCE_S)
    if choice is None:
        assert local is None
        assert not peers
        return
    best_s = min([peer.wait_s(rows) for peer in peers], default=math.inf)
    if choice.peer is None:
        assert local is not None
        assert choice.wait_s == local.wait_s(rows) <= MARGIN * best_s + PATIENCE_S
    else:
        assert choice.wait_s == peers[choice.peer].wait_s(rows) == best_s
        assert local is None or local.wait_s(rows) > best_s + PATIENCE_S


@given(st.integers(1, 512), places, st.lists(places, min_size=1, max_size=6), st.floats(1, 1e6))
def test_more_work_at_the_chosen_peer_never_draws_more_to_it(
    rows: int, local: Place, peers: list[Place], more: float
):
    choice = choose(rows, local, peers, PATIENCE_S)
    other = next((i for i in range(len(peers)) if choice is None or i != choice.peer), None)
    if other is None:
        return
    busier = [Place(p.rows + more, p.rate) if i == other else p for i, p in enumerate(peers)]
    again = choose(rows, local, busier, PATIENCE_S)
    assert again == choice
