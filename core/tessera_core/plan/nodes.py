"""A plan in the words of the agents: RuntimeNode specs, and what changes against what runs.

On a CPU device a slice is named ``cpu-N@C``: N neighbouring cores from core C on, as a MIG slice is named by
profile and first memory slice. The cores are thereby exact and two sets of equal size stay apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from tessera_core.api import ClusterMeta, Device, Instance, NameRef, RuntimeNode, RuntimeNodeSpec
from tessera_core.gpu.devices import FULL
from tessera_core.plan.decision import DevicePlan, Plan
from tessera_core.plan.state import ClusterState, Running, Slice


def slice_name(piece: Slice) -> str:
    """``full``, ``<profile>@<start>`` or ``cpu-N@<first core>``."""
    return FULL if piece.name == FULL else f"{piece.name}@{piece.start}"


def to_runtime_nodes(plan: Plan, epoch: int) -> tuple[RuntimeNode, ...]:
    """One object per node with the wanted geometry and instances of each device, by node name.

    ``epoch``: the leader's; 0 in local mode. Nodes that get nothing are among them, without instances; nodes
    without a healthy device are not.
    """
    nodes: dict[str, list[Device]] = {}
    for device in plan.devices:
        nodes.setdefault(device.node, []).append(_device(device))
    return tuple(
        RuntimeNode(
            metadata=ClusterMeta(name=name),
            spec=RuntimeNodeSpec(epoch=epoch, plan_ref=NameRef(plan.name), devices=tuple(devices)),
        )
        for name, devices in sorted(nodes.items())
    )


def _device(device: DevicePlan) -> Device:
    return Device(
        uuid=device.uuid,
        geometry=device.geometry,
        instances=tuple(
            Instance(
                service=each.service,
                member=each.member,
                slice=slice_name(each.slice),
                batch=each.batch,
                count=each.instances,
            )
            for each in device.assignments
        ),
    )


@dataclass(frozen=True, slots=True, order=True)
class Located:
    """Instances of one member on one device."""

    node: str
    device: str
    running: Running


@dataclass(frozen=True, slots=True)
class Diff:
    """What a plan changes. A batch cap or an instance count that differs is a change, not a move."""

    added: tuple[Located, ...] = ()
    removed: tuple[Located, ...] = ()
    changed: tuple[tuple[Located, Located], ...] = ()
    """(present, wanted) on the same slice."""
    recut: tuple[tuple[str, str], ...] = ()
    """(node, device) whose geometry changes."""

    @property
    def empty(self) -> bool:
        return not (self.added or self.removed or self.changed or self.recut)


def running(state: ClusterState) -> tuple[Located, ...]:
    """What runs in ``state``, by node and device."""
    return tuple(
        Located(node.name, device.uuid, each)
        for node in state.nodes
        for device in node.devices
        for each in device.running
    )


def placed(plan: Plan) -> tuple[Located, ...]:
    """What ``plan`` places, by device."""
    return tuple(
        Located(
            each.node,
            each.device,
            Running(each.service, each.member, each.slice, each.batch, each.instances),
        )
        for each in plan.assignments
    )


def diff(plan: Plan, state: ClusterState) -> Diff:
    """What has to change in ``state`` to carry out ``plan``; unhealthy devices are left out."""
    planned = {(device.node, device.uuid) for device in plan.devices}
    present = {_where(each): each for each in running(state) if (each.node, each.device) in planned}
    wanted = {_where(each): each for each in placed(plan)}
    return Diff(
        added=tuple(sorted(wanted[key] for key in wanted.keys() - present.keys())),
        removed=tuple(sorted(present[key] for key in present.keys() - wanted.keys())),
        changed=tuple(
            sorted(
                (present[key], wanted[key])
                for key in wanted.keys() & present.keys()
                if present[key] != wanted[key]
            )
        ),
        recut=tuple((each.node, each.uuid) for each in plan.devices if each.recut),
    )


def _where(located: Located) -> tuple[str, str, Slice, str, str]:
    found = located.running
    return located.node, located.device, found.slice, found.service, found.member
