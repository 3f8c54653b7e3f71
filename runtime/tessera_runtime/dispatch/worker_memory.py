"""Memory of worker processes: a bound for each, and an end for those that grow.

A model can leak, and a request can make it ask for more than there is. The kernel's answer is to kill a process of the
container, or all of them. So a worker on a CPU is given a limit, at which its allocations fail and only what asked
for them does; and one that has grown by much since it was warm is replaced, by one that is started first.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)

LOOK_S = 1.0

LIMIT_SHARE = 0.7
"""Of what its limit left it when it was warm: an instance that has taken so much is replaced, before allocations fail."""

_MIB = 2**20
_MIB_PAGES = resource.getpagesize() / _MIB

_FIRST_TO_END = 1000
"""oom_score_adj: when the kernel has to end a process it is to be one that runs a model, which is started again."""


def bound(pid: int, memory_mib: int) -> None:
    """Let ``pid`` allocate ``memory_mib`` more than it has now; 0 is no bound. A process that is gone needs none."""
    try:
        (Path("/proc") / str(pid) / "oom_score_adj").write_text(str(_FIRST_TO_END))
        if memory_mib:
            limit = int((_allocated_mib(pid) + memory_mib) * _MIB)
            resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
    except ProcessLookupError:
        pass
    except OSError as error:
        log.warning("worker process %d has no limit of memory: %s", pid, error)


class Gauge:
    """How much a process has grown since it was warm."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._used_mib = _used_mib(pid)
        self._allocated_mib = _allocated_mib(pid)

    def outgrown(self, growth_mib: int) -> bool:
        """Whether it uses ``growth_mib`` more, or may soon allocate no more."""
        if _used_mib(self._pid) - self._used_mib > growth_mib:
            return True
        try:
            limit, _ = resource.prlimit(self._pid, resource.RLIMIT_DATA)
        except OSError:
            return False
        if limit == resource.RLIM_INFINITY:
            return False
        left_mib = limit / _MIB - self._allocated_mib
        return _allocated_mib(self._pid) - self._allocated_mib > LIMIT_SHARE * left_mib


class Growing(Protocol):
    """An instance as it is watched."""

    @property
    def gauge(self) -> Gauge | None:
        """None where the process is not its own, and while there is none."""


_T = TypeVar("_T", bound=Growing)


async def watch(
    instances: Callable[[], Iterable[_T]], replace: Callable[[_T], None], growth_mib: int
) -> None:
    """For ever: ``replace`` what has grown by ``growth_mib``, or by most of what its limit allows."""
    while True:
        await asyncio.sleep(LOOK_S)
        for instance in list(instances()):
            gauge = instance.gauge
            if gauge is not None and gauge.outgrown(growth_mib):
                replace(instance)


def _used_mib(pid: int) -> float:
    """Memory of its own; what is mapped from files or shared is not."""
    return _statm(pid, 1) - _statm(pid, 2)


def _allocated_mib(pid: int) -> float:
    """What RLIMIT_DATA counts, used or not."""
    return _statm(pid, 5)


def _statm(pid: int, field: int) -> float:
    """MiB; of proc_pid_statm(5), from 0."""
    try:
        return int((Path("/proc") / str(pid) / "statm").read_text().split()[field]) * _MIB_PAGES
    except (OSError, IndexError):
        return 0.0
