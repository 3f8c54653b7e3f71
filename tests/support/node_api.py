"""What processes of a node talk to, on loopback: an API server with one RuntimeNode, and a store of models.

As far as they go: one object is read and watched, several managers apply their parts of its status, and Leases are taken
and forgotten.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp import web

from tessera_core.api import RuntimeNode
from tessera_core.api.runtimenode import CutStatus

NODES = "/apis/tessera.dev/v1alpha1/runtimenodes"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"
PARTITIONER = "tessera-partitioner"
PATIENCE_S = 60.0


class NodeServer:
    """Used from the event loop that serves it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.url = ""
        self.document: dict[str, Any] | None = None
        self.files: dict[str, str | bytes] = {}
        """Of the store, by path."""
        self.writes: list[dict[str, Any]] = []
        """Every status that was applied."""
        self.reads = 0
        """Gets, which are not watches."""
        self.is_down = False
        """Every request is refused, and watches have ended."""
        self.before_write: Callable[[], object] = lambda: None
        """Called with what is written on its way; what it refuses by raising is lost."""
        self._applied: dict[str, dict[str, Any]] = {}
        """What each manager has said of the status; none says what another does."""
        self._version = 0
        self._changed = asyncio.Condition()

    async def order(self, *devices: dict[str, Any], epoch: int = 1, **spec: object) -> int:
        """Have this spec; its generation."""
        generation = self.document["metadata"]["generation"] if self.document else 0
        status = self.document["status"] if self.document else {}
        await self._set(
            {
                "apiVersion": "tessera.dev/v1alpha1",
                "kind": "RuntimeNode",
                "metadata": {"name": self._name, "uid": "u", "generation": generation + 1},
                "spec": {"epoch": epoch, "devices": list(devices), **spec},
                "status": status,
            }
        )
        return generation + 1

    async def delete(self) -> None:
        self._applied.clear()
        await self._set(None)

    async def tell_cuts(self, *cuts: dict[str, object]) -> None:
        """Write what the partitioner says."""
        await self._say(PARTITIONER, {"cuts": list(cuts)})

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
        written = await request.json()
        if self.is_down:
            raise web.HTTPServiceUnavailable
        self.before_write()
        if self.document is None:
            raise web.HTTPNotFound
        manager = request.query["fieldManager"]
        assert manager != PARTITIONER or set(written["status"]) <= {"cuts"}
        self.writes.append(written["status"])
        await self._say(manager, written["status"])
        return web.json_response(self.document)

    async def _say(self, manager: str, status: dict[str, Any]) -> None:
        """Have all that ``manager`` says; what it has said before and says no more is gone."""
        self._applied[manager] = status
        said = [field for each in self._applied.values() for field in each.items()]
        document = copy.deepcopy(self.document or {})
        document["status"] = dict(said)
        assert len(said) == len(document["status"]), "two managers write one field"
        await self._set(document)

    async def _lease(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({})

    async def _file(self, request: web.Request) -> web.StreamResponse:
        if request.path not in self.files:
            raise web.HTTPNotFound
        found = self.files[request.path]
        return web.Response(body=found.encode() if isinstance(found, str) else found)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[NodeServer]:
        app = web.Application()
        app.router.add_get(f"{NODES}/{self._name}", self._get)
        app.router.add_get(NODES, self._watch)
        app.router.add_patch(f"{NODES}/{self._name}/status", self._apply)
        app.router.add_patch(LEASE, self._lease)
        app.router.add_get("/{path:.*}", self._file)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await self.go_down()
            await runner.cleanup()


class NodeApi:
    """The same for a test that waits for processes rather than in a loop; made by :func:`node_api`."""

    def __init__(self, server: NodeServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server, self._loop = server, loop
        self.url, self.files = server.url, server.files

    def order(self, **spec: Any) -> None:
        """Write the spec."""
        self._do(self._server.order(*spec.pop("devices", ()), **spec))

    def tell_cuts(self, *cuts: dict[str, object]) -> None:
        """Write what the partitioner says."""
        self._do(self._server.tell_cuts(*cuts))

    def status(self) -> dict[str, Any]:
        """The present one, which nothing changes any more."""
        return (self._server.document or {}).get("status") or {}

    def writes(self) -> list[dict[str, Any]]:
        """Every status that was applied until now."""
        return list(self._server.writes)

    def _do(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)


@contextmanager
def node_api(name: str) -> Iterator[NodeApi]:
    """One in a thread of its own, whose RuntimeNode orders nothing yet."""
    started: asyncio.Queue[NodeApi] = asyncio.Queue()
    ended = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with NodeServer(name).running() as server:
            await server.order()
            await started.put(NodeApi(server, loop))
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(started.get(), loop).result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()
