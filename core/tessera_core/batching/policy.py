"""Which queued work forms the next batch.

One queue per member, one policy for the dispatcher, the simulator and whatever the planner assumes:

- A batch is formed when an instance is free, never before: work that waits can still be joined by later
  work, and an idle instance never waits for company, at most for its turn (:mod:`~tessera_core.batching.spacing`).
- Earliest deadline first. Work of equal shape goes together; the shape whose head is most urgent goes first.
- A head that cannot finish in the batch that is about to be formed is dropped, the batch is not shrunk to
  save it: shrinking lets one late request halve the throughput of everybody behind it, and under overload
  every head is late (the collapse that Nexus, SOSP'19, and Clockwork, OSDI'20, avoid the same way).
- Work never jumps over earlier work of its own shape, also when it would fit and the earlier one does not.
- Where lengths vary, a batch holds as much work as ``cap`` rows of the mean length, and takes in work of the lengths next
  to its own, padded to the longest, where all that wait together wait less (docs/decisions/0041).

The queue is a plain data structure: time is an argument, the service time is a function of the batch size.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping
from math import inf
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

ServiceTime = Callable[[float], float]
"""Seconds that a batch of so many rows, of the mean length where lengths vary, is expected to take."""


class Padded(NamedTuple):
    """The shape of work whose inputs were padded up to buckets, and may be padded further."""

    size: float
    """Elements of a row over those of the longest bucket: above 0, at most 1."""
    row_shapes: tuple[tuple[int, ...], ...]
    """Of each input."""

    def holds(self, other: Padded) -> bool:
        """Whether rows of ``other`` can be padded up to this."""
        return len(self.row_shapes) == len(other.row_shapes) and all(
            len(mine) == len(theirs) and all(m >= t for m, t in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self.row_shapes, other.row_shapes, strict=True)
        )


class Lengths(NamedTuple):
    """What batches of :class:`Padded` shapes are formed by."""

    mean: float
    """Cost of the rows that ``cap`` and the service time count in."""
    most: int
    """Rows of a batch, however short they are."""
    mixing: int
    """Instances that take from the queue; 0: only work of equal shape shares a batch."""
    costs: Mapping[Padded, float] = MappingProxyType({})
    """Of a row, over one of the longest, where it is known; elsewhere it is the row's size."""


class _Terms(NamedTuple):
    """Of one look at the queue, for work of different lengths."""

    now: float
    cap: int
    service_time: ServiceTime
    lengths: Lengths

    def cost(self, shape: Padded) -> float:
        """Of a row of ``shape``, in rows of the mean length."""
        return self.lengths.costs.get(shape, shape.size) / self.lengths.mean

    def limit(self, shape: Padded) -> int:
        """Rows of ``shape`` that take as long as ``cap`` of the mean length, to the nearest: one at least."""
        rows = int(self.cap / self.cost(shape) + 0.5)
        return max(1, min(self.lengths.most, rows))

    def work(self, rows: int, shape: Padded) -> float:
        """So many rows of ``shape`` in rows of the mean length."""
        return rows * self.cost(shape)

    def seconds(self, rows: int, shape: Padded) -> float:
        """That they are expected to take; none take nothing."""
        return self.service_time(self.work(rows, shape)) if rows else 0.0


class Entry(Generic[T]):
    """One piece of work in the queue; the handle with which it can be withdrawn."""

    __slots__ = ("deadline", "item", "rows", "shape")

    def __init__(self, deadline: float, rows: int, item: T, shape: Hashable) -> None:
        self.deadline = deadline
        """When the answer must be there, seconds on the caller's clock."""
        self.rows = rows
        self.item: T | None = item
        """None once it was taken, dropped or withdrawn."""
        self.shape = shape


class Taken(NamedTuple, Generic[T]):
    """What one look at the queue decided."""

    batch: tuple[T, ...]
    """Work to run now, together. Empty when nothing is left to run."""
    rows: int
    work: float
    """The same in rows of the mean length."""
    shape: Hashable
    """What its inputs are padded to, where that is :class:`Padded`."""
    dropped: tuple[T, ...]
    """Heads that could not finish in time in the batch that was about to be formed."""


class _Group(Generic[T]):
    """The work of one shape: a heap in which withdrawn entries stay until they surface."""

    __slots__ = ("heap", "live", "rows")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Entry[T]]] = []
        """(deadline, order of arrival, entry): equal deadlines are served first come, first served."""
        self.rows = 0
        self.live = 0

    def forget(self, entry: Entry[T]) -> None:
        entry.item = None
        self.rows -= entry.rows
        self.live -= 1

    def surface(self) -> None:
        """Bring live work to the top, and keep the heap in proportion to it."""
        if len(self.heap) > 2 * self.live + 64:
            self.heap = [each for each in self.heap if each[2].item is not None]
            heapq.heapify(self.heap)
        while self.heap and self.heap[0][2].item is None:
            heapq.heappop(self.heap)


class EdfQueue(Generic[T]):
    """Work waiting for one member, bounded in rows."""

    __slots__ = ("_groups", "_sequence", "limit", "rows")

    def __init__(self, limit: int) -> None:
        """``limit``: most rows that may wait."""
        self.limit = limit
        self.rows = 0
        """Rows waiting now."""
        self._groups: dict[Hashable, _Group[T]] = {}
        self._sequence = 0

    def __bool__(self) -> bool:
        return self.rows > 0

    def push(self, item: T, deadline: float, rows: int, shape: Hashable = None) -> Entry[T] | None:
        """Queue ``item``; only work of equal ``shape`` shares a batch. None when the queue is full."""
        if self.rows + rows > self.limit:
            return None
        entry = Entry(deadline, rows, item, shape)
        group = self._groups.get(shape)
        if group is None:
            group = self._groups[shape] = _Group()
        heapq.heappush(group.heap, (deadline, self._sequence, entry))
        self._sequence += 1
        group.rows += rows
        group.live += 1
        self.rows += rows
        return entry

    def withdraw(self, entry: Entry[T]) -> bool:
        """Forget queued work. False when it had left the queue already."""
        if entry.item is None:
            return False
        self._remove(self._groups[entry.shape], entry)
        self._tidy(entry.shape)
        return True

    def deadline(self) -> float:
        """The earliest of what waits; ``inf`` while nothing does."""
        return self._groups[self._most_urgent()].heap[0][0] if self._groups else inf

    def take(
        self, now: float, cap: int, service_time: ServiceTime, lengths: Lengths | None = None
    ) -> Taken[T]:
        """Take the next batch of at most ``cap`` rows, to be started at ``now``.

        Work of more than ``cap`` rows goes alone: ``cap`` is a setting that may change while work waits,
        and a request is never split. Without ``lengths`` rows of all shapes count alike.
        """
        batch: list[T] = []
        dropped: list[T] = []
        while self._groups:
            shape = self._most_urgent()
            group = self._groups[shape]
            head = group.heap[0][2]
            terms = None if lengths is None else _Terms(now, cap, service_time, lengths)
            if terms is None or not isinstance(shape, Padded):
                target = max(head.rows, min(cap, group.rows))
                if head.deadline >= now + service_time(target):
                    rows = self._move(shape, batch, cap)
                    return Taken(tuple(batch), rows, rows, shape, tuple(dropped))
            else:
                limit = terms.limit(shape)
                target = max(head.rows, min(limit, group.rows))
                if head.deadline >= now + terms.seconds(target, shape):
                    rows = self._move(shape, batch, limit)
                    if terms.lengths.mixing and self._groups:
                        rows, shape = self._mix(batch, rows, shape, head.deadline, terms)
                    work = terms.work(rows, shape)
                    return Taken(tuple(batch), rows, work, shape, tuple(dropped))
            dropped.append(self._pop(group))
            self._tidy(shape)
        return Taken((), 0, 0.0, None, tuple(dropped))

    def drain(self) -> tuple[T, ...]:
        """Empty the queue, most urgent first."""
        heaps = sorted(each for group in self._groups.values() for each in group.heap)
        left = [entry for _, _, entry in heaps]
        items = tuple(entry.item for entry in left if entry.item is not None)
        for entry in left:
            entry.item = None
        self._groups.clear()
        self.rows = 0
        return items

    def _move(self, shape: Hashable, batch: list[T], limit: int) -> int:
        """The most urgent work of ``shape`` into ``batch``: up to ``limit`` rows, or one piece where that is empty."""
        group = self._groups[shape]
        rows = 0
        while group.live and (not batch or rows + group.heap[0][2].rows <= limit):
            rows += group.heap[0][2].rows
            batch.append(self._pop(group))
            group.surface()
        self._tidy(shape)
        return rows

    def _mix(
        self, batch: list[T], rows: int, shape: Padded, deadline: float, terms: _Terms
    ) -> tuple[int, Padded]:
        """Into ``batch``, of ``rows`` of ``shape``, what pays of the shapes on both sides: the nearest first, each side as far
        as it does. ``deadline``: of its head. The rows and the shape then.
        """
        others = sorted([each for each in self._groups if isinstance(each, Padded)])
        size, at = shape.size, bisect_left(others, shape)
        shorter, longer = others[:at], others[at:][::-1]  # of each the last is the nearest
        while shorter or longer:
            near = not longer or (shorter and size - shorter[-1].size <= longer[-1].size - size)
            side = shorter if near else longer
            other = side.pop()
            group = self._groups[other]
            head = group.heap[0][2]
            longest = other if other.holds(shape) else shape
            room = terms.limit(longest) - rows
            joining = min(room, group.rows)
            took_s = terms.seconds(rows + joining, longest)
            if (
                longest.holds(other)
                and head.rows <= room
                and terms.now + took_s <= min(deadline, head.deadline)
                and self._pays(rows, shape, joining, other, took_s, terms)
            ):
                rows += self._move(other, batch, room)
                shape = longest
            else:
                side.clear()
        return rows, shape

    def _pays(
        self, rows: int, shape: Padded, joining: int, other: Padded, took_s: float, terms: _Terms
    ) -> bool:
        """Whether all that wait together wait less if ``joining`` rows of ``other`` share a batch with ``rows`` of ``shape``.

        What is in the batch waits for the longer rows, or the more of them. What joins is done with it, and not in a batch of
        its own after the next instance is free. All others wait for the difference in what the instances have to do.
        """
        waiting, full, instances = (
            self._groups[other].rows,
            terms.limit(other),
            terms.lengths.mixing,
        )
        alone_s = terms.seconds(rows, shape)
        own_s = terms.seconds(min(waiting, full), other)
        rest_s = terms.seconds(min(waiting - joining, full), other)
        longer_s = took_s - alone_s
        change_s = (
            rows * longer_s
            + joining * (took_s - alone_s / instances - own_s)
            + (self.rows - joining) * (longer_s - (own_s - rest_s)) / instances
        )
        return change_s < 0

    def _most_urgent(self) -> Hashable:
        groups = self._groups
        if len(groups) == 1:  # the common case, without a comparison
            return next(iter(groups))
        return min(groups, key=lambda shape: groups[shape].heap[0])

    def _pop(self, group: _Group[T]) -> T:
        entry = heapq.heappop(group.heap)[2]
        item = entry.item
        assert item is not None, "tidy keeps live work at the top"
        self._remove(group, entry)
        return item

    def _remove(self, group: _Group[T], entry: Entry[T]) -> None:
        group.forget(entry)
        self.rows -= entry.rows

    def _tidy(self, shape: Hashable) -> None:
        """Keep live work at the top of each heap, and no group without work."""
        group = self._groups[shape]
        group.surface()
        if not group.live:
            del self._groups[shape]
