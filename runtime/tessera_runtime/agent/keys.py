"""The keys of the services that ask for one, read from their namespaces' Secrets and read again every minute or so.

A Secret that cannot be read now (the API server does not answer) changes nothing: the keys that were read last go on.
One that is gone, that may not be read any more, or that has no key in it leaves no key, which closes its services.
Only Secrets by their names are read, where a namespace has opted in; there is no right to watch them. No text that
leaves this module has a key in it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from tessera_runtime.models.errors import Denied, FetchError, NotFound
from tessera_runtime.waits import pause_s

log = logging.getLogger(__name__)

READ_S = 60.0
"""Between two looks at a Secret, at most, where nothing else is said. Agents do not look all at once."""
LEAST_READ_S, MOST_READ_S = 1.0, 3600.0

AT_ONCE = 16
"""Secrets that are asked for at one time: an agent that starts wants all of them."""

FIRST_PAUSE_S = 1.0
"""After a failure; it grows to the time between two looks."""

MOST_KEYS = 64
MOST_CHARACTERS = 256
"""Of a key: some of them travel in the header of one call between servers."""
ALLOWED = f"1 to {MOST_CHARACTERS} visible ASCII characters"

Secrets = Callable[[str, str], Awaitable[Mapping[str, str]]]
"""Values of the Secret of (namespace, name). Raises FetchError in words for the user."""


@dataclass(frozen=True, slots=True)
class SecretSource:
    """A Secret, of the namespace whose service asks for its keys."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"Secret {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Found:
    """What a Secret holds."""

    keys: tuple[str, ...] = field(repr=False)
    """By the names of their entries: all servers present them to each other in one order."""
    ignored: tuple[str, ...]
    """Names of entries whose values open nothing: they are no keys, or too many."""


def keys_in(values: Mapping[str, str]) -> Found:
    """The keys of a Secret."""
    names = [name for name in sorted(values) if _is_key(values[name])][:MOST_KEYS]
    ignored = tuple(sorted(values.keys() - set(names)))
    return Found(tuple(values[name] for name in names), ignored)


class ServiceKeys:
    """The keys of the services that a node has. Used from one event loop."""

    def __init__(
        self, secrets: Secrets, changed: Callable[[], None], read_s: float = READ_S
    ) -> None:
        """``changed`` is called when keys, or why there are none, are other ones. What was changed is noticed within
        ``read_s``, failures or not.
        """
        self._secrets = secrets
        self._changed = changed
        self._read_s = read_s
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._wanted: dict[str, SecretSource] = {}
        self._tasks: dict[SecretSource, asyncio.Task[None]] = {}
        self._keys: dict[SecretSource, tuple[str, ...]] = {}
        self._problems: dict[SecretSource, str] = {}

    def want(self, sources: Mapping[str, SecretSource]) -> None:
        """From now on know the keys of exactly these services, by served name."""
        self._wanted = dict(sources)
        wanted = set(sources.values())
        for source in self._tasks.keys() - wanted:
            self._tasks.pop(source).cancel()
            self._keys.pop(source, None)
            self._problems.pop(source, None)
        for source in wanted - self._tasks.keys():
            self._tasks[source] = asyncio.create_task(self._follow(source))

    @property
    def wanted(self) -> Mapping[str, SecretSource]:
        return self._wanted

    def known(self) -> dict[str, tuple[str, ...]]:
        """By served name, of services whose Secret was read, or is known not to be there for us."""
        return {
            service: self._keys[source]
            for service, source in self._wanted.items()
            if source in self._keys
        }

    def unread(self) -> frozenset[str]:
        """Services whose Secret is being read for the first time; that takes some seconds at most."""
        return frozenset(
            service
            for service, source in self._wanted.items()
            if source not in self._keys and source not in self._problems
        )

    def problems(self) -> dict[str, str]:
        """By served name, why nobody has a key of it and what to do about that."""
        return {
            service: f"access: {self._problems[source]}; until then nobody is answered"
            for service, source in self._wanted.items()
            if source in self._problems and not self._keys.get(source)
        }

    def close(self) -> None:
        """Stop reading, and forget all keys."""
        self.want({})

    async def _follow(self, source: SecretSource) -> None:
        failures = 0
        while True:
            failures = 0 if await self._read(source) else failures + 1
            if failures:
                await asyncio.sleep(pause_s(failures, FIRST_PAUSE_S, self._read_s))
            else:
                await asyncio.sleep(self._read_s * random.uniform(0.8, 1.0))

    async def _read(self, source: SecretSource) -> bool:
        """Whether the Secret had keys."""
        before = self._keys.get(source), self._problems.get(source, "")
        keys, problem = await self._look(source)
        if keys is None:
            keys = before[0]
        else:
            self._keys[source] = keys
        if problem:
            self._problems[source] = problem
        else:
            self._problems.pop(source, None)
        if (keys, problem) != before:
            if problem:
                log.warning("%s", problem)
            else:
                log.info("%s: %d keys", source, len(self._keys[source]))
            self._changed()
        return not problem

    async def _look(self, source: SecretSource) -> tuple[tuple[str, ...] | None, str]:
        """The keys, or None where nothing was learnt of them, and what is wrong."""
        try:
            async with self._turn:
                found = keys_in(await self._secrets(source.namespace, source.name))
        except (Denied, NotFound) as error:
            return (), str(error)
        except FetchError as error:
            return None, str(error)
        except Exception as error:  # this Secret fails, not the agent; the text might quote it
            return None, f"{source}: reading it failed: {type(error).__name__}"
        if found.ignored:
            names = ", ".join(found.ignored[:8])
            log.warning("%s: ignored are %s: not %s, or too many", source, names, ALLOWED)
        return (
            found.keys,
            "" if found.keys else f"{source}: it has no key, add a value of {ALLOWED}",
        )


def _is_key(value: str) -> bool:
    return 0 < len(value) <= MOST_CHARACTERS and all("!" <= each <= "~" for each in value)
