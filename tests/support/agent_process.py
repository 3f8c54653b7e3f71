"""The agent as a process of its own, as in a pod."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.node_api import NodeApi
from support.server import PATIENCE_S

_FOLDERS = (("run-dir", "run"), ("models", "models"), ("state", "state"))


@contextmanager
def running(log: Path, module: str, *options: str, **environment: str) -> Iterator[None]:
    """``python -m module`` of this node, until it has ended well."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *options],
            env={**os.environ, "NODE_NAME": "n", **environment},
            stderr=file,
        )
    try:
        yield
    finally:
        process.terminate()
        status = process.wait(PATIENCE_S)
    assert status == 0, log.read_text()


@contextmanager
def agent(api: NodeApi, folder: Path, *options: str, **environment: str) -> Iterator[None]:
    """Without any privilege, beside the server whose run directory is ``folder / "run"``. It ends when that has."""
    paths = [f"--{option}={folder / name}" for option, name in _FOLDERS]
    allowed = ("--allow-code", "--allow-loopback-stores")
    who = {"POD_NAME": "p", "POD_IP": "10.0.0.9", "POD_NAMESPACE": "default", "TESSERA_CORES": "2"}
    with running(
        folder / "agent.log",
        "tessera_runtime.agent.main",
        *(*paths, *allowed, *options, f"--api-server={api.url}"),
        **{**who, **environment},
    ):
        yield
