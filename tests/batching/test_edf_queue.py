"""The batching policy, compared with a model that keeps everything in one sorted list."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tessera_core.batching.policy import EdfQueue, Entry

LIMIT = 40
SHAPES = st.sampled_from(["small", "large", None])
ROWS = st.integers(1, 9)
TIMES = st.integers(0, 30).map(float)


def linear(rows: int) -> float:
    return 1.0 + 0.5 * rows


class QueueMachine(RuleBasedStateMachine):
    """Every piece of work is, at any time, in exactly one of: waiting, taken, dropped, withdrawn."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: EdfQueue[int] = EdfQueue(LIMIT)
        self.waiting: dict[int, Entry[int]] = {}
        self.gone: dict[int, Entry[int]] = {}
        self.rows: dict[int, int] = {}
        self.shapes: dict[int, str | None] = {}
        self.order: dict[int, tuple[float, int]] = {}
        self.pushed = 0

    @rule(deadline=TIMES, rows=ROWS, shape=SHAPES)
    def push(self, deadline: float, rows: int, shape: str | None) -> None:
        fits = self.waiting_rows() + rows <= LIMIT
        item = self.pushed + 1
        entry = self.queue.push(item, deadline, rows, shape)
        assert (entry is not None) == fits
        if entry is not None:
            self.pushed = item
            self.waiting[item] = entry
            self.rows[item], self.shapes[item] = rows, shape
            self.order[item] = (deadline, item)

    @rule(now=TIMES, cap=st.integers(1, 12), known=st.booleans())
    def take(self, now: float, cap: int, known: bool) -> None:
        service_time = linear if known else lambda _: 0.0
        expected_batch, expected_dropped = self.expected(now, cap, service_time)
        taken = self.queue.take(now, cap, service_time)
        assert taken.batch == tuple(expected_batch)
        assert taken.dropped == tuple(expected_dropped)
        assert taken.rows == sum(self.rows[item] for item in taken.batch)
        assert taken.rows <= cap or len(taken.batch) == 1
        assert len({self.shapes[item] for item in taken.batch}) <= 1
        deadlines = [self.order[item] for item in taken.batch]
        assert deadlines == sorted(deadlines)
        for item in (*taken.batch, *taken.dropped):
            self.gone[item] = self.waiting.pop(item)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.waiting)))
        entry = self.gone[item] = self.waiting.pop(item)
        assert self.queue.withdraw(entry)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def withdraw_what_is_gone(self, data: st.DataObject) -> None:
        assert not self.queue.withdraw(self.gone[data.draw(st.sampled_from(sorted(self.gone)))])

    @rule()
    def drain(self) -> None:
        assert self.queue.drain() == tuple(sorted(self.waiting, key=self.order.__getitem__))
        self.gone |= self.waiting
        self.waiting.clear()

    @invariant()
    def counts_its_rows(self) -> None:
        assert self.queue.rows == self.waiting_rows() <= LIMIT
        assert bool(self.queue) == bool(self.waiting)

    def waiting_rows(self) -> int:
        return sum(self.rows[item] for item in self.waiting)

    def expected(self, now, cap, service_time) -> tuple[list[int], list[int]]:
        left = sorted(self.waiting, key=self.order.__getitem__)
        dropped: list[int] = []
        while left:
            head = left[0]
            alike = [item for item in left if self.shapes[item] == self.shapes[head]]
            target = max(self.rows[head], min(cap, sum(self.rows[item] for item in alike)))
            if self.order[head][0] < now + service_time(target):
                dropped.append(left.pop(0))
                continue
            batch = [head]
            for item in alike[1:]:
                if sum(self.rows[i] for i in batch) + self.rows[item] > cap:
                    break
                batch.append(item)
            return batch, dropped
        return [], dropped


QueueMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)
TestQueueAgainstAModel = QueueMachine.TestCase


def at_once(_: int) -> float:
    return 0.0


def test_a_late_head_is_dropped_and_the_batch_behind_it_keeps_its_size():
    queue: EdfQueue[str] = EdfQueue(100)
    queue.push("late", 2.0, 1)
    for name in "abcd":
        queue.push(name, 10.0, 1)
    # Alone "late" would finish at 1.5; in the batch of four that is due it would not (3.0).
    taken = queue.take(0.0, 4, linear)
    assert taken.dropped == ("late",)
    assert taken.batch == ("a", "b", "c", "d")


def test_a_head_that_just_makes_it_is_run():
    queue: EdfQueue[str] = EdfQueue(100)
    queue.push("exact", linear(1), 1)
    assert queue.take(0.0, 4, linear).batch == ("exact",)


def test_work_larger_than_the_cap_runs_alone():
    queue: EdfQueue[str] = EdfQueue(100)
    queue.push("large", 1.0, 9)
    queue.push("small", 2.0, 1)
    assert queue.take(0.0, 4, at_once).batch == ("large",)
    assert queue.take(0.0, 4, at_once).batch == ("small",)


def test_nothing_jumps_over_earlier_work_that_does_not_fit():
    queue: EdfQueue[str] = EdfQueue(100)
    queue.push("first", 1.0, 3)
    queue.push("wide", 2.0, 3)
    queue.push("narrow", 3.0, 1)
    assert queue.take(0.0, 4, at_once).batch == ("first",)
    assert queue.take(0.0, 4, at_once).batch == ("wide", "narrow")


def test_equal_deadlines_are_served_in_order_of_arrival():
    queue: EdfQueue[int] = EdfQueue(100)
    for item in range(1, 11):
        queue.push(item, 5.0, 1)
    assert queue.take(0.0, 10, at_once).batch == tuple(range(1, 11))


def test_the_shape_with_the_most_urgent_head_goes_first():
    queue: EdfQueue[str] = EdfQueue(100)
    queue.push("b1", 3.0, 1, "b")
    queue.push("a1", 2.0, 1, "a")
    queue.push("b2", 1.0, 1, "b")
    assert queue.take(0.0, 8, at_once).batch == ("b2", "b1")
    assert queue.take(0.0, 8, at_once).batch == ("a1",)


@pytest.mark.parametrize("shape_of", [lambda i: None, lambda i: i], ids=["one", "many"])
def test_memory_stays_bounded_when_everything_is_withdrawn(shape_of):
    queue: EdfQueue[int] = EdfQueue(1_000)
    queue.push(1, 1e9, 1, shape_of(0))  # stays, so that the heap is never simply thrown away
    for i in range(1, 20_000):
        entry = queue.push(i, float(i), 1, shape_of(i))
        assert entry is not None
        assert queue.withdraw(entry)
    kept = [entry for group in queue._groups.values() for *_, entry in group.heap]
    assert queue.rows == 1
    assert len(kept) < 100
    assert len(queue._groups) == 1
