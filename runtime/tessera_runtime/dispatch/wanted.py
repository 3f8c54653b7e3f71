"""What a target says, asked in the ways that the dispatcher needs. Pure functions."""

from __future__ import annotations

from tessera_runtime.target import ServerTarget, ServiceTarget


def check_devices(target: ServerTarget) -> None:
    """Raises KeyError for an instance on a device that ``target`` does not have."""
    known = {device.id for device in target.devices}
    for service in target.services:
        for member in service.members:
            for place in member.instances:
                if place.device not in known:
                    raise KeyError(place.device)


def same_models(one: ServiceTarget, other: ServiceTarget) -> bool:
    """Whether both are one version: only a change that needs models loaded makes another."""
    return _models(one) == _models(other)


def has_place(target: ServiceTarget) -> bool:
    """Whether anything is wanted to serve it, here or at a peer."""
    return any(member.instances or member.peers for member in target.members)


def runs_nothing(target: ServerTarget) -> bool:
    """Whether all that comes here is passed on, so that clients are better off elsewhere."""
    members = [member for service in target.services for member in service.members]
    return bool(members) and not any(member.instances for member in members)


def _models(target: ServiceTarget) -> object:
    members = [
        (x.name, x.digest, x.format, x.allow_code, x.max_batch, x.weight, x.required)
        for x in target.members
    ]
    return (
        members,
        target.combine,
        target.min_members,
        target.on_timeout,
        target.inputs,
        target.outputs,
    )
