"""What a picture of a plan shows: nodes, their devices as bars of positions, and what fills each position.

Problem: a plan names slices and a state names devices; a picture needs every position of a device once, what
is free included, and must stay bounded however large the fleet is. Approach: the parts of a device are laid
over its memory slices (one position where it is used whole, cores for a processor) and the gaps become free
parts. Nodes are chosen pool by pool in turn, until a bound on nodes or on parts is met.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from tessera_core.gpu.devices import FULL
from tessera_core.gpu.geometry import Geometry
from tessera_core.gpu.mig import find_profile
from tessera_core.plan.decision import Assignment, DevicePlan, Plan
from tessera_core.plan.nodes import slice_name
from tessera_core.plan.state import ClusterState, DeviceState, NodeState

MOST_NODES = 200
"""Used nodes that are shown."""
MOST_PARTS = 6_000
"""Parts of devices and members in them that are shown; whole nodes only, and always one."""
MOST_LANES = 12
"""Lines of one part: one per member, the last one for the members beyond."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a device, in positions."""

    start: int
    width: int
    name: str
    """As instances name it; empty: not cut, or cores of nobody."""
    inside: tuple[Assignment, ...] = ()

    @property
    def lanes(self) -> int:
        """Lines that its members take."""
        return max(1, min(len(self.inside), MOST_LANES))


@dataclass(frozen=True, slots=True)
class Bar:
    """A device; its blocks cover every position once, in order."""

    device: DeviceState
    positions: int
    """Memory slices, cores, or 1."""
    blocks: tuple[Block, ...]
    recut: bool

    @property
    def lanes(self) -> int:
        """Lines of its fullest part."""
        return max(block.lanes for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Machine:
    """A node and its bars, GPUs first."""

    name: str
    pool: str
    bars: tuple[Bar, ...]
    used: bool
    """Whether the plan puts something on it or cuts one of its devices."""

    @property
    def parts(self) -> int:
        """How much there is to show."""
        return sum(block.lanes for bar in self.bars for block in bar.blocks)


def machines(plan: Plan, state: ClusterState) -> tuple[Machine, ...]:
    """All nodes of ``state`` as ``plan`` leaves them, sorted by pool and name.

    Raises ValueError where the plan names devices or slices that the state does not have.
    """
    planned = {(device.node, device.uuid): device for device in plan.devices}
    found = [_machine(node, planned) for node in state.nodes]
    if planned:
        node, uuid = min(planned)
        raise ValueError(f"the plan uses {node}/{uuid}, a device that the state does not have")
    return tuple(sorted(found, key=lambda machine: (machine.pool, machine.name)))


def shown(found: Sequence[Machine]) -> dict[str, list[Machine]]:
    """The used ones to show, by pool, pools without any included: pools take turns within the bounds."""
    used: dict[str, list[Machine]] = {machine.pool: [] for machine in found}
    for machine in found:
        if machine.used:
            used[machine.pool].append(machine)
    chosen: dict[str, list[Machine]] = {pool: [] for pool in used}
    turns = (each for turn in zip_longest(*used.values()) for each in turn if each is not None)
    parts = 0
    for number, machine in enumerate(turns):
        parts += machine.parts
        if number and (number >= MOST_NODES or parts > MOST_PARTS):
            break
        chosen[machine.pool].append(machine)
    return chosen


def _machine(node: NodeState, planned: dict[tuple[str, str], DevicePlan]) -> Machine:
    """``node`` with its devices cut as planned; what is used of ``planned`` is taken out of it."""
    bars, used = [], False
    for device in sorted(node.devices, key=lambda device: (device.is_cpu, device.uuid)):
        wanted = planned.pop((node.name, device.uuid), None)
        used |= wanted is not None and bool(wanted.assignments or wanted.recut)
        try:
            bars.append(_bar(device, wanted))
        except ValueError as error:
            raise ValueError(f"{node.name}/{device.uuid}: {error}") from error
    return Machine(node.name, node.pool, tuple(bars), used)


def _bar(device: DeviceState, wanted: DevicePlan | None) -> Bar:
    geometry = (device.geometry or ()) if wanted is None else wanted.geometry
    inside: dict[str, list[Assignment]] = {}
    for each in wanted.assignments if wanted else ():
        inside.setdefault(slice_name(each.slice), []).append(each)
    positions = 1
    if device.is_cpu:
        positions = max(1, device.cores)
        blocks = _core_sets(inside)
    elif geometry:
        if device.model is None:
            raise ValueError(f"{device.product} is cut, but its MIG table is not known")
        positions = device.model.memory_slices
        blocks = _slices(device, geometry, inside)
    else:
        blocks = [Block(0, 1, FULL, tuple(inside.pop(FULL, ())))]
    if inside:
        raise ValueError(
            f"instances in {', '.join(sorted(inside))}, which the device does not have"
        )
    return Bar(
        device=device,
        positions=positions,
        blocks=tuple(_with_gaps(blocks, positions, joined=device.is_cpu)),
        recut=wanted is not None and wanted.recut,
    )


def _slices(
    device: DeviceState, geometry: Geometry, inside: dict[str, list[Assignment]]
) -> list[Block]:
    """The slices of ``geometry`` with the members that are taken out of ``inside``."""
    assert device.model is not None, "only boards with a table can be cut"
    blocks = []
    for placement in geometry:
        profile = find_profile(device.model, placement.profile)
        if profile is None:
            raise ValueError(f"{device.model.name} has no profile {placement.profile}")
        members = tuple(inside.pop(str(placement), ()))
        blocks.append(Block(placement.start, profile.memory_slices, str(placement), members))
    return blocks


def _core_sets(inside: dict[str, list[Assignment]]) -> list[Block]:
    """The sets of neighbouring cores that are in use, which are taken out of ``inside``."""
    blocks = []
    for name in sorted(inside):
        if cores := inside[name][0].slice.cores:
            blocks.append(Block(cores[0], len(cores), name, tuple(inside.pop(name))))
    return blocks


def _with_gaps(blocks: Sequence[Block], positions: int, *, joined: bool) -> Iterator[Block]:
    """``blocks`` in order and what is between them: one free block per position, or per gap if ``joined``."""
    at = 0
    for block in (*sorted(blocks, key=lambda block: block.start), Block(positions, 0, "")):
        if block.start < at or block.start + block.width > positions:
            raise ValueError(f"{block.name} overlaps another part or the end of the device")
        step = max(1, block.start - at) if joined else 1
        yield from (Block(start, step, "") for start in range(at, block.start, step))
        if block.width:
            yield block
        at = block.start + block.width
