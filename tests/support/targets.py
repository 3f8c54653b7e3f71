"""Targets of the server, with what a test does not care about filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from support.model_files import ModelFile
from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_runtime.target import (
    DeviceTarget,
    InstanceTarget,
    MemberTarget,
    ServerTarget,
    ServiceTarget,
)

DEVICES = (DeviceTarget("cpu-0", "cpu"), DeviceTarget("cpu-1", "cpu"))

WIDE = (DeviceTarget("cpu-0", "cpu", threads=2),)
"""Of several cores, on which members of an ensemble have processes of their own."""


def member(
    name: str,
    path: Path | ModelFile,
    *,
    instances: int | dict[str, int] = 1,
    caps: dict[str, int] | None = None,
    setpoint: int | None = None,
    active: int | None = None,
    max_batch: int = 8,
    **settings: object,
) -> MemberTarget:
    """A member; ``instances`` by device, or so many on the first, with the same setpoint and as many of them active
    everywhere. Code is allowed: the tests' own models.
    """
    places = instances if isinstance(instances, dict) else {"cpu-0": instances}
    file = path.path if isinstance(path, ModelFile) else path
    values: dict = {
        "format": "Python",
        "digest": f"sha256-of-{file}",
        "cap": max_batch,
        "allow_code": True,
    }
    return MemberTarget(
        name=name,
        path=str(file),
        max_batch=max_batch,
        instances=tuple(
            InstanceTarget(device, count, (caps or {}).get(device), setpoint, active)
            for device, count in places.items()
        ),
        **(values | settings),
    )


def service(name: str, *members: MemberTarget, **settings: object) -> ServiceTarget:
    """A service of the namespace ``test``, with an SLO that no busy test machine misses."""
    values: dict = {
        "version": "1",
        "combine": Combine.NONE if len(members) == 1 else Combine.MEAN,
        "min_members": len(members),
        "on_timeout": OnTimeout.FAIL,
        "slo_ms": 60_000.0,
        "percent": 99.0,
    }
    return ServiceTarget(name=f"test.{name}", members=members, **(values | settings))


def server(*services: ServiceTarget, devices: Sequence[DeviceTarget] = DEVICES) -> ServerTarget:
    return ServerTarget(devices=tuple(devices), services=services)
