"""`tessera` as a user runs it in local mode."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.server import wait_until

TESSERA = [sys.executable, "-c", "from tessera_cli.main import main; main()"]
WAIT_S = 90.0


def tessera(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TESSERA, *arguments], capture_output=True, text=True, timeout=WAIT_S, check=False
    )


@contextmanager
def serving(service: Path, *options: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    state_dir = service.parent / "state"
    ports = ("--http=0", "--grpc=0", "--metrics=0")
    log = service.parent / "serve.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [*TESSERA, "serve", "-f", str(service), f"--state-dir={state_dir}", *ports, *options],
            stdout=written,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        wait_until(
            lambda: "ready: " in log.read_text() or process.poll() is not None,
            log.read_text,
            WAIT_S,
        )
        found = tessera("status", "--state-dir", str(state_dir), "-o", "json")
        assert found.returncode == 0, f"{found.stderr}\n{log.read_text()}"
        yield json.loads(found.stdout), process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(WAIT_S)
