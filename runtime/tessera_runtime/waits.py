"""Waiting: for how long after failures in a row, and for something to happen."""

from __future__ import annotations

import asyncio
import random


def pause_s(failures: int, first_s: float, most_s: float, asked_s: float | None = None) -> float:
    """Doubles from ``first_s`` to ``most_s``, less up to a half by chance, so that those who failed together do
    not come back together; at least ``asked_s``, what the other side asked for, within the bound.
    """
    grown = min(most_s, first_s * 2.0 ** min(max(failures, 1) - 1, 30))
    return max(grown * random.uniform(0.5, 1.0), min(asked_s or 0.0, most_s))


async def set_within(event: asyncio.Event, timeout_s: float) -> None:
    """Return when ``event`` is set, or after ``timeout_s``."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
