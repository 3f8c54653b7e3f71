"""``python -m tessera_runtime.agent.main``: the agent container of a runtime pod.

Who and where it is comes from the environment (downward API): ``NODE_NAME``, ``POD_NAME``, ``POD_IP``,
``POD_NAMESPACE``; ``TESSERA_CORES`` are the cores of the pod, ``TESSERA_MEMORY_MIB`` the memory limit of the
server container, which the agent's own cgroup does not tell.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from tessera_runtime import logs, mps
from tessera_runtime.agent.cluster import ClusterAgent
from tessera_runtime.agent.heartbeat import Identity
from tessera_runtime.agent.keys import LEAST_READ_S, MOST_READ_S, READ_S
from tessera_runtime.devices.inventory import Inventory, inventory, of_pod, shared_by_mps
from tessera_runtime.kube import Access, Kube, KubeError
from tessera_runtime.models.cache import ModelCache
from tessera_runtime.models.fetch import REMEDIES
from tessera_runtime.models.guard import guard

log = logging.getLogger(__name__)

MANAGER = "tessera-agent"
"""Field manager of what agents write."""

SCHEMES = frozenset(REMEDIES) - {"file"}
"""Of models in a cluster: a file of the pod is nobody's model."""

DISK_SHARE = 0.9
"""Of the models' file system, where no size is given."""


class SettingInvalid(Exception):
    """The environment does not say who the agent is."""


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="tessera-agent")
    arguments.add_argument("--run-dir", type=Path, required=True, help="with the control socket")
    arguments.add_argument("--models", type=Path, required=True, help="cache of model files")
    arguments.add_argument("--state", type=Path, required=True, help="kept over restarts")
    arguments.add_argument("--models-mib", type=int, default=0, help="bound of the cache")
    arguments.add_argument(
        "--activator", action="store_true", help="no devices: only hold and pass on requests"
    )
    arguments.add_argument(
        "--allow-code", action="store_true", help="run TorchScript and Python models: programs"
    )
    arguments.add_argument(
        "--gpus-on-cores",
        action="store_true",
        help="run on processor cores what is placed on GPUs: for trials without any",
    )
    mps.add_options(arguments)
    arguments.add_argument(
        "--allow-loopback-stores", action="store_true", help="fetch models from this machine"
    )
    arguments.add_argument(
        "--keys-interval",
        type=_keys_interval,
        default=READ_S,
        metavar="SECONDS",
        help="between two looks at a Secret with keys of a service (%(default)g)",
    )
    Access.add_options(arguments)
    arguments.add_argument("--log-level", default="info")
    return arguments


def _keys_interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not LEAST_READ_S <= seconds <= MOST_READ_S:
        allowed = f"{LEAST_READ_S:g} to {MOST_READ_S:g} seconds"
        raise argparse.ArgumentTypeError(f"found {text[:64]!r}, allowed: {allowed}")
    return seconds


def identity(environment: Mapping[str, str], *, activator: bool) -> Identity:
    """Who the agent is. Raises SettingInvalid."""

    def setting(name: str) -> str:
        if not environment.get(name):
            raise SettingInvalid(f"{name}: found nothing, expected it in the environment")
        return environment[name]

    pod = setting("POD_NAME")
    return Identity(
        node=pod if activator else setting("NODE_NAME"),
        pod=pod,
        address=environment.get("POD_IP", ""),
        namespace=setting("POD_NAMESPACE"),
    )


def devices(environment: Mapping[str, str], *, activator: bool) -> Inventory | None:
    """What this pod gives to models; None for an activator. Raises SettingInvalid."""
    if activator:
        return None
    limits: dict[str, int | None] = {}
    for name in ("TESSERA_CORES", "TESSERA_MEMORY_MIB"):
        text = environment.get(name, "")
        if text and (not text.isdigit() or int(text) < 1):
            raise SettingInvalid(f"{name}: found {text!r}, expected a whole number from 1 on")
        limits[name] = int(text) if text else None
    return of_pod(inventory(), limits["TESSERA_CORES"], limits["TESSERA_MEMORY_MIB"])


async def run(arguments: argparse.Namespace, who: Identity, seen: Inventory | None) -> None:
    """Until SIGTERM and the end of the server. Raises KubeError outside a cluster."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    access = Access.of(arguments)
    arguments.models.mkdir(parents=True, exist_ok=True)
    size = arguments.models_mib << 20 or int(DISK_SHARE * shutil.disk_usage(arguments.models).total)
    cache = ModelCache(arguments.models, size, schemes=SCHEMES, single_tenant=False)
    async with Kube(access, MANAGER) as kube:
        agent = ClusterAgent(
            who,
            seen,
            kube,
            cache,
            arguments.run_dir,
            arguments.state,
            allow_code=arguments.allow_code,
            keys_read_s=arguments.keys_interval,
            gpus_on_cores=arguments.gpus_on_cores,
            mps=mps.processes(arguments),
        )
        await agent.run(stop)


def main() -> None:
    """Entry point; exits with 0 after SIGTERM, 78 (EX_CONFIG) when it cannot know who it is."""
    arguments = parser().parse_args()
    logs.configure("agent", arguments.log_level)
    guard(allow_loopback=arguments.allow_loopback_stores)
    try:
        who = identity(os.environ, activator=arguments.activator)
        seen = devices(os.environ, activator=arguments.activator)
        if seen is not None and arguments.mps:
            seen = shared_by_mps(seen)
        log.info("agent of %s", who.node, extra={"pod": who.pod})
        asyncio.run(run(arguments, who, seen))
    except (SettingInvalid, KubeError) as error:
        log.error("%s", error)
        sys.exit(os.EX_CONFIG)


if __name__ == "__main__":
    main()
