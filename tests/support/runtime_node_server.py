"""An API server of one RuntimeNode, on loopback: get, watch, and the status by server-side apply of one manager."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tessera_core.api import RuntimeNode
from tessera_core.api.runtimenode import CutStatus

NODES = "/apis/tessera.dev/v1alpha1/runtimenodes"
PATIENCE_S = 60.0


class NodeServer:
    """Used from the event loop that serves it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.url = ""
        self.document: dict[str, Any] | None = None
        self.writes: list[dict[str, Any]] = []
        """Every status that was applied."""
        self.reads = 0
        """Gets, which are not watches."""
        self.is_down = False
        """Every request is refused, and watches have ended."""
        self.before_write: Callable[[], object] = lambda: None
        """Called with what is written on its way; what it refuses by raising is lost."""
        self._version = 0
        self._changed = asyncio.Condition()

    async def order(self, *devices: dict[str, Any], epoch: int = 1) -> int:
        """Have this spec; its generation."""
        generation = self.document["metadata"]["generation"] if self.document else 0
        status = self.document["status"] if self.document else {}
        await self._set(
            {
                "apiVersion": "tessera.dev/v1alpha1",
                "kind": "RuntimeNode",
                "metadata": {"name": self._name, "generation": generation + 1},
                "spec": {"epoch": epoch, "devices": list(devices)},
                "status": status,
            }
        )
        return generation + 1

    async def delete(self) -> None:
        await self._set(None)

    async def go_down(self) -> None:
        self.is_down = True
        await self.wake()

    async def come_back(self) -> None:
        self.is_down = False
        await self.wake()

    @property
    def cuts(self) -> dict[str, CutStatus]:
        """What the status says, by device."""
        if self.document is None:
            return {}
        return {each.uuid: each for each in RuntimeNode.from_dict(self.document).status.cuts}

    async def wait(self, until: Callable[[], bool]) -> None:
        """Until it is so, looked at whenever something was asked or written."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(until)

    async def wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _set(self, document: dict[str, Any] | None) -> None:
        self._version += 1
        if document is not None:
            document["metadata"]["resourceVersion"] = str(self._version)
        self.document = document
        await self.wake()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        self.reads += 1
        await self.wake()
        if self.is_down:
            raise web.HTTPServiceUnavailable
        if self.document is None:
            raise web.HTTPNotFound
        return web.json_response(self.document)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if self.is_down:
            raise web.HTTPServiceUnavailable
        response = web.StreamResponse()
        await response.prepare(request)
        told = int(request.query["resourceVersion"] or 0)
        while True:
            async with self._changed:
                while told == self._version and not self.is_down:
                    await self._changed.wait()
            if self.is_down:
                return response
            told = self._version
            event = (
                {"type": "DELETED", "object": {}}
                if self.document is None
                else {"type": "MODIFIED", "object": self.document}
            )
            await response.write(json.dumps(event).encode() + b"\n")

    async def _apply(self, request: web.Request) -> web.StreamResponse:
        assert request.query["fieldManager"] == "tessera-partitioner"
        written = await request.json()
        if self.is_down:
            raise web.HTTPServiceUnavailable
        self.before_write()
        if self.document is None:
            raise web.HTTPNotFound
        assert set(written["status"]) <= {"cuts"}
        self.writes.append(written["status"])
        document = copy.deepcopy(self.document)
        document["status"] = written["status"]
        await self._set(document)
        return web.json_response(document)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[NodeServer]:
        app = web.Application()
        app.router.add_get(f"{NODES}/{self._name}", self._get)
        app.router.add_get(NODES, self._watch)
        app.router.add_patch(f"{NODES}/{self._name}/status", self._apply)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await self.go_down()
            await runner.cleanup()
