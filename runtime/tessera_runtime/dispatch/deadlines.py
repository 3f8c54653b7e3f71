"""One timer for all requests: wakes when the earliest unanswered one is due."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque

from tessera_runtime.dispatch.request import Request

COMPACT_AT = 4096
"""Entries from which answered requests with far deadlines are looked for and forgotten."""


class Deadlines:
    """Requests ordered by deadline. Answered ones stay until they surface or get too many.

    Most deadlines come in order, for they are as far away as the SLO: those stand in a line. The others, of clients
    with a limit of their own and of services with shorter SLOs, are in a heap.
    """

    def __init__(self) -> None:
        self._line: deque[Request] = deque()
        self._heap: list[tuple[float, int, Request]] = []
        self._compact_at = COMPACT_AT
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0.0

    def add(self, request: Request) -> None:
        line = self._line
        while line and line[0].answered:
            line.popleft()
        if not line or request.deadline >= line[-1].deadline:
            line.append(request)
        else:
            self._count += 1
            heapq.heappush(self._heap, (request.deadline, self._count, request))
        if len(line) + len(self._heap) > self._compact_at:
            self._compact()
        if self._timer is None or request.deadline < self._armed:
            self._arm()

    def _compact(self) -> None:
        self._line = deque(each for each in self._line if not each.answered)
        self._heap = [entry for entry in self._heap if not entry[2].answered]
        heapq.heapify(self._heap)
        self._compact_at = max(COMPACT_AT, 2 * (len(self._line) + len(self._heap)))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        first = self._first()
        if first is not None:
            self._armed = first.deadline
            delay = max(0.0, self._armed - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def _first(self) -> Request | None:
        """The unanswered request that is due first."""
        while self._heap and self._heap[0][2].answered:
            heapq.heappop(self._heap)
        while self._line and self._line[0].answered:
            self._line.popleft()
        if self._heap and (not self._line or self._heap[0][0] < self._line[0].deadline):
            return self._heap[0][2]
        return self._line[0] if self._line else None

    def _due(self) -> None:
        self._timer = None
        now = time.monotonic()
        while True:
            request = self._first()
            if request is None or request.deadline > now:
                break
            if self._line and request is self._line[0]:
                self._line.popleft()
            else:
                heapq.heappop(self._heap)
            request.service.expire(request, now)
        self._arm()
