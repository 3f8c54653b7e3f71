"""NVIDIA's Multi-Process Service, for as long as it is measured: a daemon of our own, in a directory of our own.

Without it, processes take turns on a GPU; with it, their kernels run at once. Clients find the daemon by the directory
of its pipes, so those of others are never touched, and the GPU's settings stay as they are.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.processes import end_session, start_session

from tessera_runtime.mps import CONTROL, LOG, PIPES, control

READY_S = 10.0
ASK_S = 10.0
_POLL_S = 0.05


class MpsFailed(Exception):
    """The daemon did not start; the message says what it said."""


@contextmanager
def mps(directory: Path, cores: Sequence[int]) -> Iterator[Mapping[str, str]]:
    """A daemon until the block ends; yields what makes a process its client. Raises MpsFailed.

    ``directory`` is made here; its path must be short, for there are sockets in it.
    """
    program = control()
    if not program:
        raise MpsFailed(f"{CONTROL} is not installed")
    clients = {PIPES: str(directory / "pipes")}
    environment = clients | {LOG: str(directory / "log")}
    for name in ("pipes", "log"):
        (directory / name).mkdir(parents=True, mode=0o700)
    with (directory / "said").open("wb") as said:
        daemon = start_session([program, "-f"], cores, environment, said)
        try:
            give_up = time.monotonic() + READY_S
            while servers(environment) is None:
                if daemon.poll() is not None or time.monotonic() > give_up:
                    raise MpsFailed(f"{CONTROL} does not answer: {_last_words(directory)}")
                time.sleep(_POLL_S)
            yield clients
        finally:
            if daemon.poll() is None:
                _ask(environment, "quit -t 2")
            end_session(daemon)


def servers(environment: Mapping[str, str]) -> tuple[str, ...] | None:
    """Process ids of the daemon's servers: one per user that has clients. None when it does not answer."""
    said = _ask(environment, "get_server_list")
    return None if said is None else tuple(word for word in said.split() if word.isdigit())


def _ask(environment: Mapping[str, str], command: str) -> str | None:
    try:
        done = subprocess.run(
            [control()],
            input=f"{command}\n",
            env=os.environ | dict(environment),
            capture_output=True,
            text=True,
            timeout=ASK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else done.stdout


def _last_words(directory: Path) -> str:
    lines = []
    for path in (directory / "said", *sorted((directory / "log").glob("*.log"))):
        lines += path.read_text(errors="replace").splitlines()[-4:]
    return " | ".join(lines) or "it said nothing"
