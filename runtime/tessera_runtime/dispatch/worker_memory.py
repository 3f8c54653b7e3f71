"""Memory of worker processes: a bound for each, and an end for those that grow.

A model can leak, and a request can make it ask for more than there is. The kernel's answer is to kill a process of the
container, or all of them. So a worker on a CPU is given a limit, at which its allocations fail and only what asked
for them does; and one that has grown by much, beside what was loaded into it, is left by all its instances, for others
that are started first.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)

LOOK_S = 1.0

LIMIT_SHARE = 0.7
"""Of what its limit left it when its models were warm: one that has taken so much is left, before allocations fail."""

_MIB = 2**20
_MIB_PAGES = resource.getpagesize() / _MIB

_FIRST_TO_END = 1000
"""oom_score_adj: when the kernel has to end a process it is to be one that runs a model, which is started again."""


def bound(pid: int, memory_mib: int) -> None:
    """Let ``pid`` allocate ``memory_mib`` more than it has now; 0 is no bound. A process that is gone needs none."""
    try:
        (Path("/proc") / str(pid) / "oom_score_adj").write_text(str(_FIRST_TO_END))
        if memory_mib:
            limit = int((size(pid).allocated + memory_mib) * _MIB)
            resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
    except ProcessLookupError:
        pass
    except OSError as error:
        log.warning("worker process %d has no limit of memory: %s", pid, error)


@dataclass(frozen=True, slots=True)
class Size:
    """MiB of a process."""

    used: float
    """Memory of its own; what is mapped from files or shared is not."""
    allocated: float
    """What RLIMIT_DATA counts, used or not."""


def outgrown(base: Size, now: Size, growth_mib: float, limit_mib: float | None) -> bool:
    """Whether a process uses ``growth_mib`` more than at ``base``, or may soon allocate no more.

    ``limit_mib``: of what it may allocate; None is no limit.
    """
    if now.used - base.used > growth_mib:
        return True
    if limit_mib is None:
        return False
    return now.allocated - base.allocated > LIMIT_SHARE * (limit_mib - base.allocated)


class Gauge:
    """How much a process has grown, beside what is loaded into it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._base = self._before = size(pid)
        self._loading = False
        self._taken: Counter[str] = Counter()
        """KiB used by each model that is loaded."""

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """What the process grows by meanwhile belongs to ``model``, unless that fails; one at a time."""
        self.begins()
        self._loading = True
        try:
            yield
            before, now = self._before, size(self._pid)
            self._taken[model] += round((now.used - before.used) * 1024)
            self._shift(now.used - before.used, now.allocated - before.allocated)
        finally:
            self._loading = False

    def begins(self) -> None:
        """From here on, rather: what is unloaded had to be waited for."""
        self._before = size(self._pid)

    def unloaded(self, model: str) -> None:
        """What ``model`` took should be free: if it is not, the process has grown."""
        self._shift(-self._taken.pop(model, 0) / 1024, 0.0)

    def outgrown(self, growth_mib: float) -> bool:
        """Whether it uses ``growth_mib`` more, or may soon allocate no more. Not known while something is loaded."""
        if self._loading:
            return False
        try:
            limit, _ = resource.prlimit(self._pid, resource.RLIMIT_DATA)
        except OSError:
            return False
        limit_mib = None if limit == resource.RLIM_INFINITY else limit / _MIB
        return outgrown(self._base, size(self._pid), growth_mib, limit_mib)

    def _shift(self, used: float, allocated: float) -> None:
        self._base = Size(self._base.used + used, self._base.allocated + allocated)


class Watched(Protocol):
    """A worker process as it is watched."""

    @property
    def incarnation(self) -> int: ...

    @property
    def retired(self) -> bool: ...

    @property
    def gauge(self) -> Gauge | None:
        """None where memory is not what it runs in."""


_T = TypeVar("_T", bound=Watched)


async def watch(
    workers: Callable[[], Iterable[_T]], replace: Callable[[_T], None], growth_mib: int
) -> None:
    """For ever: ``replace`` what is to be left, has grown by ``growth_mib`` or by most of what its limit allows.

    Again in each round, until it has ended.
    """
    while True:
        await asyncio.sleep(LOOK_S)
        for worker in list(workers()):
            grown = worker.gauge is not None and worker.gauge.outgrown(growth_mib)
            if grown and not worker.retired:
                log.warning("worker %d has grown: it is replaced", worker.incarnation)
            if grown or worker.retired:
                replace(worker)


def size(pid: int) -> Size:
    """Of a process; zeros when it has ended. By proc_pid_statm(5)."""
    try:
        pages = (Path("/proc") / str(pid) / "statm").read_text().split()
        return Size((int(pages[1]) - int(pages[2])) * _MIB_PAGES, int(pages[5]) * _MIB_PAGES)
    except (OSError, IndexError):
        return Size(0.0, 0.0)
