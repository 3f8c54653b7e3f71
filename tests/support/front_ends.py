"""Both front ends on loopback, on an event loop of their own, so that blocking clients can be used too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

from support.function_plane import FunctionPlane
from tessera_runtime.protocol.grpc_server import start_grpc
from tessera_runtime.protocol.http_server import start_http
from tessera_runtime.protocol.limits import GrpcLimits, HttpLimits

_T = TypeVar("_T")
_PATIENCE_S = 30


class FrontEnds:
    """A context manager; the end asserts that no slot is left."""

    def __init__(
        self,
        plane: FunctionPlane,
        http_limits: HttpLimits | None = None,
        grpc_limits: GrpcLimits | None = None,
        grpc: bool = True,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.plane = plane
        self._limits = http_limits, grpc_limits
        self._with_grpc = grpc
        self._loop = loop or uvloop.new_event_loop()
        self.failures: list[dict[str, Any]] = []
        """What reached the loop's exception handler: nothing may."""
        self._loop.set_exception_handler(self._note)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # grpcio wakes every loop of the process for each event, and all but one find nothing to read
        # (github.com/grpc/grpc/issues/25364). A server process has one loop; the tests have several.
        harmless = "PollerCompletionQueue" in str(context.get("handle", context))
        if not (harmless and isinstance(context.get("exception"), BlockingIOError)):
            self.failures.append(context)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run ``work`` on the servers' loop."""
        return self.begin(work).result(_PATIENCE_S)

    def begin(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        """As :meth:`run`, without waiting for its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def __enter__(self) -> FrontEnds:
        self._thread.start()
        self.run(self._start())
        return self

    async def _start(self) -> None:
        http_limits, grpc_limits = self._limits
        self.http = await start_http(self.plane, limits=http_limits)
        self.http_url = f"127.0.0.1:{self.http.port}"
        if self._with_grpc:
            self.grpc = await start_grpc(self.plane, limits=grpc_limits)
            self.grpc_url = f"127.0.0.1:{self.grpc.port}"

    async def _stop(self) -> None:
        await self.http.close()
        if self._with_grpc:
            await self.grpc.close()

    def __exit__(self, *error: object) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        self._loop.close()
        if error[0] is None:
            self.plane.assert_clean()
            assert not self.failures, self.failures
