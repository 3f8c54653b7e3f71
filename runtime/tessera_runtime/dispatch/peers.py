"""Channels to other servers: one per address, shared by all services, closed when nobody needs it any more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from tessera_runtime.protocol.peer_client import PeerClient, PeerSecurity


class Channels:
    """Who uses which channel, and the tasks that run on them."""

    def __init__(self, security: PeerSecurity | None = None) -> None:
        self._security = security
        self._clients: dict[str, PeerClient] = {}
        self._users: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, address: str) -> PeerClient:
        """The channel to ``address``, which stays open until it was given back as often as taken."""
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = PeerClient(address, self._security)
        self._users[address] += 1
        return client

    def renew(self, security: PeerSecurity | None) -> None:
        """All calls from now on are made with ``security``."""
        self._security = security
        for client in self._clients.values():
            self.run(client.renew(security))

    def give_back(self, client: PeerClient) -> None:
        self._users[client.address] -= 1
        if not self._users[client.address]:
            del self._users[client.address], self._clients[client.address]
            self.run(client.close())

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that is kept until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End every call and channel."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients.values()))
        self._clients.clear()
        self._users.clear()
