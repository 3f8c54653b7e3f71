"""Which profiling task comes next, and what is said of all of them: pure.

A task is one member on one slice. Its result is reported for as long as the task is in the spec; the digest
already when the file has come, so that a profile that somebody else has measured is not measured again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tessera_core.api import RuntimeNode
from tessera_core.api.errors import Report
from tessera_core.api.measurements import ProfileResult, ProfilingTask
from tessera_core.api.members import Member
from tessera_core.api.records import record
from tessera_core.api.runtimenode import ServedService
from tessera_core.gpu.devices import DeviceClass
from tessera_core.plan.state import CPU
from tessera_core.tuning.variants import UNTUNED, parse
from tessera_runtime.agent.kept import Measured
from tessera_runtime.agent.measure import HANG_S, build_request, profile_request, profile_rows
from tessera_runtime.agent.observe import device_class
from tessera_runtime.agent.translate import (
    LocalModel,
    ModelSource,
    Site,
    TranslationError,
    candidate_sources,
    cpu_piece,
    device_target,
)
from tessera_runtime.target import ProfileReport, ProfileRequest, TuneRequest


@dataclass(frozen=True, slots=True)
class Job:
    """A task that can be carried out now."""

    task: ProfilingTask
    source: ModelSource
    place: DeviceClass
    digest: str
    request: ProfileRequest
    build: TuneRequest | None
    """What has to be built before; None: nothing."""


Found = Callable[[ModelSource], LocalModel | None]
"""The file of a source, once it is on this node."""

Key = tuple[str, str, str, str, str]
"""(service, member, device, slice, variant)."""


def task_key(task: ProfilingTask) -> Key:
    return task.service, task.member, task.device, task.slice, task.variant


def measured_key(measured: Measured) -> Key:
    return *measured.task, measured.variant


def source_hash(source: ModelSource) -> str:
    """Names where a model comes from without saying it: a URI may carry a signature."""
    text = "\0".join((source.namespace, source.uri, source.secret or ""))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def still_asked(node: RuntimeNode, measured: Iterable[Measured]) -> tuple[Measured, ...]:
    """The results whose tasks are in the spec, of the very model that is asked for."""
    sources = candidate_sources(node)
    asked = {
        task_key(task): sources[task.service, task.member]
        for task in node.spec.profiling
        if (task.service, task.member) in sources
    }
    return tuple(
        each
        for each in measured
        if (source := asked.get(measured_key(each))) is not None
        and each.source == source_hash(source)
        and (result := decoded(each.result)) is not None
        and source.digest in (None, result.model_digest)
    )


def next_job(
    node: RuntimeNode, measured: Iterable[Measured], found: Found, site: Site
) -> Job | None:
    """The first task that is not done and whose model is here, those on slices without instances first."""
    done = {measured_key(each) for each in measured}
    sources = candidate_sources(node)
    jobs: list[Job] = []
    for task in node.spec.profiling:
        source = sources.get((task.service, task.member))
        model = found(source) if source is not None else None
        if task_key(task) in done or source is None or model is None:
            continue
        try:
            jobs.append(_job(node, task, source, model, site))
        except TranslationError:
            continue  # said by results()
    return min(jobs, key=lambda job: _busy(node, job.task), default=None)


def results(
    node: RuntimeNode,
    measured: Iterable[Measured],
    found: Found,
    problem: Callable[[ModelSource], str],
    site: Site,
) -> tuple[ProfileResult, ...]:
    """What became of each task so far; nothing for one whose model is still being fetched."""
    done = {measured_key(each): decoded(each.result) for each in measured}
    sources = candidate_sources(node)
    told: list[ProfileResult] = []
    for task in node.spec.profiling:
        if (result := done.get(task_key(task))) is not None:
            told.append(result)
            continue
        source = sources.get((task.service, task.member))
        if source is None:
            why = "spec.candidates has no version of it that can be read"
            told.append(_untold(task, why))
            continue
        model = found(source)
        if model is None:
            if why := problem(source):
                told.append(_untold(task, why))
            continue
        try:
            job = _job(node, task, source, model, site)
        except TranslationError as error:
            told.append(_untold(task, str(error)))
        else:
            head = task.service, task.member, model.digest, job.place
            told.append(ProfileResult(*head, variant=task.variant))
    return tuple(told)


def measured_result(job: Job, report: ProfileReport | None, problem: str, driver: str) -> Measured:
    """``report``: None where there is a ``problem``."""
    result = ProfileResult(
        service=job.task.service,
        member=job.task.member,
        model_digest=job.digest,
        device_class=job.place,
        engine=report.engine if report is not None else None,
        driver=driver or None if not job.place.is_cpu else None,
        variant=job.task.variant,
        rows=profile_rows(report) if report is not None else (),
        problem=problem[:1024],
    )
    return Measured(
        task_key(job.task)[:4],
        source_hash(job.source),
        record(ProfileResult).encode(result),
        job.task.variant,
    )


def decoded(document: Mapping[str, object]) -> ProfileResult | None:
    """A result as it was kept; None where it is of another version, and is measured again."""
    report = Report(strict=False)
    found = record(ProfileResult).decode(document, "measured", report)
    return found if isinstance(found, ProfileResult) and not report.errors else None


def _job(
    node: RuntimeNode,
    task: ProfilingTask,
    source: ModelSource,
    model: LocalModel,
    site: Site,
) -> Job:
    service, member = _declared(node, task)
    device = device_target(task.device, task.slice, site)
    request = profile_request(
        member,
        service.spec,
        model,
        device,
        variant=task.variant,
        hang_s=HANG_S,
        allow_code=site.allow_code,
    )
    place = device_class(site.seen, task.device, task.slice)
    build = None
    if is_compiled(task.variant):
        build = build_request(
            *(member, service.spec, model, task.variant, device), allow_code=site.allow_code
        )
    return Job(task, source, place, model.digest, request, build)


def _untold(task: ProfilingTask, why: str) -> ProfileResult:
    """Of a task that cannot be carried out yet."""
    return ProfileResult(task.service, task.member, variant=task.variant, problem=why[:1024])


def _declared(node: RuntimeNode, task: ProfilingTask) -> tuple[ServedService, Member]:
    return next(
        (service, member)
        for service in node.spec.candidates
        if service.name == task.service
        for member in service.spec.placed
        if member.name == task.member
    )


def is_compiled(variant: str) -> bool:
    """Whether it is built before it can be loaded; one that is not known here is not."""
    try:
        return variant != UNTUNED and parse(variant).compiles
    except ValueError:
        return False  # loading it says what is wrong


def _busy(node: RuntimeNode, task: ProfilingTask) -> bool:
    """Whether instances are to run on what ``task`` measures."""
    instances = [
        instance.slice
        for device in node.spec.devices
        if device.uuid == task.device
        for instance in device.instances
    ]
    if task.device != CPU:
        return task.slice in instances
    return any(_overlap(_cores(task.slice), _cores(piece)) for piece in instances)


def _cores(piece: str) -> range:
    try:
        count, first = cpu_piece(piece)
    except TranslationError:
        return range(0)  # no cores, so nothing runs there
    return range(first, first + count)


def _overlap(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)
