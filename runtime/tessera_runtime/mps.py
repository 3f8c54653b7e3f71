"""NVIDIA's MPS on this machine: its program, its directories, and what of it is still alive.

A daemon and the server that it starts are found by the directory of their pipes, which their environment names from their
start on: process numbers may be used anew, and whoever started them may have been killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from tessera_core.gpu.mps import MOST_CLIENTS

CONTROL = "nvidia-cuda-mps-control"
ALSO_IN = ("/usr/bin", "/usr/local/nvidia/bin", "/usr/local/cuda/bin")

PIPES, LOG = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--mps`` and ``--mps-processes``, for :func:`processes`."""
    parser.add_argument(
        "--mps",
        action="store_true",
        help="give each instance on a GPU a process of its own, through NVIDIA's Multi-Process Service",
    )
    parser.add_argument(
        "--mps-processes",
        type=_clients,
        default=MOST_CLIENTS,
        metavar="N",
        help="under MPS: most of a namespace on a whole GPU, fewer on a slice; further instances share them (%(default)d)",
    )


def processes(arguments: argparse.Namespace) -> int:
    """Of a namespace that share a whole GPU through MPS; 0: none."""
    return int(arguments.mps_processes) if arguments.mps else 0


def control() -> str:
    """The daemon's program; empty where it is not installed."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *ALSO_IN))
    return shutil.which(CONTROL, path=path) or ""


def clear(directory: Path) -> None:
    """Kill every daemon and server of MPS whose pipes are in ``directory``, and remove it, if it is there."""
    for pidfd in _processes(directory):
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)
    shutil.rmtree(directory, ignore_errors=True)


def _processes(directory: Path) -> Iterator[int]:
    """Descriptors of them, for the caller to close."""
    pipes = f"{PIPES}={directory}/".encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            pidfd = os.pidfd_open(int(name))
        except OSError:
            continue
        try:
            # Read after it was opened: it is of this very process, whatever has its number later.
            variables = Path("/proc", name, "environ").read_bytes().split(b"\0")
        except OSError:  # of another user, or gone
            variables = []
        if any(each.startswith(pipes) for each in variables):
            yield pidfd
        else:
            os.close(pidfd)


def _clients(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MOST_CLIENTS:
        allowed = f"1 to {MOST_CLIENTS} processes"
        raise argparse.ArgumentTypeError(f"found {text[:64]!r}, allowed: {allowed}")
    return int(text)
