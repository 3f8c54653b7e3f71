"""Ratios of what was measured, round by round, and what they have to reach."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from bench.harness import Figures
from bench.lines import Line, Reach
from bench.peers.base import Wire
from bench.preprocess.cases import (
    ABLATION,
    ALONE,
    DECODE,
    INFER,
    LIMIT,
    ONCE,
    OURS,
    OURS_FULL,
    PLAIN,
    POOL,
    Rows,
    over,
    plain_name,
)
from bench.preprocess.contestants import EACH_CORE, FULL, ONE_PROCESS, SCALED, SEPARATE
from bench.preprocess.places import Places
from bench.preprocess.services import DECODED, ENSEMBLE, IMAGES, TENSORS

from bench import lines

FIGURES: lines.Columns = {
    "rate_per_s": ("images/s", "{:,.1f}"),
    "offered_per_s": ("offered/s", "{:,.1f}"),
    "cpu_ms": ("cpu ms an image", "{:,.1f}"),
    "p50_ms": ("p50 ms", "{:,.1f}"),
    "p99_ms": ("p99 ms", "{:,.1f}"),
    "sent_late": ("sent late", "{:.3f}"),
    "ratio": ("ratio", "{:.2f}"),
    "decodes": ("decodes an image", "{:.2f}"),
}
"""Name of a figure: its column and its format."""

RATIOS = "ratios"
OVERLAP, TIMES_PLAIN = 0.9, 3.0
"""What end to end has to reach of the lower limit, and of the plain server."""
ONLY_ONCE = Reach("decodes", at_least=1.0, at_most=1.0)

Key = tuple[str, str]
"""Case and who."""

line = partial(lines.line, FIGURES)


def judged(rows: Rows, places: Places, decodes: Figures) -> list[Line]:
    """``decodes``: of each image, by service."""
    found = list(_limits(rows, places))
    found += _plain(rows)
    found += _once(rows, decodes)
    whole = (LIMIT, over(IMAGES, Wire.HTTP))
    found += [
        line(RATIOS, f"{who} over all steps", _ratios(rows, (case, who), whole))
        for case, who in rows
        if case == ABLATION
    ]
    first, *more = (key for key in rows if key[0] == POOL)
    found += [
        line(RATIOS, f"pool of {who} over one", _ratios(rows, (case, who), first))
        for case, who in more
    ]
    return found


def _limits(rows: Rows, places: Places) -> Iterator[Line]:
    for wire in Wire:
        whole, decoded, tensors = (
            rows[LIMIT, over(name, wire)] for name in (IMAGES, DECODED, TENSORS)
        )
        repeats = zip(whole.repeats, decoded.repeats, tensors.repeats, strict=True)
        rates = [tuple(each["rate_per_s"] for each in repeat) for repeat in repeats]
        # Where decoding and inference share cores, overlap cannot reach the lower limit, so it is no target there.
        reach = (Reach("ratio", at_least=OVERLAP),) if places.apart else ()
        yield line(
            RATIOS,
            f"{wire.value}: end to end of the lower limit",
            [{"ratio": _over(each, min(parts))} for each, *parts in rates],
            *reach,
        )
        yield line(
            RATIOS,
            f"{wire.value}: end to end of one after the other, 1 / (1/decode + 1/inference)",
            [{"ratio": sum(_over(each, part) for part in parts)} for each, *parts in rates],
        )
    for what, name, cores in (
        (DECODE, DECODED, len(places.decoding)),
        (INFER, TENSORS, len(places.inferring)),
    ):
        found = _ratios(rows, (LIMIT, over(name, Wire.HTTP)), (ALONE, what))
        yield line(
            RATIOS,
            f"limit of the server to {what} of that without one",
            [{"ratio": each["ratio"] / cores} for each in found],
        )


def _plain(rows: Rows) -> Iterator[Line]:
    for ours, processes, decoder, *reach in (
        (OURS, ONE_PROCESS, FULL, Reach("ratio", at_least=TIMES_PLAIN)),
        (OURS, ONE_PROCESS, SCALED),
        (OURS, EACH_CORE, FULL),
        (OURS, EACH_CORE, SCALED),
        (OURS_FULL, ONE_PROCESS, FULL),
        (OURS_FULL, EACH_CORE, FULL),
    ):
        plain = plain_name(processes, decoder)
        found = _ratios(rows, (PLAIN, ours), (PLAIN, plain))
        yield line(RATIOS, f"{ours} over {plain}", found, *reach)


def _once(rows: Rows, decodes: Figures) -> Iterator[Line]:
    yield line(
        RATIOS,
        "ensemble of three over three services",
        _ratios(rows, (ONCE, ENSEMBLE), (ONCE, SEPARATE)),
    )
    yield line(ONCE, "decodes, ensemble", {"decodes": decodes[ENSEMBLE]}, ONLY_ONCE)
    yield line(ONCE, "decodes, separate services", {"decodes": decodes[SEPARATE]})


def _ratios(rows: Rows, top: Key, bottom: Key) -> list[Figures]:
    """Of the rates in each round."""
    pairs = zip(rows[top].repeats, rows[bottom].repeats, strict=True)
    return [{"ratio": _over(upper["rate_per_s"], lower["rate_per_s"])} for upper, lower in pairs]


def _over(upper: float, lower: float) -> float:
    """NaN where the lower one was too slow to answer within the time that it was given."""
    return upper / lower if lower else math.nan
