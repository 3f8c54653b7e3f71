"""Keeping the wanted model files on this node: fetched for whom they belong to, a few at a time.

A failed fetch is tried again with growing pauses for as long as the file is wanted, since a Secret, a
RoleBinding or a store can be put right at any time. Others go on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path

from tessera_runtime.agent.translate import LocalModel, ModelSource
from tessera_runtime.models.cache import CachedModel, ModelCache
from tessera_runtime.models.credentials import storage_options
from tessera_runtime.models.errors import FetchError
from tessera_runtime.models.fetch import redacted
from tessera_runtime.waits import pause_s

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Fetches under way: one of them alone can fill a link, two hide each other's round trips."""

FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 300.0

Secrets = Callable[[str, str], Awaitable[Mapping[str, str]]]
"""Values of the Secret of (namespace, name). Raises FetchError in words for the user."""


class Models:
    """The files that are wanted now. Used from one event loop."""

    def __init__(self, cache: ModelCache, secrets: Secrets, changed: Callable[[], None]) -> None:
        """``changed`` is called when a file has come or a fetch has failed."""
        self._cache = cache
        self._secrets = secrets
        self._changed = changed
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[ModelSource, asyncio.Task[None]] = {}
        self._found: dict[ModelSource, CachedModel] = {}
        self._problems: dict[ModelSource, str] = {}
        self._held: dict[Path, CachedModel] = {}

    def want(self, sources: Collection[ModelSource]) -> None:
        """From now on keep exactly these."""
        wanted = frozenset(sources)
        for source in self._tasks.keys() - wanted:
            self._tasks.pop(source).cancel()
            self._problems.pop(source, None)
        for source in self._found.keys() - wanted:
            self._found.pop(source).close()
        for source in wanted - self._tasks.keys():
            self._tasks[source] = asyncio.create_task(self._fetch(source))

    def hold(self, paths: Collection[Path]) -> None:
        """Keep these files too, whoever fetched them: the server was told of them."""
        for path in self._held.keys() - set(paths):
            self._held.pop(path).close()
        for path in set(paths) - self._held.keys():
            held = self._cache.hold(path)
            if held is not None:
                self._held[path] = held

    def found(self, source: ModelSource) -> LocalModel | None:
        """The file, once it is here."""
        model = self._found.get(source)
        return None if model is None else LocalModel(str(model.path), model.digest)

    def problem(self, source: ModelSource) -> str:
        """Why the file is not here; empty while it is being fetched for the first time."""
        return self._problems.get(source, "")

    def close(self) -> None:
        """Stop fetching and let go of all files."""
        self.want(())
        self.hold(())

    async def _fetch(self, source: ModelSource) -> None:
        failures = 0
        while True:
            try:
                async with self._turn:
                    self._found[source] = await self._once(source)
                self._problems.pop(source, None)
                self._changed()
                return
            except FetchError as error:
                problem = str(error)
            except Exception:  # of a store's library: this model fails, not the agent
                log.exception("fetching %s failed", redacted(source.uri))
                problem = f"{redacted(source.uri)}: fetching failed, see the agent's log"
            failures += 1
            if self._problems.get(source) != problem:
                log.warning("%s: %s", source.namespace, problem)
                self._problems[source] = problem
                self._changed()
            await asyncio.sleep(pause_s(failures, FIRST_PAUSE_S, MOST_PAUSE_S))

    async def _once(self, source: ModelSource) -> CachedModel:
        secret = None
        if source.secret is not None:
            secret = await self._secrets(source.namespace, source.secret)
        options = storage_options(source.uri.partition("://")[0], secret)
        stopped = threading.Event()

        def fetch() -> CachedModel:
            return self._cache.fetch(
                source.uri,
                source.digest,
                options,
                lambda *_: _go_on(stopped),
                reader=source.namespace,
            )

        try:
            return await _in_thread(fetch, CachedModel.close)
        except asyncio.CancelledError:
            stopped.set()
            raise


class _NotWanted(FetchError):
    """The file is not wanted any more; what has come of it stays for the next time."""


def _go_on(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise _NotWanted("not wanted any more")


async def _in_thread(
    call: Callable[[], CachedModel], discard: Callable[[CachedModel], None]
) -> CachedModel:
    """The result of ``call``, which runs in a thread that does not keep the process from ending. What nobody
    waits for any more is given to ``discard``.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[CachedModel] = loop.create_future()

    def settle(result: CachedModel | None, error: Exception | None) -> None:
        if done.cancelled():
            if result is not None:
                discard(result)
        elif error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except Exception as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:
            pass  # the loop has ended, and with it whoever waited

    threading.Thread(target=run, name="fetch", daemon=True).start()
    return await done
