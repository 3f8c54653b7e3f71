"""Who leads: what a candidate does about a Lease, as a function of what it saw and when.

Problem: two operators must never act at once, clocks of machines differ, and a leader that was cut off must not
believe in itself for longer than the others do. Approach, that of client-go's leader election: nobody reads
another's clock. A candidate measures with its own how long a record stayed the same; a leader gives up when it
has not renewed for less time than the others wait. Writes carry the version that was read, so that of two
candidates the API server lets one through.

``transitions`` counts the leaders there have been. It is the epoch that every written object carries, and the
API server refuses a smaller one: what a deposed leader still sends cannot land.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. Takeover after a crash takes at most ``duration_s + retry_s``."""

    duration_s: float = 15.0
    """A record that did not change for so long is free."""
    renew_within_s: float = 10.0
    """A leader that could not renew for so long stops leading; below ``duration_s``."""
    retry_s: float = 2.0
    """Between two looks, and between two renewals."""

    def __post_init__(self) -> None:
        if not 0 < self.retry_s < self.renew_within_s < self.duration_s:
            raise ValueError(
                "timing: 0 < retry_s < renew_within_s < duration_s is needed, found "
                f"{self.retry_s:g}, {self.renew_within_s:g}, {self.duration_s:g}"
            )


class Record(NamedTuple):
    """What a Lease says."""

    holder: str
    """Identity of the leader; empty: it gave the lease back."""
    transitions: int
    version: str
    """``metadata.resourceVersion``; a renewal changes it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A record, and since when it is as it is, by the observer's own clock."""

    record: Record
    since_s: float


def look(before: Seen | None, record: Record, now_s: float) -> Seen:
    """What is known after ``record`` was read at ``now_s``."""
    if before is not None and before.record == record:
        return before
    return Seen(record, now_s)


def claim(
    seen: Seen | None, me: str, now_s: float, timing: Timing, epoch_seen: int
) -> Record | None:
    """The record to write in order to lead; None: wait. ``seen`` is None where there is no Lease yet.

    A holder of the same name is this candidate before a restart: it goes on as a new leader, because what it
    sent before may still be under way. ``epoch_seen`` is the largest in any object: a Lease that was deleted
    starts to count anew, and its leaders could not write.
    """
    if seen is None:
        return Record(me, epoch_seen + 1, "")
    record = seen.record
    free = record.holder in ("", me) or now_s - seen.since_s >= timing.duration_s
    if not free:
        return None
    return Record(me, max(record.transitions, epoch_seen) + 1, record.version)


def still_mine(held: Record, found: Record | None) -> bool:
    """Whether a Lease that somebody else wrote to, a person perhaps, still names this leader."""
    return found is not None and found[:2] == held[:2]


def must_stop(renewed_s: float, now_s: float, timing: Timing) -> bool:
    """Whether a leader that last renewed at ``renewed_s`` has to take it that another one leads."""
    return now_s - renewed_s >= timing.renew_within_s
