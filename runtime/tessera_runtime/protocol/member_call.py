"""The gRPC metadata with which servers call each other for one member of a service.

A member call is an ordinary ``ModelInfer`` or ``ModelMetadata`` that names the member. The server that
receives it runs that member alone and passes it on to nobody, so a request makes one hop at most.

=======================  ====================================================================================
asked                    meaning
=======================  ====================================================================================
``tessera-member``       the member
``tessera-digest``       of the model file that has to answer: versions change at one server after another
``tessera-slo-ms``       what is left of the SLO's target, for requests whose clients gave no limit
``tessera-losses``       processes that ended while running the request
``authorization``        keys of the service, where it asks for one: a member call proves what a client proves
=======================  ====================================================================================

=======================  ====================================================================================
answered, trailing       meaning
=======================  ====================================================================================
``tessera-queued-rows``  rows that wait for the member now
``tessera-max-rows``     of ``ModelMetadata``: most rows of a request
``tessera-losses``       of an error: processes that ended while running the request
=======================  ====================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from tessera_runtime.dataplane import Keys, MemberCall
from tessera_runtime.errors import InvalidRequest
from tessera_runtime.protocol.bearer import AUTHORIZATION, keys_of, presented
from tessera_runtime.protocol.head import traceparent_of

MEMBER = "tessera-member"
DIGEST = "tessera-digest"
SLO_MS = "tessera-slo-ms"
LOSSES = "tessera-losses"
QUEUED_ROWS = "tessera-queued-rows"
MAX_ROWS = "tessera-max-rows"

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """What came beside a request."""

    traceparent: str = ""
    part: MemberCall | None = None
    keys: Keys = field(default=(), repr=False)


_NOTHING = Sent()


def read_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Sent:
    """Raises InvalidRequest for a member call with a value that means nothing."""
    traceparent, member = "", ""
    keys: Keys = ()
    for name, value in metadata:
        if isinstance(value, str):
            if name == "traceparent":
                traceparent = traceparent_of(value)
            elif name == MEMBER:
                member = value
            elif name == AUTHORIZATION:
                keys += keys_of(value)
    if member:
        return Sent(traceparent, _member_call(member, dict(metadata)), keys)
    return Sent(traceparent, keys=keys) if traceparent or keys else _NOTHING


def _member_call(member: str, given: dict[str, str | bytes]) -> MemberCall:
    slo_ms = _number(SLO_MS, given[SLO_MS]) if SLO_MS in given else None
    return MemberCall(
        member,
        str(given.get(DIGEST, "")),
        None if slo_ms is None else slo_ms / 1e3,
        max(0, int(_number(LOSSES, given.get(LOSSES, "0")))),
    )


def _number(name: str, text: str | bytes) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidRequest(f"metadata.{name}: found {text[:32]!r}, allowed: a number")
    return value


def write_metadata(part: MemberCall, traceparent: str = "", keys: Keys = ()) -> Metadata:
    """The metadata of a member call."""
    written = [(MEMBER, part.member)]
    if part.digest:
        written.append((DIGEST, part.digest))
    if part.slo_s is not None:
        written.append((SLO_MS, f"{1e3 * part.slo_s:.3f}"))
    if part.losses:
        written.append((LOSSES, str(part.losses)))
    if traceparent:
        written.append(("traceparent", traceparent))
    return (*written, *presented(keys))
