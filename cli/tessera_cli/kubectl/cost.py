"""``kubectl tessera cost``: what services hold, what it costs, what is idle, and what quotas leave."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tessera_cli.cost_tables import add_what_argument, costs_of, show
from tessera_cli.kubectl.facts import seen_by_plans, settings
from tessera_cli.output import add_output_argument
from tessera_core.plan import Budget, ClusterState, Policy
from tessera_core.plan.nodes import running
from tessera_operator.kinds import Document
from tessera_operator.world import World

if TYPE_CHECKING:
    from tessera_cli.kubectl.cluster import Cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "A service pays for what nodes were told to run of it, busy or not; IDLE is its part of what nobody holds in "
        "the same pool, LOADED is both. Quotas count parts of devices, and whole devices by SMs or cores."
    )
    add_what_argument(parser)
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="services of every namespace"
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace, cluster: Cluster) -> int:
    state = charged(seen_by_plans(cluster), settings(cluster).policy)
    namespace = "" if arguments.all_namespaces else cluster.namespace
    show(arguments.what, costs_of(state, running(state)), arguments.output, namespace)
    return 0


def charged(documents: Iterable[Document], policy: Policy) -> ClusterState:
    """The cluster as the operator charges it."""
    world = World()
    for document in documents:
        world.put(document)
    return world.observe(policy, Budget()).state
