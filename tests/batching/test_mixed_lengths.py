"""Work of different lengths in one queue: what a batch holds, and when lengths share one."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.batching.policy import EdfQueue, Lengths, Padded

LONGEST = 16
SHAPES = [Padded(length / LONGEST, ((length, 3), (length,))) for length in (1, 2, 4, 8, 16)]
ONE_INSTANCE = Lengths(1.0, 64, 1)
laws = st.sampled_from(
    [
        lambda rows: 1.0 + 0.5 * rows,
        lambda rows: 0.01 + rows,
        lambda rows: max(4.0, rows),
        lambda rows: 0.0,
    ]
)
pieces = st.lists(
    st.tuples(st.sampled_from(SHAPES), st.integers(1, 5), st.integers(0, 60).map(float)),
    max_size=40,
)


@given(
    pieces, laws, st.integers(1, 12), st.sampled_from([1.0, 0.25]), st.integers(0, 7), st.booleans()
)
@settings(deadline=None, max_examples=400)
def test_what_a_batch_holds(work, law, cap, mean, mixing, urgent) -> None:
    queue: EdfQueue[int] = EdfQueue(10**6)
    lengths = Lengths(mean, 32, mixing)
    for number, (shape, rows, deadline) in enumerate(work):
        queue.push(number, deadline if urgent else 1e6, rows, shape)
    left: set[int] = set(range(len(work)))
    now = 0.0
    while queue:
        waiting = sorted(left, key=lambda each: (work[each][2] if urgent else 0, each))
        taken = queue.take(now, cap, law, lengths)
        left -= {*taken.batch, *taken.dropped}
        waiting = [each for each in waiting if each not in taken.dropped]
        assert taken.rows == sum(work[each][1] for each in taken.batch)
        if not taken.batch:
            continue
        assert isinstance(taken.shape, Padded)
        assert taken.batch[0] == waiting[0], "the most urgent is in the next batch"
        assert all(taken.shape.holds(work[each][0]) for each in taken.batch)
        assert taken.shape in {work[each][0] for each in taken.batch}
        assert taken.work == pytest.approx(taken.rows * taken.shape.size / mean)
        if (
            len(taken.batch) > 1
        ):  # of work, as much as the cap is: to the nearest row of the longest
            assert taken.work <= cap + taken.shape.size / mean / 2 + 1e-9
            assert taken.rows <= 32
        assert mixing or len({work[each][0] for each in taken.batch}) == 1
        if urgent:  # whose time is known is in time
            assert all(work[each][2] >= now + law(taken.work) for each in taken.batch[:1])
        for shape in SHAPES:
            ours = [each for each in waiting if work[each][0] is shape]
            chosen = [each for each in taken.batch if work[each][0] is shape]
            assert chosen == ours[: len(chosen)], "nothing jumps over earlier work of its shape"
        now += 1.0
    assert not left


def take(work: dict[str, int], law, cap=8, lengths: Lengths | None = ONE_INSTANCE):
    queue: EdfQueue[str] = EdfQueue(1000)
    for name, length in work.items():
        queue.push(name, inf, 1, next(s for s in SHAPES if s.row_shapes[0][0] == length))
    return queue.take(0.0, cap, law, lengths), queue


def fixed_and_linear(rows: float) -> float:
    return 1.0 + rows


def test_short_ones_fill_a_batch_as_far_as_they_take_less_time_in_it() -> None:
    taken, queue = take({"a": 4, "b": 2, "c": 1, "long": 16}, fixed_and_linear)
    assert set(taken.batch) == {"a", "b", "c"}
    assert taken.shape is not None
    assert taken.rows * SHAPES[2].size == taken.work
    assert queue.take(0.0, 8, fixed_and_linear, Lengths(1.0, 64, 1)).batch == ("long",)


def test_where_small_batches_cost_as_much_as_large_ones_all_share_one() -> None:
    taken, _ = take({"a": 16, "b": 1, "c": 4, "d": 16}, lambda rows: max(8.0, rows))
    assert set(taken.batch) == {"a", "b", "c", "d"}


def test_where_padding_costs_more_than_a_batch_lengths_stay_apart() -> None:
    taken, _ = take({"a": 1, "b": 16}, lambda rows: 0.001 + rows)
    assert taken.batch == ("a",)


def test_with_other_instances_short_work_is_sooner_done_by_one_of_them() -> None:
    work, law = {"long": 16, "short": 8}, lambda rows: 4 + rows
    assert take(work, law, lengths=Lengths(1.0, 64, 1))[0].batch == ("long", "short")
    assert take(work, law, lengths=Lengths(1.0, 64, 7))[0].batch == ("long",)


def test_shapes_that_do_not_hold_each_other_never_mix() -> None:
    queue: EdfQueue[str] = EdfQueue(10)
    queue.push("tall", inf, 1, Padded(0.5, ((4, 8),)))
    queue.push("wide", inf, 1, Padded(0.5, ((8, 4),)))
    queue.push("other inputs", inf, 1, Padded(0.5, ((8, 4), (1,))))
    lengths = Lengths(1.0, 64, 1)
    assert len({queue.take(0.0, 8, lambda _: 1.0, lengths).batch for _ in range(3)}) == 3


def test_rows_of_any_length_fill_a_batch_by_the_time_that_they_take() -> None:
    lengths = Lengths(0.25, 64, 0)  # the mean row is a quarter of the longest
    for length, most in ((1, 16), (4, 4), (16, 1)):
        taken, _ = take({str(i): length for i in range(30)}, fixed_and_linear, 4, lengths)
        assert taken.rows == most
        assert taken.work == pytest.approx(4)


def test_shapes_without_lengths_are_counted_in_rows() -> None:
    taken, _ = take({str(i): 1 for i in range(30)}, fixed_and_linear, 4, None)
    assert (taken.rows, taken.work) == (4, 4.0)
