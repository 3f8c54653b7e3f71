"""The waiting room: order, bounds and the pace at which it is emptied."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from support.function_plane import FunctionPlane
from tessera_runtime.dataplane import Done, InferCall, InferReply, InputTensor
from tessera_runtime.dispatch.hold import Hold
from tessera_runtime.dispatch.statistics import ServiceStatistics
from tessera_runtime.dispatch.waiting import eventually
from tessera_runtime.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServeError,
    Unavailable,
)


@dataclass
class Room:
    """A hold, and the service that it waits for: not ready until it is opened."""

    most_s: float = 60.0
    burst: int = 4
    plane: FunctionPlane = field(default_factory=lambda: FunctionPlane({}))
    submitted: list[tuple[str, Done]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    told: dict[str, object] = field(default_factory=dict)
    refuses: ServeError | None = None

    def __post_init__(self) -> None:
        self.service = SimpleNamespace(
            ready=False, burst=lambda: self.burst, statistics=ServiceStatistics()
        )
        self.hold = Hold(lambda: self.service, self.submit, self.most_s)

    def submit(self, call: InferCall, done: Done, since: float):
        for slot in call.slots:
            slot.release()
        if self.refuses is not None:
            raise self.refuses
        self.submitted.append((call.id, done))
        return SimpleNamespace(cancel=lambda: self.left.append(call.id))

    def ask(self, name: str, rows: int = 1, timeout_s: float | None = None, limit: int = 100):
        slot = self.plane.allocate(4)
        x = InputTensor("x", "UINT8", (rows,), slot, 0, rows)
        call = InferCall("test.m", "", name, (x,), (slot,), timeout_s=timeout_s)
        try:
            return self.hold.add(call, lambda outcome: self.told.update({name: outcome}), limit)
        except ServeError:
            slot.release()
            raise

    async def open(self) -> None:
        self.service.ready = True
        self.hold.release_soon()
        await asyncio.sleep(0)

    async def answer(self, count: int = 1) -> None:
        for _ in range(count):
            name, done = self.submitted.pop(0)
            done(InferReply("test.m", "1", name, ()))
            await asyncio.sleep(0)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.submitted]


async def test_requests_wait_until_the_service_is_ready_and_go_in_order():
    room = Room()
    for name in "abc":
        room.ask(name)
    await asyncio.sleep(0)
    assert (len(room.hold), room.names) == (3, [])
    await room.open()
    assert (len(room.hold), room.names) == (0, ["a", "b", "c"])
    await room.answer(3)
    assert all(isinstance(room.told[name], InferReply) for name in "abc")
    room.plane.assert_clean()


async def test_no_more_go_at_once_than_can_be_answered_in_time():
    room = Room(burst=4)
    for name, rows in (("a", 2), ("b", 2), ("c", 3), ("d", 1)):
        room.ask(name, rows)
    await room.open()
    assert room.names == ["a", "b"]
    await room.answer()
    assert room.names == ["b"], "the next has three rows"
    await room.answer()
    assert room.names == ["c", "d"]


async def test_what_is_larger_than_all_that_fits_goes_alone():
    room = Room(burst=4)
    room.ask("a", rows=9)
    room.ask("b")
    await room.open()
    assert room.names == ["a"]
    await room.answer()
    assert room.names == ["b"]


async def test_one_too_many_is_refused_and_told_how_many_wait():
    room = Room()
    room.ask("a", limit=2)
    room.ask("b", limit=2)
    with pytest.raises(Overloaded, match="2 requests wait for it, at most 2"):
        room.ask("c", limit=2)
    await room.open()
    room.ask("d", limit=2)
    await asyncio.sleep(0)
    assert room.names == ["a", "b", "d"]
    room.plane.assert_clean()


@pytest.mark.parametrize(
    ("timeout_s", "most_s", "error"),
    [(0.01, 60.0, DeadlineExceeded), (60.0, 0.01, Unavailable), (None, 0.01, Unavailable)],
)
async def test_a_request_waits_as_long_as_it_may(
    timeout_s: float | None, most_s: float, error: type[ServeError]
):
    room = Room(most_s)
    room.ask("a", timeout_s=timeout_s)
    assert await eventually(lambda: bool(room.told), 10.0)
    assert type(room.told["a"]) is error
    assert len(room.hold) == 0
    assert room.service.statistics.total == 1
    await room.open()
    assert room.names == []
    room.plane.assert_clean()


async def test_who_leaves_while_waiting_is_forgotten():
    room = Room()
    first, _ = room.ask("a"), room.ask("b")
    first.cancel()
    first.cancel()
    await room.open()
    assert (room.names, room.told) == (["b"], {})
    room.plane.assert_clean()


async def test_who_leaves_afterwards_leaves_the_service_and_makes_room():
    room = Room(burst=1)
    first = room.ask("a")
    room.ask("b")
    await room.open()
    first.cancel()
    await asyncio.sleep(0)
    assert (room.left, room.names) == (["a"], ["a", "b"])


async def test_a_request_that_turns_out_to_be_wrong_is_told_and_the_next_goes():
    room = Room(burst=1, refuses=InvalidRequest("inputs: no"))
    room.ask("a")
    room.ask("b")
    await room.open()
    assert await eventually(lambda: len(room.told) == 2, 10.0)
    assert {type(outcome) for outcome in room.told.values()} == {InvalidRequest}
    room.plane.assert_clean()


async def test_when_the_service_goes_all_are_refused():
    room = Room()
    for name in "ab":
        room.ask(name)
    room.hold.refuse_all(NotFound("gone"))
    assert [type(outcome) for outcome in room.told.values()] == [NotFound, NotFound]
    assert len(room.hold) == 0
    room.plane.assert_clean()
