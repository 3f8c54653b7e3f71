"""A program in the place of nvidia-cuda-mps-control: it starts, answers, ends and fails as NVIDIA's daemon does.

What it stands for beside that: the server is another process, which its own end leaves behind when it is killed; and what one
client does that a GPU takes for a fault ends the work of all. Such a client writes into the file ``fault`` beside the pipes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from support.server import started, wait_until
from tessera_runtime.mps import CONTROL, PIPES

PID_FILE = "nvidia-cuda-mps-control.pid"
"""Of the daemon, in the directory of its pipes (NVIDIA, Multi-Process Service, "Utilities and Daemons")."""

_PROGRAM = """#!/bin/sh
control="$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid"
if [ "$1" = -f ]; then
  echo "$$ $CUDA_MPS_PIPE_DIRECTORY $CUDA_VISIBLE_DEVICES" >> "$MPS_STAND_IN/starts"
  [ -e "$MPS_STAND_IN/refuses" ] && { echo "no such device"; exit 3; }
  [ -d "$CUDA_MPS_LOG_DIRECTORY" ] || exit 4
  : > "$CUDA_MPS_PIPE_DIRECTORY/fault"
  sleep 1000 & server=$!
  echo $server > "$CUDA_MPS_PIPE_DIRECTORY/server"
  trap 'kill $server; exit 0' TERM
  echo $$ > "$control"
  wait $server
  exit 1
fi
read -r command rest
kill -0 "$(cat "$control" 2>/dev/null)" 2>/dev/null || exit 1
case "$command" in
  get_server_list) cat "$CUDA_MPS_PIPE_DIRECTORY/server" ;;
  quit) [ -e "$MPS_STAND_IN/stubborn" ] || kill "$(cat "$control")" ;;
esac
"""


@dataclass(frozen=True)
class Daemon:
    pid: int
    pipes: Path
    visible: str
    """What GPU or slice it was given."""

    @classmethod
    def of(cls, pipes: Path) -> Daemon | None:
        """The one whose pipes are there, also of NVIDIA's; None where none is, or it ends."""
        try:
            pid = int((pipes / PID_FILE).read_text())
            variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        except (OSError, ValueError):
            return None
        values = dict(each.partition("=")[::2] for each in variables)
        return cls(pid, pipes, values.get("CUDA_VISIBLE_DEVICES", ""))

    @property
    def directory(self) -> Path:
        return self.pipes.parent

    def processes(self) -> set[int]:
        """Of the daemon and its server, those that are alive."""
        known = {self.pid, *self._server()}
        return {pid for pid in known if started(pid) and self._is_mine(pid)}

    def _server(self) -> list[int]:
        try:
            return [int((self.pipes / "server").read_text())]
        except (OSError, ValueError):
            return []

    def _is_mine(self, pid: int) -> bool:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"{PIPES}={self.pipes}".encode() in variables


class MpsStandIn:
    """Installed in ``folder``; :attr:`environment` has servers find it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        program = folder / "bin" / CONTROL
        program.parent.mkdir(parents=True)
        program.write_text(_PROGRAM)
        program.chmod(0o700)
        self.environment = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "MPS_STAND_IN": str(folder),
        }

    def refuse(self, refuses: bool = True) -> None:
        """Whether daemons do not start."""
        self._switch("refuses", refuses)

    def be_stubborn(self) -> None:
        """Daemons are told to quit, and do not."""
        self._switch("stubborn", True)

    @property
    def starts(self) -> tuple[Daemon, ...]:
        """All that were started, in order."""
        try:
            lines = (self._folder / "starts").read_text().splitlines()
        except FileNotFoundError:
            return ()
        fields = (line.split(" ") for line in lines)
        return tuple(Daemon(int(pid), Path(pipes), visible) for pid, pipes, visible in fields)

    @property
    def living(self) -> tuple[Daemon, ...]:
        return tuple(each for each in self.starts if each.processes())

    def wait_living(self, count: int) -> tuple[Daemon, ...]:
        """Until so many live, and of the others nothing is left."""
        wait_until(
            lambda: (
                len(self.living) == count
                and all(e.directory.exists() == bool(e.processes()) for e in self.starts)
            ),
            lambda: f"{count} daemons of {self.starts}; alive: {self.living}",
        )
        return self.living

    def _switch(self, name: str, on: bool) -> None:
        path = self._folder / name
        path.touch() if on else path.unlink(missing_ok=True)
