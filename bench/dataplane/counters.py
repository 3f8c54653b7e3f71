"""Copies, wake-ups and system calls per batch of a running Tessera.

From its own counters where it has them, else from the kernel's: a voluntary context switch is a process that
waited and was woken; strace counts system calls (it slows the server several times over, so nothing is timed
under it); without strace the calls that read and write are in /proc.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.dataplane.running import Running
from bench.peers.base import HOST
from bench.peers.tessera import report
from bench.processes import tree

_COPIED = re.compile(r"^tessera_input_copied_bytes_total\{[^}]*\} ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Roles:
    """Process ids of the two that a request passes through."""

    dispatcher: int
    workers: tuple[int, ...]


def roles(server: Running) -> Roles:
    workers = tuple(worker.pid for worker in report(server.directory).workers)
    for pid in tree(server.pid):
        if b"tessera_runtime.dispatch.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return Roles(pid, workers)
    raise RuntimeError("the server has no dispatcher")


def batches(server: Running) -> int:
    return sum(m.batches for s in report(server.directory).services for m in s.members)


def wakes(pid: int) -> int:
    """Voluntary context switches of all threads."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        total += int(lines["voluntary_ctxt_switches"])
    return total


def copied(server: Running) -> float:
    """Bytes of inputs that the server has copied itself, after the socket's own copy."""
    with urllib.request.urlopen(f"http://{HOST}:{server.ports.metrics}/metrics", timeout=5) as page:
        return parse_copied(page.read().decode())


def parse_copied(page: str) -> float:
    return sum(float(value) for value in _COPIED.findall(page))


def per_batch(server: Running, load: Callable[[], int], row_bytes: int) -> dict[str, float]:
    """While ``load`` runs, which returns its requests of ``row_bytes``: figures per batch, by name.

    The first copy of an input is the socket's own, into the arena where the front end could name the place.
    """
    who = roles(server)

    def read() -> dict[str, float]:
        return {
            "batches": batches(server),
            "dispatcher wake-ups": wakes(who.dispatcher),
            "worker wake-ups": sum(map(wakes, who.workers)),
            "copied": copied(server),
        }

    before = read()
    requests = load()
    grown = {name: value - before[name] for name, value in read().items()}
    count = grown.pop("batches")
    figures = {name: value / count for name, value in grown.items()}
    figures["rows per batch"] = requests / count * len(who.workers)
    figures["copies"] = 1 + figures.pop("copied") * count / (requests * row_bytes)
    before_batches = batches(server)
    calls = system_calls(who, load)
    count = batches(server) - before_batches
    return figures | {f"{who} system calls": n / count for who, n in calls.items()}


def system_calls(who: Roles, load: Callable[[], int]) -> dict[str, int]:
    """Made during ``load``, by role; empty without strace or the right to use it."""
    if shutil.which("strace") is None:
        return {}
    sides = {"dispatcher": (who.dispatcher,), "worker": who.workers}
    counted = {}
    with tempfile.TemporaryDirectory(prefix="bench-strace-") as name:
        traced = {}
        for side, pids in sides.items():
            attach = [part for pid in pids for part in ("-p", str(pid))]
            out = Path(name) / side
            argv = ["strace", "-f", "-c", "-q", "-o", str(out), *attach]
            traced[side] = (out, subprocess.Popen(argv, stderr=subprocess.DEVNULL))
        load()
        for side, (out, process) in traced.items():
            process.send_signal(signal.SIGINT)
            process.wait()
            counted[side] = parse_strace(out.read_text() if out.exists() else "")
    return {side: calls for side, calls in counted.items() if calls}


def parse_strace(summary: str) -> int:
    """Calls in the last line of ``strace -c``; 0 where there is none."""
    for line in reversed(summary.splitlines()):
        if line.endswith(" total"):
            return int(line.split()[3])
    return 0
