"""Options of a server that more than one command takes: they are called and described alike wherever they are.

``tessera serve`` starts a supervisor, and that a dispatcher. What a user tells the first is said again to the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ADDRESSES = ("host", "http", "grpc", "metrics")
CONFINEMENT = ("readable", "workers-unconfined")
TLS_FILES = ("tls-cert", "tls-key", "tls-client-ca")

_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "host": {"default": "127.0.0.1"},
    "http": {"type": int, "default": 8000, "help": "port; 0 takes any free one"},
    "grpc": {"type": int, "default": 8001, "help": "port"},
    "metrics": {"type": int, "default": 8002, "help": "port, also of health"},
    "readable": {
        "type": Path,
        "action": "append",
        "default": [],
        "metavar": "PATH",
        "help": "file or directory that models may read beside their own files (repeatable)",
    },
    "workers-unconfined": {
        "action": "store_true",
        "help": "let models read, write and connect to all that the server may",
    },
    "artefacts": {
        "type": Path,
        "metavar": "DIRECTORY",
        "help": "where what is compiled for models is kept; only the server's user may write into it",
    },
    "tls-cert": {
        "type": Path,
        "metavar": "FILE",
        "help": "serve HTTP and gRPC over TLS: certificate and its chain, PEM",
    },
    "tls-key": {"type": Path, "metavar": "FILE", "help": "its key, without a password"},
    "tls-client-ca": {
        "type": Path,
        "metavar": "FILE",
        "help": "clients have to show a certificate of one of these authorities",
    },
    "hang-timeout": {
        "type": float,
        "default": 10.0,
        "metavar": "SECONDS",
        "help": "a process whose batch takes longer is ended, unless the profile says that it takes long",
    },
    "drain-timeout": {
        "type": float,
        "default": 30.0,
        "metavar": "SECONDS",
        "help": "most that requests may take to be answered when the server ends",
    },
    "shutdown-delay": {
        "type": float,
        "default": 0.0,
        "metavar": "SECONDS",
        "help": "after SIGTERM say not ready, but keep answering for so long before the drain",
    },
    "log-level": {"default": "info"},
}


def add(parser: argparse.ArgumentParser | argparse._ArgumentGroup, *names: str) -> None:
    """Have ``parser`` take the options called so."""
    for name in names:
        parser.add_argument(f"--{name}", **_OPTIONS[name])


def again(arguments: argparse.Namespace) -> list[str]:
    """All of these options that ``arguments`` has, for the command line of another process.

    It may be in another directory: paths become absolute.
    """
    said = []
    for name in _OPTIONS:
        found = getattr(arguments, name.replace("-", "_"), None)
        if found is True:
            said.append(f"--{name}")
        elif found is not None and found is not False:
            for each in found if isinstance(found, list) else [found]:
                said.append(f"--{name}={each.absolute() if isinstance(each, Path) else each}")
    return said
