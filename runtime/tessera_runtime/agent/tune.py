"""Which variants are tried next on this node, what is asked of the server for it, and what is said of all of them: pure.

A variant is the unit: one request builds, checks and measures it, so that between any two everything can be taken away. What
was found is kept for as long as the operator asks for it, also over a restart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tessera_core.api import RuntimeNode
from tessera_core.api.errors import Report
from tessera_core.api.measurements import TuningResult, TuningTask
from tessera_core.api.records import record
from tessera_core.api.tuning import Outcome, Reason
from tessera_runtime.agent.kept import Tried
from tessera_runtime.agent.measure import tune_request
from tessera_runtime.agent.profiling import Found, source_hash
from tessera_runtime.agent.translate import (
    LocalModel,
    ModelSource,
    Site,
    TranslationError,
    candidate_sources,
    device_target,
)
from tessera_runtime.agent.tune_local import verdict
from tessera_runtime.target import TuneOutcome, TuneRequest

Spot = tuple[str, str]
"""(device, slice)."""
Key = tuple[str, str, str, str, str]
"""(service, member, device, slice, variant)."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A variant that can be tried now."""

    key: Key
    digest: str
    source: str
    """Hash of where the model comes from."""
    request: TuneRequest

    @property
    def spot(self) -> Spot:
        return self.key[2:4]


def asked(node: RuntimeNode) -> dict[Key, str]:
    """What the operator asks for, with the hash of the model that it is about."""
    sources = candidate_sources(node)
    return {
        (task.service, task.member, task.device, task.slice, variant): source_hash(source)
        for task in node.spec.tuning
        if (source := sources.get((task.service, task.member))) is not None
        for variant in task.variants
    }


def still_asked(node: RuntimeNode, tried: Iterable[Tried]) -> tuple[Tried, ...]:
    """Of what was found, what is asked for, of the very model."""
    wanted = asked(node)
    return tuple(each for each in tried if wanted.get(each.key) == each.source)


def next_trials(
    node: RuntimeNode, tried: Iterable[Tried], found: Found, site: Site, busy: Iterable[Spot]
) -> list[Trial]:
    """The first variant of each task that is not done, whose model is here and on whose slice nothing is tried."""
    done, taken = {each.key for each in tried}, set(busy)
    sources = candidate_sources(node)
    trials: list[Trial] = []
    for task in node.spec.tuning:
        spot = task.device, task.slice
        left = [each for each in task.variants if (*_place(task), each) not in done]
        source = sources.get((task.service, task.member))
        model = found(source) if source is not None else None
        if spot in taken or not left or source is None or model is None:
            continue
        try:
            request = _request(node, task, left[0], model, site)
        except TranslationError:
            continue  # said by results()
        taken.add(spot)
        trials.append(Trial((*_place(task), left[0]), model.digest, source_hash(source), request))
    return trials


def results(
    node: RuntimeNode,
    tried: Iterable[Tried],
    under_way: Iterable[Key],
    found: Found,
    problem: Mapping[ModelSource, str],
    site: Site,
) -> tuple[TuningResult, ...]:
    """What became of each task so far. ``problem``: why models are not here."""
    outcomes = {each.key: (each.digest, decoded(each.outcome)) for each in tried}
    sources = candidate_sources(node)
    running = set(under_way)
    told: list[TuningResult] = []
    for task in node.spec.tuning:
        keys = [(*_place(task), variant) for variant in task.variants]
        known = [outcomes[key] for key in keys if key in outcomes]
        source = sources.get((task.service, task.member))
        model = found(source) if source is not None else None
        digest = known[0][0] if known else model.digest if model is not None else None
        told.append(
            TuningResult(
                *_place(task),
                model_digest=digest,
                outcomes=tuple(outcome for _, outcome in known if outcome is not None),
                trying=next((key[4] for key in keys if key in running), ""),
                problem=_problem(task, source, model, problem, site)[:1024],
            )
        )
    return tuple(told)


def outcome_of(found: TuneOutcome, request: TuneRequest) -> Outcome:
    """What the server found, judged."""
    cores = [len(device.cores) for device in request.devices]
    shares = [1.0, *(each / cores[0] for each in cores[1:])]
    judged = verdict(found, shares, request.tolerance)
    return Outcome(
        variant=found.variant,
        verdict=judged.reason,
        error=float(f"{found.error:.3g}") if found.error >= 0 else None,
        p99_ratio=_ratio(judged.p99_ratio),
        throughput_ratio=_ratio(judged.throughput_ratio),
        message=judged.words[:1024],
    )


def failed(variant: str, why: str) -> Outcome:
    """Of a variant that could not even be tried."""
    return Outcome(variant, Reason.FAILED, message=why[:1024])


def kept(trial: Trial, outcome: Outcome) -> Tried:
    return Tried(trial.key, trial.source, trial.digest, record(Outcome).encode(outcome))


def decoded(document: Mapping[str, object]) -> Outcome | None:
    """An outcome as it was kept; None where it is of another version, and is tried again."""
    report = Report(strict=False)
    found = record(Outcome).decode(document, "tried", report)
    return found if isinstance(found, Outcome) and not report.errors else None


def _request(
    node: RuntimeNode, task: TuningTask, variant: str, model: LocalModel, site: Site
) -> TuneRequest:
    service, member = next(
        (service, member)
        for service in node.spec.candidates
        if service.name == task.service
        for member in service.spec.placed
        if member.name == task.member
    )
    device = device_target(task.device, task.slice, site)
    shares = [device]
    if device.kind == "cpu" and (half := len(device.cores) // 2) and not site.gpus_on_cores:
        name = f"cpu-{half}@{task.slice.partition('@')[2] or 0}"
        shares.append(device_target(task.device, name, site))
    largest = member.batch.max
    return tune_request(
        member,
        service.spec,
        model,
        variant,
        shares,
        {1, max(1, math.isqrt(largest)), largest},
        tolerance=task.tolerance,
        allow_code=site.allow_code,
    )


def _problem(
    task: TuningTask,
    source: ModelSource | None,
    model: LocalModel | None,
    problem: Mapping[ModelSource, str],
    site: Site,
) -> str:
    if source is None:
        return "spec.candidates has no version of it that can be read"
    if model is None:
        return problem.get(source, "")
    try:
        device_target(task.device, task.slice, site)
    except TranslationError as error:
        return str(error)
    return ""


def _place(task: TuningTask) -> tuple[str, str, str, str]:
    return task.service, task.member, task.device, task.slice


def _ratio(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) and value > 0 else None
