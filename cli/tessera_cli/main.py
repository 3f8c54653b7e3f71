"""The `tessera` command.

Each verb is a module with ``add_arguments(parser)`` and ``run(arguments) -> int``, imported when it is
used: planning and simulating need none of the serving libraries.

Exit codes: 0 done, 1 the thing asked about is not so or failed, 2 wrong usage, 78 a port is taken or a certificate of no use,
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from tessera_cli.quiet import quietly
from tessera_core import __version__

VERBS = {
    "serve": "serve ModelServices on this machine",
    "status": "show what a local server does",
    "validate": "check files against the API",
    "plan": "place services on a cluster that is described in a file",
    "cost": "say what planned or running services cost, and what is idle",
    "simulate": "simulate planned services under load",
    "profile": "measure a model on this machine",
    "tune": "find the fastest way to run models on a share of this machine",
    "bench": "send load to a running server",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one verb and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="tessera", description="Serve ensembles of DNNs under latency SLOs."
    )
    parser.add_argument("--version", action="version", version=f"tessera {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    wanted = argv[0] if argv and argv[0] in VERBS else None
    for verb, text in VERBS.items():
        child = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        if verb == wanted:
            try:
                module = importlib.import_module(f"tessera_cli.{verb}")
            except ModuleNotFoundError as error:
                if error.name is None or error.name.startswith("tessera"):
                    raise
                print(
                    f"tessera {verb}: {error.name} is not installed; "
                    "install tessera[runtime], or tessera[onnx] without torch",
                    file=sys.stderr,
                )
                return 1
            module.add_arguments(child)
            child.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    return quietly(arguments.run)(arguments)
