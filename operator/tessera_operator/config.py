"""The platform team's settings of the operator, a YAML file: everything in it has a default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml

from tessera_core.api import FieldError, ModelServiceSpec, SpecInvalid
from tessera_core.api.errors import Report, describe
from tessera_core.api.meta import LABEL, LABEL_KEY, SUBDOMAIN
from tessera_core.api.records import ListOf, MapOf, Name, record
from tessera_core.api.scalars import decimal, duration, integer, milliseconds, text
from tessera_core.plan.state import Policy

EVERY_NAMESPACE = "default"
"""Key of the prefixes of namespaces that have none of their own."""
_CORES = integer(1, 1024)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A Gateway of the Gateway API through which services are reached from outside the cluster."""

    name: Annotated[str, SUBDOMAIN]
    namespace: Annotated[str, LABEL]
    domain: Annotated[str, SUBDOMAIN]
    """Services get the host name ``<name>.<namespace>.<domain>``."""


@dataclass(frozen=True, slots=True)
class MigManager:
    """NVIDIA's MIG manager, which cuts the GPUs of pools with that backend."""

    namespace: Annotated[str, LABEL]
    """The GPU Operator's."""
    config_map: Annotated[str, SUBDOMAIN]
    """That ``spec.migManager.config.name`` of the ClusterPolicy names."""
    sync_s: Annotated[float, duration(above=0, most=3600), Name("syncPeriod")] = 150.0
    """From the ConfigMap to the file on every node: kubelet's sync period and the life of its cache, a minute each."""


@dataclass(frozen=True, slots=True)
class Config:
    """What may be set."""

    debounce_s: Annotated[float, duration(above=0, most=60), Name("debounce")] = 0.5
    """How long nothing may have changed before it is planned anew."""
    most_debounce_s: Annotated[float, duration(above=0, most=600), Name("mostDebounce")] = 2.0
    """How long a change waits at most."""
    headroom: Annotated[float, decimal(least=1, most=10, example="1.2")] = 1.2
    """Capacity that is planned, as a multiple of the rate."""
    overhead_ms: Annotated[float, milliseconds(), Name("overhead")] = 1.0
    """Part of every latency target that is kept for what happens outside the queues."""
    reserved_cores: Annotated[int, integer(0, 1024)] = 0
    """Cores of every node that no instance gets."""
    cpu_slices: Annotated[tuple[int, ...], ListOf(_CORES, 1, 16)] = (1,)
    """Sizes of core sets that are measured, and that instances may get."""
    lost_after_s: Annotated[float, duration(above=0, most=3600), Name("lostAfter")] = 40.0
    """A node that was silent for so long is lost."""
    heartbeat_poll_s: Annotated[float, duration(above=0, most=600), Name("heartbeatPoll")] = 10.0
    drift_after_s: Annotated[float, duration(above=0, most=3600), Name("driftAfter")] = 120.0
    """For how long batches have to take longer, or less, than measured until it is recorded in the ModelProfile: four
    reports of a node, and longer than two copies take turns on a device when one replaces the other."""
    tuning_tasks: Annotated[int, integer(0, 1024)] = 4
    """Slices of the whole cluster on which models are tuned at once, at most; 0: nothing is tuned."""
    model_prefixes: Annotated[
        tuple[tuple[str, tuple[str, ...]], ...],
        MapOf(LABEL_KEY, ListOf(text(512), most=256), most=10_000),
    ] = ()
    """By namespace, what model URIs may start with; ``default`` is for the others. Nothing said: anything."""
    gateway: Gateway | None = None
    """Absent: services are reached inside the cluster only. Needs the Gateway API's HTTPRoute and GRPCRoute."""
    mig_manager: MigManager | None = None
    """Absent: GPUs of pools with the backend MigManager are used as they are."""

    @property
    def policy(self) -> Policy:
        return Policy(
            headroom=self.headroom, overhead_ms=self.overhead_ms, reserved_cores=self.reserved_cores
        )


def read_config(path: Path | None) -> Config:
    """Raises SpecInvalid, or ValueError for what is no YAML."""
    if path is None:
        return Config()
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML: {error}") from error
    report = Report(strict=True)
    decoded = record(Config).decode(document, "", report)
    if report.errors:
        raise SpecInvalid(report.errors)
    assert isinstance(decoded, Config)
    return decoded


def refused_sources(
    spec: ModelServiceSpec, namespace: str, config: Config
) -> tuple[FieldError, ...]:
    """Model URIs that the namespace may not use."""
    prefixes = dict(config.model_prefixes)
    if not prefixes:
        return ()
    allowed = prefixes.get(namespace, prefixes.get(EVERY_NAMESPACE, ()))
    return tuple(
        FieldError(
            f"spec.members[{index}].model.uri",
            describe(member.model.uri),
            f"one that starts with {' or '.join(allowed)}"
            if allowed
            else f"nothing: no model store is allowed for namespace {namespace}",
        )
        for index, member in enumerate(spec.members)
        if not member.model.uri.startswith(tuple(allowed))
    )
