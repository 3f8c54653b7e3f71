"""One timer for all requests: wakes when the earliest unanswered one is due."""

from __future__ import annotations

import asyncio
import heapq
import time

from tessera_runtime.dispatch.request import Request

COMPACT_AT = 4096
"""Entries from which answered requests with far deadlines are looked for and forgotten."""


class Deadlines:
    """Requests ordered by deadline. Answered ones stay until they surface or get too many."""

    def __init__(self) -> None:
        self._compact_at = COMPACT_AT
        self._heap: list[tuple[float, int, Request]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0.0

    def add(self, request: Request) -> None:
        self._count += 1
        if len(self._heap) >= self._compact_at:
            self._heap = [entry for entry in self._heap if not entry[2].answered]
            heapq.heapify(self._heap)
            self._compact_at = max(COMPACT_AT, 2 * len(self._heap))
        heapq.heappush(self._heap, (request.deadline, self._count, request))
        if self._timer is None or request.deadline < self._armed:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap and self._heap[0][2].answered:
            heapq.heappop(self._heap)
        if self._heap:
            self._armed = self._heap[0][0]
            delay = max(0.0, self._armed - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            request = heapq.heappop(self._heap)[2]
            if not request.answered:
                request.service.expire(request, now)
        self._arm()
