"""The dispatcher's state as the agent and the protocol's statistics extension want it."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from tessera_runtime.dataplane import BatchStat, DurationStat, ModelStatistics, RepositoryEntry
from tessera_runtime.dispatch.service import Service
from tessera_runtime.target import (
    BatchReport,
    InstanceReport,
    MemberReport,
    ServerReport,
    ServiceReport,
    WorkerReport,
)

if TYPE_CHECKING:
    from tessera_runtime.dispatch.dispatcher import Dispatcher


def server_report(dispatcher: Dispatcher, now: float) -> ServerReport:
    """Everything the agent reports upwards."""
    return ServerReport(
        epoch=dispatcher.target.epoch,
        ready=dispatcher.ready(),
        services=tuple(
            _service_report(dispatcher, service) for service in dispatcher.serving.values()
        ),
        workers=tuple(
            WorkerReport(worker.incarnation, worker.pid, worker.place.device)
            for worker in dispatcher.workers.living.values()
        ),
        arena_used=dispatcher.arena.in_use,
        arena_size=dispatcher.arena.size,
        monotonic_s=now,
        cpu_s=time.process_time(),
        ports=dispatcher.ports,
        draining=dispatcher.draining,
        instances=_instances(dispatcher),
        mps_problem=next(
            (
                f"{device} for {namespace}: {seat.reason}"
                for (device, namespace), seat in dispatcher.workers.mps
                if not seat.works(now)
            ),
            "",
        ),
    )


def _instances(dispatcher: Dispatcher) -> tuple[InstanceReport, ...]:
    """By service, member and device, in that order."""
    exist: Counter[tuple[str, str, str]] = Counter()
    ready: Counter[tuple[str, str, str]] = Counter()
    memory_mib: Counter[tuple[str, str, str]] = Counter()
    caps: dict[tuple[str, str, str], int] = {}
    runs: dict[tuple[str, str, str], set[str]] = {}
    faulty: dict[tuple[str, str, str], dict[str, str]] = {}
    for service, (index, device, _), instance in dispatcher.running():
        member = service.members[index]
        place = (service.name, member.name, device)
        exist[place] += 1
        ready[place] += instance.ready and dispatcher.serving.get(service.name) is service
        memory_mib[place] += round(instance.memory_mib)
        if instance.ready:
            runs.setdefault(place, set()).add(instance.variant)
        if instance.is_faulty and instance.probation is not None:
            faulty.setdefault(place, {})[instance.variant] = instance.probation.problem
        caps.setdefault(place, member.caps.get(device, member.cap))
    wanted: Counter[tuple[str, str, str]] = Counter()
    for target in dispatcher.target.services:
        for each in target.members:
            for where in each.instances:
                wanted[target.name, each.name, where.device] += where.count
                caps[target.name, each.name, where.device] = where.cap or each.cap
    return tuple(
        InstanceReport(
            *place,
            wanted[place],
            exist[place],
            ready[place],
            caps[place],
            memory_mib[place],
            variants=tuple(sorted(runs.get(place, ()))),
            faulty=faulty.get(place, {}),
        )
        for place in sorted(exist.keys() | wanted.keys())
    )


def _service_report(dispatcher: Dispatcher, service: Service) -> ServiceReport:
    statistics = service.statistics
    instances = dispatcher.wanted_of(service)
    members: list[MemberReport] = []
    for index, member in enumerate(service.members):
        own = [instance for key, instance in instances.items() if key[0] == index]
        target = service.target.members[index]
        gang = service.gang
        asked = (member,) if gang is None else (member, gang)
        served_by = gang if gang is not None and gang.lanes else member
        latency = member.latencies()
        members.append(
            MemberReport(
                name=member.name,
                digest=target.digest,
                wanted=sum(place.count for place in target.instances),
                ready=sum(instance.ready for instance in own),
                cap=member.cap,
                queued_rows=member.queued_rows,
                batches=member.statistics.batches,
                rows=member.statistics.rows,
                memory_mib=sum(instance.memory_mib for instance in own),
                device=",".join(sorted({instance.device.id for instance in own})),
                restarts=member.statistics.restarts,
                problem=next((i.problem for i in own if i.problem and not i.ready), "")
                or (member.routes.problem if member.routes is not None else ""),
                arrived=sum(each.arrivals.rows for each in asked),
                latency_s=latency.total_s,
                latency_buckets=tuple(latency.counts),
                lost=sum(each.statistics.lost for each in asked),
                requests=sum(each.arrivals.requests for each in asked),
                groups=sum(each.arrivals.groups for each in asked),
                gaps=sum(each.arrivals.gaps for each in asked),
                gaps_s=sum(each.arrivals.gaps_s for each in asked),
                groups_s2=sum(each.arrivals.groups_s2 for each in asked),
                recent=tuple(
                    BatchReport(lane.device, lane.worker.incarnation, rows, round(1e3 * took_s, 4))
                    for lane, rows, took_s in served_by.recent
                ),
            )
        )
    starting = dispatcher.starting.get(service.name)
    closed = dispatcher.gates.is_closed(service.name)
    return ServiceReport(
        name=service.name,
        version=service.version,
        ready=service.ready and not closed,
        slo_ms=service.target.slo_ms,
        good=statistics.good,
        total=statistics.total,
        arrivals_rows=statistics.rows,
        codes={str(code): count for code, count in sorted(statistics.codes.items())},
        latency_buckets=tuple(statistics.latency.counts),
        members=tuple(members),
        problem=service.problem
        or ("no keys of it were handed over yet, so that nobody is answered" if closed else "")
        or (service_problem(dispatcher, starting) if starting is not None else ""),
        held=dispatcher.holds.waiting(service.name),
        joined=len(service.gang.lanes) if service.gang is not None else 0,
    )


def service_problem(dispatcher: Dispatcher, service: Service) -> str:
    """Why ``service`` is not ready, if anything is wrong; empty while it is just starting."""
    problems = Counter(i.problem for i in dispatcher.wanted_of(service).values() if i.problem)
    return service.problem or (problems.most_common(1)[0][0] if problems else "")


def repository_entry(dispatcher: Dispatcher, service: Service) -> RepositoryEntry:
    if service.name in dispatcher.unloaded:
        busy = dispatcher.wanted_of(service)
        state, reason = ("UNLOADING", "") if busy else ("UNAVAILABLE", "unloaded")
    elif service.ready:
        state, reason = "READY", ""
    else:
        problem = service_problem(dispatcher, service)
        state, reason = ("UNAVAILABLE", problem) if problem else ("LOADING", "")
    return RepositoryEntry(service.name, service.version, state, reason)


def model_statistics(service: Service) -> ModelStatistics:
    """Counters of the statistics extension. Compute times are the slowest member's share of an ensemble:
    members run side by side, and their sum would be longer than the request took.
    """
    statistics = service.statistics
    busiest = max(service.members, key=lambda member: member.statistics.inference.total_s)
    sizes = busiest.statistics.by_size
    batches = sum(times.batches for times in sizes.values())
    queue = busiest.queue_times()
    failed = sum(n for code, n in statistics.codes.items() if code != 200)
    return ModelStatistics(
        name=service.name,
        version=service.version,
        last_inference_ms=int(statistics.last_answer * 1e3),
        inference_count=statistics.answered_rows,
        execution_count=batches,
        success=_duration(statistics.codes[200], statistics.latency.total_s),
        fail=_duration(failed, statistics.failed_s),
        queue=_duration(queue.count, queue.total_s),
        compute_input=DurationStat(batches, sum(t.gather_ns for t in sizes.values())),
        compute_infer=DurationStat(batches, sum(t.infer_ns for t in sizes.values())),
        compute_output=DurationStat(batches, sum(t.output_ns for t in sizes.values())),
        batches=tuple(
            BatchStat(
                size,
                DurationStat(times.batches, times.gather_ns),
                DurationStat(times.batches, times.infer_ns),
                DurationStat(times.batches, times.output_ns),
            )
            for size, times in sorted(sizes.items())
        ),
    )


def _duration(count: int, seconds: float) -> DurationStat:
    return DurationStat(count, int(seconds * 1e9))
