"""The partitioner of a node: what ``python -m tessera_runtime.partitioner`` runs.

The node is named by ``NODE_NAME`` (downward API). It opens no port and keeps no secret; the kubelet calls it on a socket that
only root reaches.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import signal
import sys

from tessera_runtime import logs
from tessera_runtime.kube import Access, Kube, KubeError
from tessera_runtime.partitioner.capability_nodes import Machine
from tessera_runtime.partitioner.device_plugin import DevicePlugin
from tessera_runtime.partitioner.loop import Partitioner

log = logging.getLogger(__name__)

MANAGER = "tessera-partitioner"
"""Field manager of what it writes."""

PATIENCE_S = 60.0
MOST_PATIENCE_S = 3600.0


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="tessera-partitioner")
    arguments.add_argument(
        "--patience",
        type=_patience,
        default=PATIENCE_S,
        metavar="SECONDS",
        help="that one try of a cut waits for what is in use (%(default)g); it is tried again",
    )
    Access.add_options(arguments)
    arguments.add_argument("--log-level", default="info")
    return arguments


def _patience(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MOST_PATIENCE_S:
        allowed = f"0 to {MOST_PATIENCE_S:g} seconds"
        raise argparse.ArgumentTypeError(f"found {text[:64]!r}, allowed: {allowed}")
    return seconds


async def run(arguments: argparse.Namespace, node: str) -> None:
    """Until SIGTERM. Raises KubeError outside a cluster."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    access = Access.of(arguments)
    async with Kube(access, MANAGER) as kube:
        plugin = asyncio.create_task(DevicePlugin(Machine()).run())
        try:
            await Partitioner(kube, node, patience_s=arguments.patience).run(stop)
        finally:
            plugin.cancel()


def main() -> None:
    """Entry point; exits with 0 after SIGTERM, 78 (EX_CONFIG) when it cannot know where it is."""
    arguments = parser().parse_args()
    logs.configure("partitioner", arguments.log_level)
    node = os.environ.get("NODE_NAME")
    if not node:
        log.error("NODE_NAME: found nothing, expected it in the environment")
        sys.exit(os.EX_CONFIG)
    try:
        log.info("partitioner of %s", node)
        asyncio.run(run(arguments, node))
    except KubeError as error:
        log.error("%s", error)
        sys.exit(os.EX_CONFIG)
