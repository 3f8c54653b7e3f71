"""What percentile each member must reach so that the ensemble reaches its own.

Members see the same arrivals, so their latencies are positively associated and
P(all <= x) >= product of P(member <= x): treating them as independent errs on the safe side (exact Poisson
queues: product bound 0 to 1 % above the true ensemble p99 of three members, best-member rule 1 to 4 % below).
"""

from __future__ import annotations

from math import comb

_TOLERANCE = 1e-12

UNKNOWN_PART, LEAST_PART, MOST_PART = 0.4, 0.1, 0.8
"""Of a latency target that preprocessing gets: while nobody knows how long it takes, and bounds."""


def stage_part(stage_ms: float | None, members_ms: float | None) -> float:
    """The part of a latency target that preprocessing gets; the members, which come after it, get the rest.

    In proportion to what one row takes alone, ms: at equal load waiting grows with that. ``members_ms``: of the slowest.
    """
    if stage_ms is None or members_ms is None:
        return UNKNOWN_PART
    return min(max(stage_ms / (stage_ms + members_ms), LEAST_PART), MOST_PART)


def stage_percentile(percentile: float) -> float:
    """Percentile, in percent, for preprocessing and for the members that wait for it: each may be late half as often, since
    a request is late when either is, and they are not independent.
    """
    return 100 - (100 - percentile) / 2


def quorum_probability(member: float, members: int, quorum: int, required: int = 0) -> float:
    """P(all ``required`` members and at least ``quorum`` of all have answered), members independent.

    ``member`` is the probability, 0..1, that one member has answered. The required members count towards
    the quorum.
    """
    _check(members, quorum, required)
    optional = members - required
    at_least = max(0, quorum - required)
    enough = sum(
        comb(optional, answered) * member**answered * (1 - member) ** (optional - answered)
        for answered in range(at_least, optional + 1)
    )
    return member**required * enough


def members_waited_for(members: int, required: int, least: int, partial: bool) -> int:
    """Of how many members an answer is made at least: of all, unless it may be ``partial``, which then has the
    ``required`` ones and as many as ``least``.
    """
    return max(required, least) if partial else members


def member_percentile(
    ensemble_percentile: float, members: int, quorum: int | None = None, required: int = 0
) -> float:
    """Percentile, in percent, that every member must meet for the ensemble to meet its own.

    ``quorum`` None: all members are waited for, which gives q^(1/members). Otherwise ``quorum`` of the
    ``members`` suffice, as long as the ``required`` ones are among them.

    Raises ``ValueError`` for a percentile outside (0, 100) or impossible counts.
    """
    if not 0 < ensemble_percentile < 100:
        raise ValueError(
            f"ensemble_percentile: must be in percent, between 0 and 100, found {ensemble_percentile}"
        )
    wanted = ensemble_percentile / 100
    needed = members if quorum is None else quorum
    _check(members, needed, required)
    if needed == members or required == members:
        return float(100 * wanted ** (1 / members))
    low, high = 0.0, 1.0
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        if quorum_probability(middle, members, needed, required) < wanted:
            low = middle
        else:
            high = middle
    return 100 * high


def _check(members: int, quorum: int, required: int) -> None:
    if members < 1:
        raise ValueError(f"members: must be >= 1, found {members}")
    if not 1 <= quorum <= members:
        raise ValueError(f"quorum: must be from 1 to {members} members, found {quorum}")
    if not 0 <= required <= members:
        raise ValueError(f"required: must be from 0 to {members} members, found {required}")
