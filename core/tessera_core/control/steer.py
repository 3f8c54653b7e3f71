"""From what a server counts to what a policy sees, and from devices of one kind to the profile that it asks.

A policy knows of one queue and of instances that are alike. On a node that is one member on the devices of one kind:
so many instances on each of them, which take from one queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from tessera_core.batching.arrivals import gap_cv2
from tessera_core.control.setpoint import Batch, Setpoint, Window
from tessera_core.perf.counters import Counters, gone_back
from tessera_core.perf.profile import LatencyProfile, ProfileRow
from tessera_core.perf.service import MS_PER_S


@dataclass(frozen=True, slots=True)
class Told:
    """By a server, of one member."""

    counters: Counters
    latencies: tuple[int, ...]
    """How many were answered, by ``perf.histogram.BOUNDS_S``."""
    recent: tuple[tuple[str, Batch], ...]
    """The newest batches, oldest first, each with its device."""


def window(
    told_before: Told, told_now: Told, devices: frozenset[str], share: float = 1.0
) -> Window | None:
    """What ``devices`` saw between two moments by the server's own clock, when a ``share`` of what comes is theirs.

    Latencies are told of all devices together, so a part of them knows none of its own. None where the counters are of
    another server, or no time has passed.
    """
    before, now = told_before.counters, told_now.counters
    if now.at_s == before.at_s or gone_back(before, now) is not None:
        return None
    ran = now.batches - before.batches
    new = told_now.recent[-ran:] if ran else ()
    requests = now.requests - before.requests
    arrived = now.arrived - before.arrived
    latencies = zip(told_before.latencies, told_now.latencies, strict=True)
    return Window(
        now.at_s - before.at_s,
        round(share * arrived),
        (tuple(batch for device, batch in new if device in devices),),
        gap_cv2(
            now.groups - before.groups,
            now.gaps - before.gaps,
            now.gaps_s - before.gaps_s,
            now.groups_s2 - before.groups_s2,
        ),
        arrived / requests if requests else 1.0,
        tuple(later - earlier for earlier, later in latencies) if share == 1.0 else (),
        now.lost - before.lost if share == 1.0 else 0,
    )


def pooled(profile: LatencyProfile, devices: int) -> LatencyProfile:
    """``profile`` of so many devices of the kind with one queue: instances of all together, batch times of each."""
    if devices == 1:
        return profile
    return LatencyProfile(
        tuple(
            replace(
                row,
                instances=devices * row.instances,
                throughput=devices * row.throughput,
                memory_mib=devices * row.memory_mib,
            )
            for row in profile.rows
        )
    )


def in_turn(profiles: Sequence[LatencyProfile]) -> LatencyProfile | None:
    """Of members that run as one, each batch through all of them: the sums of their times.

    For the instance counts that all were measured with; None where there is none. Batches up to the smallest of the
    largest ones.
    """
    if len(profiles) == 1:
        return profiles[0]
    counts = set(profiles[0].instance_counts).intersection(
        *(profile.instance_counts for profile in profiles)
    )
    rows: list[ProfileRow] = []
    for count in sorted(counts):
        cells = [profile.cells(count) for profile in profiles]
        most = min(each[-1].batch for each in cells)
        for batch in sorted({row.batch for each in cells for row in each if row.batch <= most}):
            p50_ms = sum(profile.service_ms(batch, count) for profile in profiles)
            p99_ms = sum(profile.service_ms(batch, count, tail=True) for profile in profiles)
            memory_mib = sum(profile.memory_mib(count) for profile in profiles)
            throughput = MS_PER_S * count * batch / p50_ms
            rows.append(
                ProfileRow(batch, count, p50_ms, max(p50_ms, p99_ms), throughput, memory_mib)
            )
    return LatencyProfile(tuple(rows)) if rows else None


def active_on_each(setpoint: Setpoint, devices: int) -> int:
    """Instances that take batches on each of ``devices``."""
    return ceil(setpoint.instances / devices)
