"""When an ensemble answers: the quorum over its members at the request's deadline.

Problem: members differ in latency and may fail; a request must be answered as soon as it can be, with what
the ModelService allows to be missing, and never hang.

Approach: a pure function of the members' states and the time, called on every event. Slow members are
governed by ``onTimeout``; a member that *failed* will never answer, so an optional one is left out and a
required one ends the request at once, under either setting.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tessera_core.api.modelservice import OnTimeout


class MemberState(StrEnum):
    """How far one member is with one request."""

    PENDING = "Pending"
    ANSWERED = "Answered"
    FAILED = "Failed"


class FailReason(StrEnum):
    """Why a request cannot be answered."""

    REQUIRED_FAILED = "RequiredFailed"
    TOO_FEW_MEMBERS = "TooFewMembers"
    DEADLINE_EXCEEDED = "DeadlineExceeded"


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again on the next event, at the latest at ``until``."""

    until: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Combine these members' outputs now."""

    members: tuple[str, ...]
    """In the order of the states, which is the spec's."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Give the request up now."""

    reason: FailReason
    members: tuple[str, ...]
    """The members it failed for: those that failed, or that were late."""


Decision = Wait | Answer | Fail


def decide(
    states: Mapping[str, MemberState],
    now: float,
    deadline: float,
    required: Collection[str],
    min_members: int,
    on_timeout: OnTimeout,
) -> Decision:
    """What to do with one request.

    Args:
        states: every member of the ensemble, in the spec's order.
        now: seconds of a monotonic clock.
        deadline: when the answer has to leave, on the same clock.
        required: the members that no answer may lack.
        min_members: the fewest members an answer may have; taken as 1 when less.
        on_timeout: whether members that are late at the deadline may be left out.

    """
    answered = tuple(name for name, state in states.items() if state is MemberState.ANSWERED)
    if len(answered) == len(states) and answered:
        return Answer(answered)
    failed = tuple(name for name, state in states.items() if state is MemberState.FAILED)
    if lost := tuple(name for name in failed if name in required):
        return Fail(FailReason.REQUIRED_FAILED, lost)
    needed = max(min_members, 1)
    if len(states) - len(failed) < needed:
        return Fail(FailReason.TOO_FEW_MEMBERS, failed)
    pending = tuple(name for name, state in states.items() if state is MemberState.PENDING)
    if not pending:
        return Answer(answered)
    if now < deadline:
        return Wait(deadline)
    complete = len(answered) >= needed and not any(name in required for name in pending)
    if on_timeout is OnTimeout.PARTIAL and complete:
        return Answer(answered)
    return Fail(FailReason.DEADLINE_EXCEEDED, pending)
