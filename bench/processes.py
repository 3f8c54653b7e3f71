"""What the processes of a server use, from /proc, and starting them on chosen cores."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# proc_pid_stat(5), counted after the command's name: parent, session, utime, stime.
_PARENT, _SESSION, _USER, _SYSTEM = 1, 3, 11, 12

END_GRACE_S = 10.0
HELPERS_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all processes of a server together."""

    processes: int
    cpu_s: float
    """User and system time since they began; at the kernel's 10 ms resolution."""
    pss_mib: float
    """Proportional set size: shared pages are divided among those that map them, so the sum is what they take."""
    descriptors: int


def _stats() -> dict[int, list[str]]:
    """Fields after the name of every process that lives."""
    found = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if fields[0] != "Z":
                found[int(directory.name)] = fields
    return found


def living() -> set[int]:
    """Ids of all processes that run or wait; ended ones that nobody has collected are left out."""
    return set(_stats())


def tree(leader: int) -> dict[int, float]:
    """Processor seconds by pid: of ``leader``'s session and of all its descendants, which may have left it."""
    stats = _stats()
    inside = {pid for pid, fields in stats.items() if int(fields[_SESSION]) == leader}
    inside |= {leader} & stats.keys()
    grew = True
    while grew:
        children = {pid for pid, fields in stats.items() if int(fields[_PARENT]) in inside}
        grew = not children <= inside
        inside |= children
    return {
        pid: (int(stats[pid][_USER]) + int(stats[pid][_SYSTEM])) / _TICKS_PER_S for pid in inside
    }


def cpu_s(leader: int) -> float:
    """User and system seconds of all processes of a server; costs them nothing to read."""
    return sum(tree(leader).values())


def pss_mib(pid: int) -> float:
    """0 for a process that has ended. Reading it walks the page tables: not while anything is timed."""
    return _rollup_mib(pid, "Pss:")


def own_pss_mib(pid: int) -> float:
    """As :func:`pss_mib`, without the pages of files: of those a process has more when others of the machine end."""
    return _rollup_mib(pid, "Pss_Anon:", "Pss_Shmem:")


def _rollup_mib(pid: int, *fields: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(fields)) / 1024


def usage(leader: int) -> Usage:
    times = tree(leader)
    descriptors = 0
    for pid in times:
        try:
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
    return Usage(len(times), sum(times.values()), sum(map(pss_mib, times)), descriptors)


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
    command: Sequence[str],
    cores: Sequence[int],
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | int = subprocess.DEVNULL,
    directory: Path | None = None,
    stdin: IO[bytes] | int | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command`` on ``cores`` as the leader of a session of its own."""
    with on_cores(cores):
        return subprocess.Popen(
            command,
            start_new_session=True,
            env=os.environ | dict(environment or {}),
            stdin=stdin,
            stdout=log,
            stderr=None if isinstance(log, int) else subprocess.STDOUT,
            cwd=directory,
        )


def signal_all(leader: int, signum: signal.Signals) -> None:
    for pid in tree(leader):
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue


def end_session(process: subprocess.Popen[bytes]) -> None:
    """Ask the leader to end, then make sure that nothing it started lives on.

    What it started gets a moment of its own: helpers that remove semaphores and shared memory end last.
    """
    pids = tree(process.pid).keys()
    signal_all(process.pid, signal.SIGCONT)
    process.terminate()
    try:
        process.wait(END_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    begin = time.monotonic()
    while (left := pids & living()) and (waited := time.monotonic() - begin) < 2 * END_GRACE_S:
        for pid in left if waited > HELPERS_GRACE_S else ():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)
    process.wait()
