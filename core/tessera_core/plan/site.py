"""What every device holds while a plan is being carried out, and what may join it.

Problem: between the present and the wanted state lie many states, and each has to be legal: memory for old
and new together, cores that two sets do not share, slices that exist, tenants that may meet. Approach: one
value that is changed step by step and answers, for one more copy, which of the present ones are in its way.

A *copy* is a ``Located``: all instances of one member in one part of a device. A *room* is what has memory of
its own: a slice, a whole GPU, or all of a CPU device, whose sets of cores share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import ceil

from tessera_core.api import Isolation, ModelService
from tessera_core.gpu.devices import FULL
from tessera_core.gpu.geometry import Geometry, Placement, canonical, violations
from tessera_core.gpu.mig import find_profile
from tessera_core.plan.nodes import Located
from tessera_core.plan.state import ClusterState, DeviceState, NodeState, Running, Slice

Key = tuple[str, str]
"""(node, device)."""
Spot = tuple[str, str, Slice, str, str]
"""(node, device, slice, service, member): the identity of a copy, whatever its batch cap and instances."""
Room = tuple[Key, Slice | None]
"""What has memory of its own; a CPU device is one room."""
Memory = Callable[[DeviceState, Running], int | None]
"""MiB that instances take on a device; None: not known, then they count as all of their room."""


def spot_of(copy: Located) -> Spot:
    """Where ``copy`` is, and whose it is."""
    running = copy.running
    return copy.node, copy.device, running.slice, running.service, running.member


def key_of(copy: Located) -> Key:
    """The device of ``copy``."""
    return copy.node, copy.device


def known_digests(state: ClusterState) -> dict[tuple[str, str], str | None]:
    """By (service, member): the content of each model; None while nobody knows it."""
    digests = {
        (service.served_name, member.name): member.model.digest
        for service in state.services
        for member in service.spec.placed
    }
    digests.update({(service, member): digest for service, member, digest in state.digests})
    return digests


def measured_memory(state: ClusterState) -> Memory:
    """Memory as measured: the largest of the rows of that instance count up to the batch cap, MiB, since
    buffers exist for every batch size up to the cap. None where the model, the kind of part or the instance
    count was not measured.
    """
    profiles = {each.key: each.profile for each in state.measured}
    digests = known_digests(state)

    def memory_mib(device: DeviceState, each: Running) -> int | None:
        digest = digests.get((each.service, each.member))
        profile = profiles.get((digest or "", device.product, each.slice.name))
        if profile is None or each.instances not in profile.instance_counts:
            return None
        rows = profile.cells(each.instances)
        within = [row.memory_mib for row in rows if row.batch <= each.batch]
        return ceil(max(within, default=min(row.memory_mib for row in rows)))

    return memory_mib


class Site:
    """The devices that can be used, how they are cut now and what they hold now."""

    def __init__(self, state: ClusterState, usable: Iterable[Key], memory: Memory) -> None:
        """``usable``: the devices that the plan counts on; what others hold is lost."""
        self.nodes: Mapping[str, NodeState] = {node.name: node for node in state.nodes}
        everything = {
            (node.name, device.uuid): device for node in state.nodes for device in node.devices
        }
        self.devices: Mapping[Key, DeviceState] = {key: everything[key] for key in sorted(usable)}
        self.on_node: dict[str, list[Key]] = {}
        """The usable devices of each node, in order."""
        for key in self.devices:
            self.on_node.setdefault(key[0], []).append(key)
        self.services: Mapping[str, ModelService] = {
            service.served_name: service for service in state.services
        }
        self._private = {
            node.name
            for pool in state.pools
            if not pool.shared_between_namespaces
            for node in state.nodes
            if node.pool == pool.name
        }
        self._isolation = {
            name: service.spec.placement.isolation for name, service in self.services.items()
        }
        self._shy = any(each is not Isolation.ANY for each in self._isolation.values())
        self._memory = memory
        whole = {pool.name for pool in state.pools if pool.whole_nodes}
        self._whole = {node.name for node in state.nodes if node.pool in whole}
        self._closed: set[str] = set()
        self._cut: dict[Key, Geometry | None] = {}
        self._held: dict[Key, dict[Spot, Located]] = {}

    def held(self, key: Key) -> dict[Spot, Located]:
        """What the device holds now, in any order."""
        held = self._held.get(key)
        if held is None:
            copies = (Located(*key, each) for each in self.devices[key].running)
            held = self._held[key] = {spot_of(copy): copy for copy in copies}
        return held

    def empty_parts(self, key: Key) -> list[Slice]:
        """The parts of the GPU that hold nothing now."""
        running = (
            [copy.running for copy in self._held[key].values()]
            if key in self._held
            else self.devices[key].running
        )
        busy = {each.slice for each in running}
        return [each for each in self.parts(key) if each not in busy]

    def put(self, copy: Located) -> None:
        """Start ``copy``, or give a present one its batch cap and instances."""
        self.held(key_of(copy))[spot_of(copy)] = copy

    def take(self, copy: Located) -> None:
        """Unload ``copy``."""
        del self.held(key_of(copy))[spot_of(copy)]

    def geometry(self, key: Key) -> Geometry | None:
        """How the device is cut now, canonical; None: not partitioned."""
        if key in self._cut:
            return self._cut[key]
        geometry = self.devices[key].geometry
        return None if geometry is None else canonical(geometry)

    def recut(self, key: Key, geometry: Geometry | None) -> None:
        """Cut the device anew."""
        self._cut[key] = geometry

    def cut_as_a_whole(self, node: str) -> bool:
        """Whether a cut of one GPU needs the whole node empty."""
        return node in self._whole

    def close(self, node: str) -> None:
        """Let nothing start on ``node`` until all its cuts are done."""
        self._closed.add(node)

    def open(self, node: str) -> None:
        """Let copies start on ``node`` again."""
        self._closed.discard(node)

    def is_closed(self, node: str) -> bool:
        """Whether ``node`` waits for a cut as a whole."""
        return node in self._closed

    def parts(self, key: Key) -> tuple[Slice, ...]:
        """The slices that the GPU has now; the whole of it when it is not partitioned."""
        return slices_of(self.geometry(key))

    def exists(self, copy: Located) -> bool:
        """Whether the part that ``copy`` is meant for is there now, and may be used."""
        key = key_of(copy)
        if self.is_closed(copy.node):
            return False
        return self.devices[key].is_cpu or copy.running.slice in self.parts(key)

    def room_mib(self, copy: Located) -> int:
        """Memory of the room of ``copy``, MiB; 0 for a slice that its board does not have."""
        device, name = self.devices[key_of(copy)], copy.running.slice.name
        if device.is_cpu or device.model is None:
            return device.memory_mib
        if name == FULL:
            return device.model.memory_mib
        profile = find_profile(device.model, name)
        return 0 if profile is None else profile.memory_mib

    def known_mib(self, copy: Located) -> int | None:
        """Memory of ``copy``, MiB; None: not measured."""
        return self._memory(self.devices[key_of(copy)], copy.running)

    def mib(self, copy: Located) -> int:
        """Memory of ``copy``, MiB; all of its room where that is not known."""
        known = self.known_mib(copy)
        return self.room_mib(copy) if known is None else known

    def room_of(self, copy: Located) -> Room:
        """Whose memory ``copy`` takes."""
        key = key_of(copy)
        return key, None if self.devices[key].is_cpu else copy.running.slice

    def strangers(self, one: Located, other: Located) -> bool:
        """Whether a pool's or a service's rules keep two copies on the same node apart."""
        left, right = one.running, other.running
        if left.service == right.service:
            return False
        if one.node in self._private and _namespace(left.service) != _namespace(right.service):
            return True
        if one.device != other.device:
            return False
        wishes = {self._isolation.get(left.service), self._isolation.get(right.service)}
        return Isolation.EXCLUSIVE in wishes or (
            Isolation.PARTITION in wishes and left.slice == right.slice
        )

    def guarded(self, node: str) -> bool:
        """Whether there are rules that keep tenants apart."""
        return self._shy or node in self._private

    def tenants_apart_from(self, copy: Located) -> list[Located]:
        """The present copies that may not be there at the same time as ``copy``, whatever the room."""
        if not self.guarded(copy.node):
            return []
        return [
            other
            for key in self.on_node[copy.node]
            for other in self.held(key).values()
            if self.strangers(copy, other)
        ]

    def crowd(self, copy: Located, held: Iterable[Located] | None = None) -> list[Located]:
        """The present copies that leave no memory or no cores for ``copy``; none: nobody is in its way.

        Where a copy replaces one with other settings, there must be memory for the larger of both.
        ``held``: what to take for the contents of the device; what it holds now when absent.
        """
        spot, shared = spot_of(copy), self.room_of(copy)
        present = self.held(key_of(copy)).values() if held is None else held
        room = [o for o in present if self.room_of(o) == shared]
        needed = max(self.mib(o) for o in (copy, *room) if spot_of(o) == spot)
        others = [o for o in room if spot_of(o) != spot]
        if needed + sum(map(self.mib, others)) > self.room_mib(copy):
            return others
        return [o for o in others if overlap(o.running.slice, copy.running.slice)]

    def occupants(self, key: Key, wanted: Geometry | None) -> list[Located]:
        """The present copies in slices that are not in ``wanted``; all of the node where it is cut as a whole.

        GPU instances come and go one by one beside busy ones (NVIDIA MIG User Guide, "Creating GPU
        Instances"). MIG is only switched on or off on an empty GPU: a whole GPU and slices of it have no
        part in common.
        """
        if self.is_closed(key[0]):
            return [copy for other in self.on_node[key[0]] for copy in self.held(other).values()]
        staying = slices_of(wanted)
        return [copy for copy in self.held(key).values() if copy.running.slice not in staying]

    def partial_cut(self, key: Key, wanted: Geometry | None, first: Slice) -> Geometry | None:
        """A geometry with ``first`` that no present copy has to leave for: the occupied slices and those of
        ``wanted`` that fit beside them. None when there is none.
        """
        model, now = self.devices[key].model, self.geometry(key)
        if self.is_closed(key[0]) or model is None or now is None or wanted is None:
            return None
        busy = {copy.running.slice for copy in self.held(key).values()}
        occupied = {Placement(each.name, each.start) for each in busy}
        # What exists and is wanted stays, or a cut would undo the one before it.
        slices = sorted(occupied | (set(now) & set(wanted)))
        asked = Placement(first.name, first.start)
        for each in (asked, *wanted):
            if each not in slices and not violations(model, (*slices, each)):
                slices.append(each)
        return canonical(slices) if asked in slices else None


def slices_of(geometry: Geometry | None) -> tuple[Slice, ...]:
    """The slices of ``geometry``; None stands for the whole GPU."""
    if geometry is None:
        return (Slice(),)
    return tuple(Slice(each.profile, each.start) for each in geometry)


def overlap(one: Slice, other: Slice) -> bool:
    """Whether two different sets of cores have a core in common."""
    return one != other and not set(one.cores).isdisjoint(other.cores)


def _namespace(service: str) -> str:
    return service.partition(".")[0]
