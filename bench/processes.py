"""What the processes of a server use, from /proc, and starting them on chosen cores."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# proc_pid_stat(5), counted after the command's name: session, utime, stime.
_SESSION, _USER, _SYSTEM = 3, 11, 12


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all processes of a session together."""

    processes: int
    cpu_s: float
    """User and system time since they began; at the kernel's 10 ms resolution."""
    pss_mib: float
    """Proportional set size: shared pages are divided among those that map them, so the sum is what they take."""


def session_usage(session: int) -> Usage:
    """Usage of every process whose session is ``session``."""
    count = ticks = pss_kib = 0
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            if int(fields[_SESSION]) != session:
                continue
            rollup = (directory / "smaps_rollup").read_text()
        except OSError:
            continue  # it has just ended
        count += 1
        ticks += int(fields[_USER]) + int(fields[_SYSTEM])
        pss_kib += sum(int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:")
    return Usage(count, ticks / _TICKS_PER_S, pss_kib / 1024)


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Run the body, and whatever it starts, on ``cores``."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def start_session(
    command: Sequence[str], cores: Sequence[int], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``command`` on ``cores`` as the leader of a session of its own."""
    with on_cores(cores):
        return subprocess.Popen(
            command,
            start_new_session=True,
            env=os.environ | dict(environment or {}),
            stdout=subprocess.DEVNULL,
        )
