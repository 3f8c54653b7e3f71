"""Traces: how requests come, apart from how many, and recorded ones as files.

    TraceInvalid    a trace that cannot be used; the message names the place, what was found and what to do

A kind of trace is written ``kind:name=value,…``:

    poisson                             independent requests
    gamma:cv2=4                         independent gaps of this squared variation: 1 is Poisson, above it bursts
    on-off:peak=4,on-s=1,off-s=9        Poisson at ``peak`` times the mean rate for ``on-s`` seconds in the mean, then what
                                        keeps the mean for ``off-s``, both exponential
    diurnal:swing=0.8,period-s=86400    Poisson at mean·(1 - swing·cos(2πt/period)): begins at its lowest

A recorded trace is CSV with a line per request: a heading ``time_s`` or ``time_s,service``, times ascending.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import isfinite

import numpy as np

from tessera_core.simulate.arrivals import MS_PER_S, Times, diurnal, gamma, on_off

MOST_S = 366 * 86_400.0
"""A time beyond it is a date rather than the time since a start."""

CV2_MOST = 1e4


class TraceInvalid(ValueError):
    """A trace that cannot be used."""


@dataclass(frozen=True, slots=True)
class Gamma:
    """Independent gaps."""

    cv2: float = 1.0

    def __post_init__(self) -> None:
        _within("gamma", "cv2", self.cv2, 0, CV2_MOST)

    def times_ms(self, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Times:
        """Ascending; the mean rate is in requests per second."""
        return gamma(rate_per_s, self.cv2, duration_s, rng)


@dataclass(frozen=True, slots=True)
class OnOff:
    """Two rates that take turns: a Poisson process whose rate is a Markov chain of two states."""

    peak: float = 4.0
    """Rate while on, in multiples of the mean."""
    on_s: float = 1.0
    off_s: float = 9.0

    def __post_init__(self) -> None:
        _within("on-off", "on-s", self.on_s, 0, MOST_S)
        _within("on-off", "off-s", self.off_s, 0, MOST_S)
        most = 1 / self.on_share
        if not 1 <= self.peak <= most * (1 + 1e-9):
            raise TraceInvalid(
                f"on-off: peak: found {self.peak:g}, allowed: 1 to {most:g}, or the rate while off were below 0; "
                "lower it, or shorten on-s"
            )

    @property
    def on_share(self) -> float:
        """Of the time."""
        return self.on_s / (self.on_s + self.off_s)

    def times_ms(self, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Times:
        """Ascending; the mean rate is in requests per second. Starts on."""
        share = self.on_share
        low = max(0.0, rate_per_s * (1 - share * self.peak) / (1 - share))
        return on_off(rate_per_s * self.peak, low, self.on_s, self.off_s, duration_s, rng)


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Days."""

    swing: float = 0.8
    period_s: float = 86_400.0

    def __post_init__(self) -> None:
        if not 0 <= self.swing <= 1:
            raise TraceInvalid(f"diurnal: swing: found {self.swing:g}, allowed: 0 to 1")
        _within("diurnal", "period-s", self.period_s, 0, MOST_S)

    def times_ms(self, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Times:
        """Ascending; the mean rate is in requests per second, over whole periods."""
        return diurnal(rate_per_s, self.swing, self.period_s, duration_s, rng)


Trace = Gamma | OnOff | Diurnal

KINDS: Mapping[str, type[Gamma] | type[OnOff] | type[Diurnal]] = {
    "poisson": Gamma,
    "gamma": Gamma,
    "on-off": OnOff,
    "diurnal": Diurnal,
}


def parse_trace(text: str) -> Trace:
    """A trace from ``kind:name=value,…``; names that are left out have the defaults above. Raises TraceInvalid."""
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise TraceInvalid(f"found {kind[:64]!r}, allowed: {', '.join(KINDS)}")
    made = KINDS[kind]
    known = () if kind == "poisson" else tuple(each.name.replace("_", "-") for each in fields(made))
    values: dict[str, float] = {}
    for entry in filter(None, rest.split(",")):
        name, equals, number = entry.partition("=")
        if name not in known or not equals:
            allowed = ", ".join(f"{each}=NUMBER" for each in known) or "nothing after it"
            raise TraceInvalid(f"{kind}: found {entry[:64]!r}, allowed: {allowed}")
        field = name.replace("-", "_")
        if field in values:
            raise TraceInvalid(f"{kind}: {name}: found twice, allowed: once")
        values[field] = _number(f"{kind}: {name}", number)
    return made(**values)


def trace_text(trace: Trace) -> str:
    """What :func:`parse_trace` makes ``trace`` of, with all its values."""
    kind = next(kind for kind, made in reversed(list(KINDS.items())) if made is type(trace))
    values = {
        each.name.replace("_", "-"): float(getattr(trace, each.name)) for each in fields(trace)
    }
    written = [f"{name}={str(value).removesuffix('.0')}" for name, value in values.items()]
    return f"{kind}:{','.join(written)}"


def recorded_traces(lines: Iterable[str]) -> dict[str, Times]:
    """The times of a CSV trace, ms, by service; one without services has the name "".

    Raises TraceInvalid naming line and field.
    """
    reader = csv.reader(lines, strict=True)
    try:
        heading = [name.strip() for name in next(reader, [])]
        if heading not in (["time_s"], ["time_s", "service"]):
            raise TraceInvalid(
                f"line 1: found {','.join(heading)[:64]!r}, allowed: time_s or time_s,service; "
                "write that heading above the requests"
            )
        found: dict[str, list[float]] = defaultdict(list)
        last = 0.0
        for entry in reader:
            if entry:
                last = _request(entry, len(heading), last, reader.line_num, found)
    except csv.Error as error:
        raise TraceInvalid(f"line {reader.line_num}: {error}; write one request a line") from error
    if not found:
        raise TraceInvalid("line 2: found no request, allowed: at least one")
    return {name: np.array(times) * MS_PER_S for name, times in found.items()}


def _request(
    entry: list[str], width: int, last: float, line: int, found: dict[str, list[float]]
) -> float:
    """Take one line; its time."""
    if len(entry) != width:
        raise TraceInvalid(
            f"line {line}: found {len(entry)} fields, allowed: {width}, as in the heading"
        )
    text = entry[0].strip()
    try:
        time_s = float(text)
    except ValueError:
        time_s = float("nan")
    where = f"line {line}, time_s"
    if not (isfinite(time_s) and time_s >= 0):
        raise TraceInvalid(
            f"{where}: found {text[:64]!r}, allowed: seconds since the start, 0 or more, as in 12.5"
        )
    if time_s > MOST_S:
        raise TraceInvalid(
            f"{where}: found {text[:64]!r}, allowed: up to {MOST_S:.0f}; subtract the time of the first request"
        )
    if time_s < last:
        raise TraceInvalid(
            f"{where}: found {text[:64]!r} after {last:g}, allowed: no less; sort the file by time_s"
        )
    service = entry[1].strip() if width > 1 else ""
    if width > 1 and not service:
        raise TraceInvalid(f"line {line}, service: found nothing, allowed: the name of a service")
    found[service].append(time_s)
    return time_s


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise TraceInvalid(f"{name}: found {text[:64]!r}, allowed: a number") from None


def _within(kind: str, name: str, value: float, above: float, most: float) -> None:
    if not above < value <= most:
        raise TraceInvalid(f"{kind}: {name}: found {value:g}, allowed: above {above:g} to {most:g}")
