"""Waiting for a state of the dispatcher on the rare paths: draining, loading, unloading."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

POLL_S = 0.005


async def eventually(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether ``condition`` came true within ``timeout_s``.

    It is polled: an event that every request had to touch would cost each of them for what happens once
    a day.
    """
    give_up = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= give_up:
            return False
        await asyncio.sleep(POLL_S)
    return True
