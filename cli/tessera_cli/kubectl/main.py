"""The `kubectl-tessera` command, which kubectl finds on the PATH and runs as `kubectl tessera`.

Each verb is a module with ``add_arguments(parser)`` and ``run(arguments, cluster) -> int``. Only ``cluster.py`` knows
the Kubernetes client; it is imported once the arguments are known to be right, as it costs most of a second.

Exit codes: 0 done, 1 the thing asked about is not so or failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from tessera_cli.kubectl.objects import Failed
from tessera_cli.quiet import quietly
from tessera_core import __version__

VERBS = {
    "status": "show ModelServices: whether they are ready and keep their SLO, and where they run",
    "top": "show what nodes have and give, or what services use and get",
    "cost": "show what services hold, what it costs, what is idle, and what quotas leave",
    "explain": "say why a service is placed as it is, or refused",
    "plan": "show what would be decided now, or the plans that were decided",
    "approve": "let a PlacementPlan be carried out",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one verb and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="kubectl tessera", description="Look at what Tessera serves in a cluster."
    )
    parser.add_argument("--version", action="version", version=f"kubectl-tessera {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    wanted = argv[0] if argv and argv[0] in VERBS else None
    for verb, text in VERBS.items():
        child = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        if verb == wanted:
            module = importlib.import_module(f"tessera_cli.kubectl.{verb}")
            module.add_arguments(child)
            child.set_defaults(run=module.run)
            _add_connection(child)
    arguments = parser.parse_args(argv)
    return quietly(_connected)(arguments)


def _add_connection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, then ~/.kube/config"
    )
    group.add_argument("--context", metavar="NAME", help="of the kubeconfig; default: the current")
    group.add_argument(
        "-n", "--namespace", metavar="NAME", help="of ModelServices; default: the context's"
    )
    group.add_argument(
        "--system-namespace",
        metavar="NAME",
        default="tessera-system",
        help="where Tessera is installed; default: %(default)s",
    )


def _connected(arguments: argparse.Namespace) -> int:
    try:
        from tessera_cli.kubectl.cluster import connect
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tessera"):
            raise
        return _fail(arguments.verb, f"{error.name} is not installed; install tessera[kubectl]")
    try:
        with connect(arguments) as cluster:
            code: int = arguments.run(arguments, cluster)
            return code
    except Failed as failed:
        return _fail(arguments.verb, str(failed))


def _fail(verb: str, message: str) -> int:
    print(f"kubectl tessera {verb}: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
