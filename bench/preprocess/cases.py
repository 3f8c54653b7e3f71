"""What is measured in each round, and the rows that come of it, by case and by who was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from bench.harness import Figures, Row, Variant
from bench.lines import CASE, WHO
from bench.peers.base import Wire
from bench.preprocess.alone import Alone
from bench.preprocess.asking import Asked, closed, poisson
from bench.preprocess.contestants import (
    EACH_CORE,
    FULL,
    LIMITS,
    ONE_PROCESS,
    SEPARATE,
    Contestants,
)
from bench.preprocess.places import Places
from bench.preprocess.services import (
    DECODED,
    ENSEMBLE,
    IMAGES,
    ONE_BY_ONE,
    SHARED,
    TENSORS,
    pooled,
)

ALONE = "without a server, one core"
DECODE, DECODE_FULL, INFER = "decode", "decode-full", "infer"

LIMIT = "limits"
PLAIN = "beside plain servers"
ONCE = "ensemble of three"
ABLATION = "without one step"
POOL = "pool of decoders"
LATENCY = "latency at fixed loads"

OURS, OURS_FULL = "Tessera", "Tessera, decodes at full size"
NO_SCALING = "decoded at full size"
NO_OVERLAP = "one request at a time"
NO_BATCHES = "batches of one"

IN_FLIGHT = 32
LOADS = (0.5, 0.8)
"""Of a capacity that was measured before."""
ROOM = 0.95
"""A server is not offered more than this part of its own capacity: its latency would be that of an endless queue."""

Rows = dict[tuple[str, str], Row]
"""By case and who."""


@dataclass(frozen=True, slots=True)
class Size:
    rounds: int = 5
    warm_s: float = 0.5
    """Before each load is counted."""
    seconds: float = 2.5
    """Of one closed loop."""
    latency_s: float = 6.0
    """Of one load."""


def by_label(rows: Sequence[Row]) -> Rows:
    return {(row.labels[CASE], row.labels[WHO]): row for row in rows}


def over(name: str, wire: Wire) -> str:
    """How a service over a protocol is called."""
    return f"{name}, {wire.value}"


def plain_name(processes: str, decoder: str) -> str:
    return f"plain, {processes}, {'Pillow' if decoder == FULL else 'same decoder'}"


def capacities(found: Contestants, alone: Alone, places: Places, size: Size) -> list[Variant]:
    """Closed loops: as many images per second as there are answers for."""

    def variant(case: str, who: str, asked: Asked, in_flight: int = IN_FLIGHT) -> Variant:
        measure = partial(closed, asked, in_flight, size.warm_s, size.seconds, places.load)
        return Variant({CASE: case, WHO: who}, measure)

    ours = {name: asked for (name, wire), asked in found.ours.items() if wire is Wire.HTTP}
    return [
        *(_alone(alone, what, size.seconds) for what in (DECODE, DECODE_FULL, INFER)),
        *(
            variant(LIMIT, over(name, wire), found.ours[name, wire])
            for wire in Wire
            for name in LIMITS
        ),
        variant(PLAIN, OURS, ours[SHARED]),
        variant(PLAIN, OURS_FULL, found.full_size[SHARED]),
        *(
            variant(PLAIN, plain_name(processes, decoder), asked)
            for (processes, decoder), asked in found.plain.items()
        ),
        variant(ONCE, ENSEMBLE, ours[ENSEMBLE]),
        variant(ONCE, SEPARATE, ours[SEPARATE]),
        variant(ABLATION, NO_SCALING, found.full_size[IMAGES]),
        variant(ABLATION, NO_OVERLAP, ours[IMAGES], in_flight=1),
        variant(ABLATION, NO_BATCHES, ours[ONE_BY_ONE]),
        *(variant(POOL, str(count), ours[pooled(count)]) for count in places.pools),
    ]


def _alone(alone: Alone, what: str, seconds: float) -> Variant:
    def measure() -> Figures:
        return {"rate_per_s": alone.rate(what, seconds)}

    return Variant({CASE: ALONE, WHO: what}, measure)


def lower_limit(rows: Rows, wire: Wire = Wire.HTTP) -> float:
    """Images per second: the median of the slower of decoding and inference."""
    parts = (rows[LIMIT, over(name, wire)] for name in (DECODED, TENSORS))
    return min(row.medians["rate_per_s"] for row in parts)


def latencies(found: Contestants, rows: Rows, places: Places, size: Size) -> list[Variant]:
    """Poisson loads: shares of the lower limit, and of what the plain server carries in one process."""
    one = plain_name(ONE_PROCESS, FULL)
    each = plain_name(EACH_CORE, FULL)
    asked = {
        OURS: (found.ours[IMAGES, Wire.HTTP], lower_limit(rows)),
        one: (found.plain[ONE_PROCESS, FULL], rows[PLAIN, one].medians["rate_per_s"]),
        each: (found.plain[EACH_CORE, FULL], rows[PLAIN, each].medians["rate_per_s"]),
    }
    bases = {"the lower limit": lower_limit(rows), one: asked[one][1]}
    return [
        Variant(
            {CASE: LATENCY, WHO: who, "load": f"{load:g} of {base}"},
            partial(
                poisson,
                target,
                load * of_base,
                size.warm_s,
                size.latency_s,
                round(100 * load),
                places.load,
            ),
        )
        for base, of_base in bases.items()
        for load in LOADS
        for who, (target, capacity) in asked.items()
        if 0 < load * of_base <= ROOM * capacity
    ]
