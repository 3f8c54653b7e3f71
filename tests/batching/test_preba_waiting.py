"""PREBA's batching: what its queue promises whatever comes, and how long it waits."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.batching.preba import Limit, WaitingQueue, limits, queue_ms
from tessera_core.perf import LatencyProfile

some_limits = st.lists(
    st.builds(Limit, st.integers(1, 6), st.sampled_from([0.0, 2.0, 5.0])), min_size=1, max_size=4
)
coming = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 4.0]), st.integers(0, 3)), min_size=1, max_size=60
)


@given(some_limits, coming, st.data())
@settings(deadline=None, max_examples=300)
def test_batches_are_bounded_in_order_and_in_time_while_an_instance_is_idle(
    each_limit: list[Limit], gaps: list[tuple[float, int]], data: st.DataObject
) -> None:
    queue: WaitingQueue[int] = WaitingQueue(each_limit)
    came: dict[int, tuple[float, int]] = {}
    left: list[int] = []
    now = 0.0
    for number, (gap, bucket) in enumerate(gaps):
        now += gap
        while queue.due() <= now:  # an instance is idle: each batch goes when it is due
            check(queue, max(queue.due(), 0.0), each_limit, came, left)
        came[number] = (now, bucket % len(each_limit))
        queue.push(number, bucket % len(each_limit), now)
        if data.draw(st.booleans()):
            each_limit = [Limit(limit.batch, limit.wait / 2) for limit in each_limit]
            queue.limits = tuple(each_limit)
    while queue.due() < inf:
        check(queue, max(queue.due(), now), each_limit, came, left)
    assert sorted(left) == sorted(came)
    assert len(queue) == 0


def check(
    queue: WaitingQueue[int],
    now: float,
    each_limit: list[Limit],
    came: dict[int, tuple[float, int]],
    left: list[int],
) -> None:
    formed = queue.take(now)
    assert formed is not None
    buckets = [came[item][1] for item in formed.items]
    assert formed.bucket == max(buckets)
    assert len(formed.items) <= each_limit[formed.bucket].batch
    left += formed.items
    for bucket in set(buckets):
        ours = [item for item in left if came[item][1] == bucket]
        assert ours == sorted(ours), "first in, first out"
    waiting = [came[item] for item in came if item not in left]
    assert all(now < since + each_limit[bucket].wait for since, bucket in waiting) or (
        queue.due() <= now
    ), "who has waited long enough is given next"


def test_it_gives_nothing_before_its_time() -> None:
    queue: WaitingQueue[str] = WaitingQueue([Limit(4, 10.0)])
    assert queue.due() == inf
    queue.push("a", 0, 1.0)
    queue.push("b", 0, 5.0)
    assert queue.due() == 11.0
    assert queue.take(10.9) is None
    assert queue.take(11.0) == (("a", "b"), 0)


def test_a_full_line_waits_for_nothing() -> None:
    queue: WaitingQueue[str] = WaitingQueue([Limit(2, 10.0), Limit(2, 10.0)])
    queue.push("a", 1, 0.0)
    queue.push("b", 0, 1.0)
    queue.push("c", 0, 1.0)
    assert queue.take(1.0) == (("b", "c"), 0)
    assert queue.take(1.0) is None


def test_a_short_batch_takes_from_beside_as_many_as_its_longest_allows() -> None:
    queue: WaitingQueue[str] = WaitingQueue([Limit(8, 5.0), Limit(4, 5.0), Limit(2, 5.0)])
    queue.push("m", 1, 0.0)
    for short in "abcdef":
        queue.push(short, 0, 1.0)
    queue.push("l", 2, 1.0)
    assert queue.take(5.0) == (("m", "a", "b", "c"), 1)
    assert queue.take(6.0) == (("d", "e", "f"), 0)  # with "l" it would be one too many
    assert queue.take(6.0) == (("l",), 2)


def test_instances_and_rate_set_how_long_it_waits() -> None:
    assert queue_ms(35.0, 1) == 35.0
    assert queue_ms(35.0, 7) == 5.0
    assert queue_ms(35.0, 7, rate_per_s=199.0) == 0.0  # less than one more comes in 5 ms
    assert queue_ms(35.0, 7, rate_per_s=200.0) == 5.0


def test_limits_are_the_knees_of_what_was_measured() -> None:
    short, long = LatencyProfile.from_fit(1.0, 4.0), LatencyProfile.from_fit(8.0, 3.5)
    # 0.9 of the throughput at 128: from 32 rows (36 ms) on, and with eight times the work from 4.
    assert limits([short, long], 4) == (Limit(32, 9.0), Limit(4, 8.875))
    assert limits([short, long], 4, rate_per_s=10.0) == (Limit(32, 0.0), Limit(4, 0.0))


def test_knees_over_the_budget_are_refused() -> None:
    with pytest.raises(ValueError, match=r"profiles\[1\].*35 ms"):
        limits(
            [LatencyProfile.from_fit(1.0, 3.0), LatencyProfile.from_fit(8.0, 4.0)],
            1,
            budget_ms=35,
        )
    with pytest.raises(ValueError, match="instances"):
        limits([], 0)
