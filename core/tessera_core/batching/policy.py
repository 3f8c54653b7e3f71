"""Which queued work forms the next batch.

One queue per member, one policy for the dispatcher, the simulator and whatever the planner assumes:

- A batch is formed when an instance is free, never before: work that waits can still be joined by later
  work, and an idle instance never waits for company.
- Earliest deadline first. Work of equal shape goes together; the shape whose head is most urgent goes first.
- A head that cannot finish in the batch that is about to be formed is dropped, the batch is not shrunk to
  save it: shrinking lets one late request halve the throughput of everybody behind it, and under overload
  every head is late (the collapse that Nexus, SOSP'19, and Clockwork, OSDI'20, avoid the same way).
- Work never jumps over earlier work of its own shape, also when it would fit and the earlier one does not.

The queue is a plain data structure: time is an argument, the service time is a function of the batch size.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

ServiceTime = Callable[[int], float]
"""Seconds that a batch of so many rows is expected to take."""


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

    def take(self, now: float, cap: int, service_time: ServiceTime) -> Taken[T]:
        """Take the next batch of at most ``cap`` rows, to be started at ``now``.

        Work of more than ``cap`` rows goes alone: ``cap`` is a setting that may change while work waits,
        and a request is never split.
        """
        dropped: list[T] = []
        while self._groups:
            shape = self._most_urgent()
            group = self._groups[shape]
            head = group.heap[0][2]
            target = max(head.rows, min(cap, group.rows))
            if head.deadline >= now + service_time(target):
                batch, rows = self._form(group, cap)
                self._tidy(shape)
                return Taken(batch, rows, tuple(dropped))
            dropped.append(self._pop(group))
            self._tidy(shape)
        return Taken((), 0, tuple(dropped))

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

    def _form(self, group: _Group[T], cap: int) -> tuple[tuple[T, ...], int]:
        batch: list[T] = []
        rows = 0
        while group.live and (not batch or rows + group.heap[0][2].rows <= cap):
            rows += group.heap[0][2].rows
            batch.append(self._pop(group))
            group.surface()
        return tuple(batch), rows

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
