"""What each node is to be told: its RuntimeNode's spec. Pure but for ``Routers``, which remembers since when."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera_core.api import Device, RuntimeNode, RuntimeNodeSpec
from tessera_core.api.measurements import ProfilingTask, TuningTask
from tessera_core.api.meta import NameRef
from tessera_core.api.modelservice import ModelServiceSpec, ScalingMode
from tessera_core.api.runtimenode import (
    BatchLine,
    BatchTime,
    ServedMember,
    ServedService,
)
from tessera_operator.routes import Home, Member, peers, served_status
from tessera_operator.versions import Version

QUIET_S = 45.0
"""A node that has left a service goes on passing requests on until none came for so long: agents report counters
every 30 s, and clients' connections have a maximum age."""
MOST_ROUTING_S = 900.0
_GONE_S = 5.0
"""The same for a service that was deleted: only what is on its way."""


@dataclass(frozen=True, slots=True)
class Context:
    """What is equal for all nodes."""

    versions: Mapping[str, Version]
    newest: Mapping[str, Version]
    homes: Mapping[Member, Sequence[Home]]
    times: Mapping[Member, BatchTime]
    lines: Mapping[Member, tuple[BatchLine, ...]]
    epoch: int
    plan: str | None


def holds(spec: ModelServiceSpec) -> int:
    """Requests that may wait for a first instance; 0: the service always has one."""
    scaling = spec.scaling
    sleeps = scaling.mode is ScalingMode.SLO and scaling.min_replicas == 0
    return scaling.max_held_requests if sleeps else 0


def spec_of(
    node: RuntimeNode,
    devices: tuple[Device, ...],
    routed: Collection[str],
    profiling: tuple[ProfilingTask, ...],
    tuning: tuple[TuningTask, ...],
    context: Context,
) -> RuntimeNodeSpec:
    """The spec of ``node``; the present one, where it says the same.

    ``routed``: services whose requests may come here although nothing of them runs here.
    """
    hosted = {each.service for device in devices for each in device.instances} | set(routed)
    before = {each.name: each for each in node.spec.services}
    services = []
    for name in sorted(hosted):
        version = context.versions.get(name)
        if version is not None:
            services.append(_served(version, node.metadata.name, context))
        elif name in before:
            # Deleted, or no longer readable: as it is, until it is gone from here.
            services.append(before[name])
    asked = {task.service for task in profiling} | {task.service for task in tuning}
    candidates = {name: context.newest[name] for name in asked}
    wanted = RuntimeNodeSpec(
        epoch=context.epoch,
        plan_ref=node.spec.plan_ref,
        devices=devices,
        services=tuple(services),
        candidates=tuple(
            ServedService(name, each.generation, each.service.spec, _known(each))
            for name, each in sorted(candidates.items())
        ),
        profiling=profiling,
        tuning=tuning,
    )
    if wanted == node.spec or context.plan is None:
        return wanted
    return replace(wanted, plan_ref=NameRef(context.plan))


def _served(version: Version, node: str, context: Context) -> ServedService:
    name, spec = version.name, version.service.spec
    return ServedService(
        name=name,
        generation=version.generation,
        spec=spec,
        members=tuple(
            ServedMember(
                member.name,
                version.digests.get(member.name),
                batch_time=context.times.get((name, member.name)),
                batch_lines=context.lines.get((name, member.name), ()),
                routes=peers(context.homes.get((name, member.name), ()), node),
            )
            for member in spec.placed
        ),
        hold=holds(spec),
    )


def _known(version: Version) -> tuple[ServedMember, ...]:
    return tuple(ServedMember(name, digest) for name, digest in sorted(version.digests.items()))


@dataclass(slots=True)
class _Left:
    since_s: float
    total: int
    quiet_s: float


class Routers:
    """Services that nodes have left and still pass requests on for. Not thread-safe."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, str], _Left] = {}

    def of(
        self,
        node: RuntimeNode,
        hosted: Collection[str],
        listed: Collection[str],
        alive: Collection[str],
        now_s: float,
    ) -> tuple[str, ...]:
        """Those of ``node``. ``hosted``: what it runs; ``listed``: services whose clients are sent to it;
        ``alive``: services that are not being deleted.
        """
        name = node.metadata.name
        found = []
        for served in node.spec.services:
            key = name, served.name
            if served.name in hosted:
                self._left.pop(key, None)
                continue
            status = served_status(node, served.name)
            total = status.total if status is not None else 0
            left = self._left.setdefault(key, _Left(now_s, total, now_s))
            if served.name in listed or (status is not None and status.held):
                left.since_s = now_s
            if total != left.total:
                left.total, left.quiet_s = total, now_s
            if served.name not in alive:
                goes_on = now_s - left.since_s < _GONE_S
            else:
                quiet = now_s - max(left.since_s, left.quiet_s) >= QUIET_S
                goes_on = not quiet and now_s - left.since_s < MOST_ROUTING_S
            if goes_on:
                found.append(served.name)
        return tuple(found)

    def forget(self, nodes: Iterable[RuntimeNode]) -> None:
        """Drop what is known of services that have gone from ``nodes``, and of nodes that are not among them."""
        present = {(node.metadata.name, each.name) for node in nodes for each in node.spec.services}
        self._left = {key: left for key, left in self._left.items() if key in present}

    @property
    def waiting(self) -> bool:
        """Whether time alone will change something."""
        return bool(self._left)
