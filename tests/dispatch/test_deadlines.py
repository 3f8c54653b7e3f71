"""One timer for all requests: each is told once when it is due, and forgotten when it was answered."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import weakref
from dataclasses import dataclass, field

import pytest

from tessera_runtime.dispatch.deadlines import COMPACT_AT, Deadlines


@dataclass(eq=False)
class Waiting:
    """What :class:`Deadlines` knows of a request and of its service."""

    deadline: float
    told: asyncio.Queue[Waiting] = field(default_factory=asyncio.Queue)
    answered: bool = False

    @property
    def service(self) -> Waiting:
        return self

    def expire(self, request: Waiting, now: float) -> None:
        assert request is self
        assert now >= self.deadline
        self.told.put_nowait(self)


async def test_requests_are_told_in_the_order_of_their_deadlines():
    deadlines, told = Deadlines(), asyncio.Queue()
    now = time.monotonic()
    waiting = [Waiting(now + i / 500, told) for i in range(40)]
    for request in random.Random(1).sample(waiting, len(waiting)):
        deadlines.add(request)
    assert [await told.get() for _ in waiting] == waiting


async def test_a_deadline_in_the_past_is_told_at_once():
    deadlines, told = Deadlines(), asyncio.Queue()
    deadlines.add(Waiting(time.monotonic() + 3600, told))
    late = Waiting(time.monotonic() - 1, told)
    deadlines.add(late)
    assert await told.get() is late


async def test_an_answered_request_is_not_told():
    deadlines, told = Deadlines(), asyncio.Queue()
    now = time.monotonic()
    answered, open_ = Waiting(now + 0.001, told), Waiting(now + 0.01, told)
    for request in (answered, open_):
        deadlines.add(request)
    answered.answered = True
    assert await told.get() is open_
    assert told.empty()


@pytest.mark.parametrize("nearer_s", [0.0, -1.0], ids=["in order", "ever nearer"])
async def test_answered_requests_with_far_deadlines_are_forgotten(nearer_s: float):
    deadlines, told = Deadlines(), asyncio.Queue()
    now = time.monotonic()
    first = Waiting(now + 1e3, told)
    deadlines.add(first)
    requests = []
    for i in range(10 * COMPACT_AT):
        request = Waiting(now + 9e5 + nearer_s * i, told)
        deadlines.add(request)
        request.answered = True
        requests.append(weakref.ref(request))
    del request
    gc.collect()
    assert sum(each() is not None for each in requests) <= 2 * COMPACT_AT


async def test_open_requests_are_never_forgotten_however_many():
    deadlines, told = Deadlines(), asyncio.Queue()
    count = 2 * COMPACT_AT + 1
    due = time.monotonic() + 0.05
    for i in range(count):
        deadlines.add(Waiting(due if i % 2 else due - 1, told))
    for _ in range(count):
        await told.get()
