"""Where the time of a row goes: ``--profile`` runs py-spy on the dispatcher and the workers under the row's load.

With native frames, so that libraries in C show. Nothing is timed while it runs.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench.dataplane.counters import roles
from bench.dataplane.running import Running
from bench.harness import Row
from bench.peers.base import ENVIRONMENTS, not_installed

PY_SPY = ENVIRONMENTS / "py_spy" / "bin" / "py-spy"
SAMPLES_PER_S = 400
HEAVIEST = 10
WAITS = ("epoll_wait", "epoll_pwait", "poll ", "recvmsg", "pthread_cond", "select ", "accept")
"""Beginnings of the frames of a thread that waits; py-spy does not tell those in libraries from others."""

_PYTHON = re.compile(r"\((?:.*/)?([^/]*\.py):\d+\)")
_INTERPRETER = re.compile(r"\((?:\w+\.[ch]:\d+|libpython\S*|<\w+>:\d+)\)$")
_LINE = re.compile(r":\d+\)$")

LEAST_S = 8.0
"""A worker that mostly waits gives few samples: shares of a handful say nothing, so their number is shown too."""

_FIRST_S = 0.5
"""For py-spy to attach before the load begins to be watched."""


def missing() -> str:
    return not_installed("py_spy")


def profile(
    server: Running, labels: dict[str, str], load: Callable[[float], None], seconds: float
) -> list[Row]:
    """The heaviest frames of each process while ``load`` runs for so long, as shares of its samples.

    ``seconds`` are raised to LEAST_S.
    """
    who = roles(server)
    seconds = max(seconds, LEAST_S)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-profile-") as name:
        watched = []
        for role, pid in (("dispatcher", who.dispatcher), ("worker", who.workers[0])):
            out = Path(name) / role
            argv = [
                *(str(PY_SPY), "record", "--format", "raw", "--native"),
                *("--rate", str(SAMPLES_PER_S), "--duration", f"{seconds:.0f}"),
                *("--pid", str(pid), "--output", str(out)),
            ]
            quiet = subprocess.DEVNULL
            watched.append((role, out, subprocess.Popen(argv, stdout=quiet, stderr=quiet)))
        load(seconds + 2 * _FIRST_S)
        for role, out, process in watched:
            process.wait()
            shares = heaviest(out.read_text() if out.exists() else "")
            rows.append(Row(labels | {"group": "profile", "role": role}, (shares,)))
    return rows


def heaviest(stacks: str, most: int = HEAVIEST) -> dict[str, float]:
    """Functions by their share of the samples that ended in them; ``stacks`` is py-spy's raw format.

    A function written in Python has with it what the interpreter does for it. A call into a library is named
    with the function that made it. Samples that wait are left out.
    """
    ends: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not frames[-1].startswith(WAITS):
            ends[_named(frames)] += int(count)
    total = sum(ends.values())
    shares = {frame: count / total for frame, count in ends.most_common(most)}
    return {"samples": float(total)} | shares if total else {}


def _named(frames: list[str]) -> str:
    python = next((_PYTHON.sub(r"(\1)", each) for each in reversed(frames) if ".py:" in each), "")
    last = frames[-1]
    if python and (".py:" in last or _INTERPRETER.search(last)):
        return python
    return f"{python} > {_LINE.sub(')', last)}" if python else _LINE.sub(")", last)
