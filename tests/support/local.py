"""`tessera` as a user runs it in local mode."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESSERA = [sys.executable, "-c", "from tessera_cli.main import main; main()"]
WAIT_S = 90.0


def until(condition: Callable[[], Any], explain: Callable[[], str]) -> Any:
    give_up = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < give_up, explain()
    return found


def tessera(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TESSERA, *arguments], capture_output=True, text=True, timeout=WAIT_S, check=False
    )


@contextmanager
def serving(service: Path, *options: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    state_dir = service.parent / "state"
    ports = ("--http=0", "--grpc=0", "--metrics=0")
    log = (service.parent / "serve.log").open("w+")
    process = subprocess.Popen(
        [*TESSERA, "serve", "-f", str(service), "--state-dir", str(state_dir), *ports, *options],
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def ready() -> dict[str, Any] | None:
        assert process.poll() is None, (service.parent / "serve.log").read_text()
        found = tessera("status", "--state-dir", str(state_dir), "-o", "json")
        return json.loads(found.stdout) if found.returncode == 0 else None

    try:
        yield until(ready, lambda: (service.parent / "serve.log").read_text()), process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(WAIT_S)
        log.close()
