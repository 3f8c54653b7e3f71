"""Where models may be tuned: slices that nothing uses, beside copies that can bear it. Pure.

Compiling and benchmarks load what slices share: memory bandwidth and cache of a processor, the power of a GPU. Beside copies
that are close to their target, or that are busy, nothing is tuned, as neither MPS nor a set of cores keeps that apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from tessera_core.api import RuntimeNode
from tessera_core.api.measurements import ProfilingTask
from tessera_core.api.runtimenode import Device, DeviceStatus, Health, MigMode
from tessera_core.gpu.devices import FULL
from tessera_core.gpu.mig import label
from tessera_core.plan.decision import Assignment, Plan, ServicePlan
from tessera_core.plan.nodes import slice_name
from tessera_core.plan.state import CPU
from tessera_core.plan.state_in import parse_slice
from tessera_operator.profiling import Place, spots
from tessera_operator.variants import Uses

MOST_LOAD = 0.7
"""Of what a neighbour's copies can carry: beyond it, batches that take a little longer make queues."""
MOST_LATENCY = 0.8
"""Of a neighbour's latency target, as predicted."""

Spot = tuple[str, str, str]
"""(node, device, slice)."""


def free_spots(
    node: RuntimeNode,
    place: Place,
    planned: Iterable[Assignment],
    profiling: Iterable[ProfilingTask],
    reserved_cores: int,
) -> tuple[Spot, ...]:
    """Slices of ``node`` of the kind ``place`` that nothing runs on, is about to or is measured on, the last ones first,
    and before them those where something is being tuned.

    ``planned``: of this node. While a node measures, nothing is tuned on the processor or the GPU that it measures on.
    """
    product, kind = place
    held = [
        *((device.uuid, each.slice) for device in node.spec.devices for each in device.instances),
        *((device.uuid, each.slice) for device in node.status.devices for each in device.instances),
        *((each.device, slice_name(each.slice)) for each in planned),
    ]
    measured_on = {task.device for task in profiling}
    found: list[Spot] = []
    told = {device.uuid: device for device in node.spec.devices}
    for device in node.status.devices:
        if label(device.product) != product or device.uuid in measured_on:
            continue
        used = [piece for uuid, piece in held if uuid == device.uuid]
        if product == CPU:
            cores = node.status.cpu.cores if node.status.cpu is not None else 0
            before = [each.slice for each in node.spec.tuning if each.device == device.uuid]
            pieces = _free_cores(kind, used, cores, reserved_cores, before)
        else:
            pieces = _free_slices(kind, used, device, told.get(device.uuid))
        found += ((node.metadata.name, device.uuid, piece) for piece in pieces)
    return tuple(found)


def _free_cores(
    kind: str, used: Iterable[str], cores: int, reserved: int, before: Iterable[str]
) -> Iterator[str]:
    """Sets of cores that do not cross. ``before``: where tuning is under way, which stays where it is if it may."""
    taken = {core for piece in used for core in parse_slice(piece).cores} | set(range(reserved))
    for piece in before:
        mine = parse_slice(piece)
        if mine.name == kind and taken.isdisjoint(mine.cores) and max(mine.cores) < cores:
            taken.update(mine.cores)
            yield piece
    count = len(parse_slice(kind).cores)
    first = cores - count
    while first >= 0:
        if taken.isdisjoint(range(first, first + count)):
            yield f"{kind}@{first}"
            first -= count
        else:
            first -= 1


def _free_slices(
    kind: str, used: Collection[str], device: DeviceStatus, told: Device | None
) -> Iterator[str]:
    if device.health is Health.UNHEALTHY or (told is not None and told.cut):
        return  # what is being cut, or was for a plan, is kept for that
    if device.mig_mode is MigMode.DISABLED:
        if kind == FULL and not used:
            yield FULL
        return
    for each in sorted(device.slices, key=lambda each: each.start, reverse=True):
        piece = f"{each.profile}@{each.start}"
        if each.profile == kind and piece not in used:
            yield piece


def has_slack(neighbours: Iterable[Assignment], services: Mapping[str, ServicePlan]) -> bool:
    """Whether what runs beside can bear batches that take a little longer for a while."""
    for each in neighbours:
        service = services.get(each.service)
        if service is None or service.short is not None:
            return False
        if (
            each.load > MOST_LOAD * each.rate
            or service.latency_ms > MOST_LATENCY * service.target_ms
        ):
            return False
    return True


Allows = Callable[[str, str, RuntimeNode], bool]
"""Whether a (service, member) may be run on a node, beside what is there."""


class Ground:
    """Where tuning may go on now."""

    def __init__(
        self,
        nodes: Sequence[RuntimeNode],
        plan: Plan,
        profiling: Mapping[str, Sequence[ProfilingTask]],
        reserved_cores: int,
        allows: Allows,
    ) -> None:
        """``nodes``: that are heard of and steady; ``profiling``: by node."""
        self.nodes, self.profiling, self.allows = nodes, profiling, allows
        self._reserved_cores = reserved_cores
        self._services = {each.service: each for each in plan.services}
        self._planned: dict[str, list[Assignment]] = {}
        for each in plan.assignments:
            self._planned.setdefault(each.node, []).append(each)

    def free(self, node: RuntimeNode, place: Place) -> tuple[Spot, ...]:
        """Slices of this kind that nothing uses, whatever runs beside them."""
        name = node.metadata.name
        planned, measuring = self._planned.get(name, ()), self.profiling.get(name, ())
        return free_spots(node, place, planned, measuring, self._reserved_cores)

    def spots(self, service: str, member: str, place: Place) -> list[Spot]:
        """Where a member may be tuned for ``place``."""
        found: list[Spot] = []
        for node in self.nodes:
            here = self.free(node, place)
            if not here or not self.allows(service, member, node):
                continue
            planned = self._planned.get(node.metadata.name, ())
            for spot in here:
                beside = [each for each in planned if each.device == spot[1]]
                if has_slack(beside, self._services):
                    found.append(spot)
        return found


def crosses(spot: Spot, taken: Collection[Spot]) -> bool:
    """Whether ``spot`` has a core, or is a slice, of those that are taken."""
    node, device, piece = spot
    mine = parse_slice(piece)
    for other_node, other_device, other in taken:
        if (other_node, other_device) != (node, device):
            continue
        theirs = parse_slice(other)
        if other == piece or set(mine.cores) & set(theirs.cores):
            return True
    return False


def to_measure(
    unmeasured: Uses,
    ground: Ground,
    cpu_slices: Sequence[int],
) -> dict[str, ProfilingTask]:
    """Profiling tasks for variants that are about to be used, one of each node that measures nothing else.

    On a free slice where there is one; else, as all measurements, beside what serves.
    """
    tasks: dict[str, ProfilingTask] = {}
    begun: set[tuple[str, Place, str]] = set()
    for use, variant in sorted(unmeasured.items()):
        what = use.digest, use.place, variant
        if what in begun:
            continue
        free: list[tuple[bool, bool, int, str, Spot]] = []
        for node in ground.nodes:
            name = node.metadata.name
            if name in tasks or name in ground.profiling:
                continue
            if not ground.allows(use.service, use.member, node):
                continue
            idle = ground.free(node, use.place)
            there = [
                (name, each.device, each.slice)
                for each in spots(node, cpu_slices)
                if each.place == use.place
            ]
            for spot in (*idle[:1], *there):
                told = ProfilingTask(use.service, use.member, *spot[1:], variant)
                running = sum(len(each.instances) for each in node.spec.devices)
                free.append(
                    (told not in node.spec.profiling, spot not in idle, running, name, spot)
                )
        if free:
            *_, name, spot = min(free)
            begun.add(what)
            tasks[name] = ProfilingTask(use.service, use.member, *spot[1:], variant)
    return tasks
