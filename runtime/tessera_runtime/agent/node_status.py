"""What is said of this node in its RuntimeNode, and when: pure.

Three hundred nodes that write whenever a counter moves would keep the API server busy with what nobody waits
for. So a status is written at once when something changed that somebody acts on, and the counters in between
travel with it, or every half minute when only they moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tessera_core import __version__
from tessera_core.api import Condition, ConditionStatus, RuntimeNode, RuntimeNodeStatus
from tessera_core.api.measurements import MOST_TASKS, ProfileResult, TuningResult
from tessera_core.api.runtimenode import (
    MOST_FALLBACKS,
    MOST_LINES,
    Correction,
    CpuStatus,
    DeviceStatus,
    Health,
    InstanceStatus,
    MigMode,
    ServedStatus,
    SliceStatus,
)
from tessera_core.api.tuning import FallenBack
from tessera_core.gpu.mig import label
from tessera_core.gpu.tables import model_of
from tessera_core.plan.state import CPU
from tessera_runtime.agent.steering import Corrected
from tessera_runtime.agent.translate import device_piece
from tessera_runtime.devices.health import Verdict
from tessera_runtime.devices.inventory import Gpu, Inventory
from tessera_runtime.target import InstanceReport, ServerReport, ServiceReport

COUNTERS_S = 30.0
LEAST_COUNTERS_S = 1.0
"""Between two writes that only counters have caused."""
WRITES_PER_IDLE_TIMEOUT = 3

MOST_MESSAGE = 1024
MOST_DEVICE_PROBLEM = 256
MOST_PROFILES = 64
"""In one status; further ones follow when the first have been taken away."""


class Phase(StrEnum):
    """Reasons of the condition Ready; it is True with the first only."""

    SERVING = "Serving"
    STARTING = "Starting"
    SERVER_UNREACHABLE = "ServerUnreachable"
    DRAINING = "Draining"


_SAYS = {
    Phase.SERVING: "",
    Phase.STARTING: "the server has not answered yet",
    Phase.SERVER_UNREACHABLE: "the server does not answer on its control socket",
    Phase.DRAINING: "the pod is being stopped and finishes what it has accepted",
}


_EMULATED = (
    "what is placed on GPUs runs on processor cores (--gpus-on-cores): for trials, and nothing that is "
    "measured here holds for a GPU"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a status is made of."""

    pod: str
    address: str
    seen: Inventory | None
    """None: an activator, which has no devices."""
    phase: Phase
    accepted: tuple[str, str] | None = None
    """Reason and message of the condition SpecAccepted; None before there was a spec."""
    node: RuntimeNode | None = None
    """What is carried out."""
    generation: int | None = None
    """Of the spec that the server was told."""
    report: ServerReport | None = None
    """The last one."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """By served name: why a service is not as wanted."""
    profiles: tuple[ProfileResult, ...] = ()
    tuning: tuple[TuningResult, ...] = ()
    fallbacks: tuple[FallenBack, ...] = ()
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    """Of GPUs, by UUID; one that is not there has just answered."""
    corrections: tuple[Corrected, ...] = ()
    """What batches take here over what the operator says."""
    gpus_on_cores: bool = False


def node_status(facts: Facts, before: Sequence[Condition], now: str) -> RuntimeNodeStatus:
    """``before``: the conditions that were written last; ``now``: RFC 3339, for those that changed."""
    devices: tuple[DeviceStatus, ...] = ()
    if facts.seen is not None:
        devices = (_cpu(facts, facts.seen), *(_gpu(facts, gpu) for gpu in facts.seen.gpus))
    return RuntimeNodeStatus(
        conditions=_conditions(facts, before, now),
        agent_version=__version__,
        observed_generation=facts.generation,
        pod=facts.pod,
        address=facts.address or None,
        devices=devices,
        cpu=CpuStatus(len(facts.seen.cores)) if facts.seen is not None else None,
        services=_services(facts),
        profiles=facts.profiles[:MOST_PROFILES],
        tuning=facts.tuning[:MOST_TASKS],
        fallbacks=facts.fallbacks[:MOST_FALLBACKS],
    )


def counters_s(node: RuntimeNode | None) -> float:
    """Seconds between two writes that only counters have caused.

    What nobody asks for its idleTimeout is put to sleep, and counters are how the operator knows: a service that
    may sleep says several times within that time that it is asked.
    """
    idle = [
        served.spec.scaling.idle_timeout_s / WRITES_PER_IDLE_TIMEOUT
        for served in (node.spec.services if node is not None else ())
        if served.spec.scaling.min_replicas == 0
    ]
    return max(LEAST_COUNTERS_S, min([COUNTERS_S, *idle]))


def due(
    written: RuntimeNodeStatus | None,
    status: RuntimeNodeStatus,
    since_s: float,
    counters_s: float = COUNTERS_S,
) -> bool:
    """Whether ``status`` is to be written now, ``since_s`` after ``written`` was."""
    if written is None or _acted_on(written) != _acted_on(status):
        return True
    return since_s >= counters_s and written != status


def _acted_on(status: RuntimeNodeStatus) -> RuntimeNodeStatus:
    """``status`` without what only counts."""
    return replace(
        status,
        services=tuple(
            replace(
                service,
                good=0,
                total=0,
                latency_buckets=(),
                held=min(service.held, 1),
                corrections=(),
            )
            for service in status.services
        ),
        devices=tuple(
            replace(
                device,
                instances=tuple(replace(each, memory_mib=0) for each in device.instances),
            )
            for device in status.devices
        ),
    )


def _cpu(facts: Facts, seen: Inventory) -> DeviceStatus:
    return DeviceStatus(
        uuid=CPU,
        product=CPU,
        memory_mib=seen.memory_mib,
        instances=_instances(facts, CPU),
        health=Health.HEALTHY,
    )


def _gpu(facts: Facts, gpu: Gpu) -> DeviceStatus:
    model = model_of(gpu.product)
    verdict = facts.verdicts.get(gpu.uuid, Verdict())
    slices = frozenset(each.name for each in gpu.slices) if gpu.mig_enabled else None
    return DeviceStatus(
        uuid=gpu.uuid,
        product=label(gpu.product),
        memory_mib=gpu.memory_mib,
        mig_capable=gpu.mig_enabled or (model is not None and bool(model.profiles)),
        mig_mode=MigMode.ENABLED if gpu.mig_enabled else MigMode.DISABLED,
        slices=tuple(
            SliceStatus(each.uuid, each.placement.profile, each.placement.start, each.jpeg_engines)
            for each in gpu.slices
        ),
        instances=_instances(facts, gpu.uuid, slices),
        health=verdict.health,
        problem=(verdict.problem or gpu.problem)[:MOST_DEVICE_PROBLEM],
        index=gpu.index,
        jpeg_engines=gpu.jpeg_engines,
    )


def _instances(
    facts: Facts, uuid: str, slices: frozenset[str] | None = None
) -> tuple[InstanceStatus, ...]:
    """``slices``: those that are there; what is on another one answers nobody, whatever its process says yet."""
    if facts.report is None:
        return ()
    found = ((device_piece(each.device), each) for each in facts.report.instances)
    answers = facts.phase is not Phase.SERVER_UNREACHABLE
    told = {
        (each.service, each.member, each.slice): each.variant
        for device in (facts.node.spec.devices if facts.node is not None else ())
        if device.uuid == uuid
        for each in device.instances
    }
    return tuple(
        _instance(
            each,
            piece,
            answers and (slices is None or piece in slices),
            told.get((each.service, each.member, piece), ""),
        )
        for (at, piece), each in found
        if at == uuid
    )


def _instance(report: InstanceReport, piece: str, answers: bool, told: str) -> InstanceStatus:
    """``told``: the variant that is to run, which is not said as long as any other one answers."""
    count = report.wanted or report.exist
    others = [each for each in report.variants if each != told]
    return InstanceStatus(
        service=report.service,
        member=report.member,
        slice=piece,
        batch=report.cap,
        count=count,
        variant=next(iter(others or report.variants), ""),
        ready=min(report.ready, count) if answers else 0,
        memory_mib=round(report.memory_mib),
    )


def _services(facts: Facts) -> tuple[ServedStatus, ...]:
    wanted = {each.name for each in facts.node.spec.services} if facts.node is not None else set()
    served = {each.name: each for each in facts.report.services} if facts.report else {}
    answers = facts.phase is not Phase.SERVER_UNREACHABLE
    corrections: dict[str, list[Correction]] = {}
    for each in facts.corrections:
        latency = None if each.latency_ratio is None else round(each.latency_ratio, 3)
        told = Correction(each.member, *each.kind, round(each.ratio, 3), latency)
        corrections.setdefault(each.service, []).append(told)
    return tuple(
        replace(
            _service(name, served.get(name), facts.problems.get(name, ""), answers),
            corrections=tuple(corrections.get(name, ())[:MOST_LINES]),
        )
        for name in sorted(wanted | served.keys() | facts.problems.keys())
    )


def _service(name: str, report: ServiceReport | None, problem: str, answers: bool) -> ServedStatus:
    if report is None:
        return ServedStatus(name, problem=problem[:MOST_MESSAGE])
    of_members = (f"{each.name}: {each.problem}" for each in report.members if each.problem)
    return ServedStatus(
        name=name,
        generation=int(report.version),
        ready=report.ready and answers,
        held=report.held,
        good=report.good,
        total=report.total,
        latency_buckets=report.latency_buckets,
        problem=(problem or report.problem or next(of_members, ""))[:MOST_MESSAGE],
    )


def _conditions(facts: Facts, before: Sequence[Condition], now: str) -> tuple[Condition, ...]:
    serving = facts.phase is Phase.SERVING
    found = [_condition("Ready", serving, facts.phase.value, _SAYS[facts.phase])]
    if facts.accepted is not None:
        reason, message = facts.accepted
        found.append(_condition("SpecAccepted", reason == "Accepted", reason, message))
    if facts.gpus_on_cores:
        found.append(_condition("Emulated", True, "GpusOnCores", _EMULATED))
    if facts.report is not None and facts.report.mps_problem:
        said = f"instances share one process instead: {facts.report.mps_problem}"
        found.append(_condition("MpsRuns", False, "DaemonFailed", said))
    times = {(each.type, each.status): each.last_transition_time for each in before}
    return tuple(
        replace(each, last_transition_time=times.get((each.type, each.status)) or now)
        for each in found
    )


def _condition(kind: str, holds: bool, reason: str, message: str) -> Condition:
    status = ConditionStatus.TRUE if holds else ConditionStatus.FALSE
    return Condition(kind, status, reason, message[:MOST_MESSAGE])
