"""The load of ``tessera simulate``: which requests come when.

LoadInvalid     a load that cannot be simulated; the message names the option, what was found and what to do
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tessera_core.simulate.arrivals import MS_PER_S, Times
from tessera_core.simulate.scenarios import Scenario
from tessera_core.simulate.traces import (
    Gamma,
    Trace,
    TraceInvalid,
    parse_trace,
    recorded_traces,
    trace_text,
)

REQUESTS = 200_000
MOST_REQUESTS = 5_000_000
"""Of one service, which are in memory at a time: about 1 GB."""


class LoadInvalid(Exception):
    """A load that cannot be simulated."""


@dataclass(frozen=True, slots=True)
class Load:
    """What every service gets."""

    rate_factor: float
    burstiness: float | None
    """Of independent gaps, None: as the service or the trace says."""
    trace: Trace | None
    """None: gaps of the service's own burstiness."""
    recorded: Mapping[str, Times] | None
    """By service; of a trace without services, under "" ."""
    duration_s: float | None
    """None: until ``requests`` have come, on average."""
    requests: int
    seed: int
    as_served: bool
    """Whether late requests are refused and dropped, as the dispatcher does."""

    @property
    def text(self) -> str:
        """The trace in words."""
        if self.recorded is not None:
            return "recorded"
        return trace_text(self.trace) if self.trace is not None else "own burstiness"

    def asked(self, found: Sequence[Scenario], known: Collection[str]) -> list[Scenario]:
        """Those of ``found`` that get requests. ``known``: names of all services of the state.

        Raises LoadInvalid where recorded requests are of none of them, or nobody's.
        """
        if self.recorded is None:
            return list(found)
        names = ", ".join(sorted(known))
        if "" in self.recorded:
            if len(found) > 1:
                raise LoadInvalid(
                    f"--replay: found no services, allowed: a column service with {names}; or choose one with --service"
                )
            return list(found)
        unknown = sorted(self.recorded.keys() - set(known))
        if unknown:
            raise LoadInvalid(
                f"--replay: found the services {', '.join(unknown)[:200]}, allowed: {names}; rename or remove them"
            )
        return [each for each in found if each.service in self.recorded]

    def check_alone(self) -> None:
        """Raises LoadInvalid where recorded requests are of services, but there is one member."""
        if self.recorded is not None and "" not in self.recorded:
            raise LoadInvalid(
                "--replay: found a column service, allowed: time_s alone for one member"
            )

    def recorded_rate(self) -> float:
        """Requests per second of a recorded trace without services."""
        assert self.recorded is not None, "the rate is given otherwise"
        times = self.recorded[""]
        return self.rate_factor * len(times) * MS_PER_S / max(float(times[-1]), 1.0)

    def arrivals_ms(self, scenario: Scenario, rng: np.random.Generator) -> Times:
        """When the requests of ``scenario`` come, ascending. Raises LoadInvalid."""
        if self.recorded is not None:
            return self._replayed(scenario.service)
        duration_s = self.duration_s or self.requests / scenario.rate_per_s
        if duration_s * scenario.rate_per_s > MOST_REQUESTS:
            raise LoadInvalid(
                f"--duration: found {duration_s:g} s at {scenario.rate_per_s:g} requests/s for {scenario.service}, "
                f"allowed: {MOST_REQUESTS} requests; shorten it"
            )
        trace = self.trace or Gamma(scenario.burstiness)
        return trace.times_ms(scenario.rate_per_s, duration_s, rng)

    def _replayed(self, service: str) -> Times:
        assert self.recorded is not None, "asked before"
        times = self.recorded.get("", self.recorded.get(service, np.array([])))
        times = times / self.rate_factor
        if self.duration_s is not None:
            times = times[: np.searchsorted(times, self.duration_s * MS_PER_S)]
        return times


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("load")
    load.add_argument(
        "--rate-factor",
        type=number(0, 1e6),
        default=1.0,
        metavar="X",
        help="times the expected rates; a recorded trace is played so much faster",
    )
    kind = load.add_mutually_exclusive_group()
    kind.add_argument(
        "--burstiness",
        type=number(0, 1e4),
        metavar="CV2",
        help="squared variation of the gaps between requests, 1 is Poisson; default: each service's own",
    )
    kind.add_argument(
        "--trace",
        type=_trace,
        metavar="KIND",
        help="poisson, gamma:cv2=4, on-off:peak=4,on-s=1,off-s=9 or diurnal:swing=0.8,period-s=3600",
    )
    kind.add_argument(
        "--replay",
        metavar="FILE.csv",
        help="a line per request: heading time_s or time_s,service; seconds from the start, ascending",
    )
    length = load.add_mutually_exclusive_group()
    length.add_argument("--duration", type=number(0, 3.2e7), metavar="S", help="simulated seconds")
    length.add_argument(
        "--requests",
        type=whole(1000, MOST_REQUESTS),
        default=REQUESTS,
        metavar="N",
        help=f"simulated per service, on average; default: {REQUESTS}",
    )
    load.add_argument(
        "--seed", type=whole(0, 2**63 - 1), default=0, metavar="N", help="same seed, same result"
    )
    load.add_argument(
        "--keep-late",
        action="store_true",
        help="answer everything; default: what cannot be in time is refused and dropped, as the server does",
    )


def load_of(arguments: argparse.Namespace) -> Load:
    """Raises LoadInvalid for a file that cannot be replayed."""
    trace, burstiness = arguments.trace, arguments.burstiness
    if isinstance(trace, Gamma):
        burstiness = trace.cv2
    return Load(
        rate_factor=arguments.rate_factor,
        burstiness=burstiness,
        trace=trace,
        recorded=_recorded(arguments.replay) if arguments.replay else None,
        duration_s=arguments.duration,
        requests=arguments.requests,
        seed=arguments.seed,
        as_served=not arguments.keep_late,
    )


def _recorded(path: str) -> dict[str, Times]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            found = recorded_traces(file)
    except OSError as error:
        raise LoadInvalid(f"--replay: {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise LoadInvalid(f"--replay: {path}: not UTF-8 text; export it as CSV") from error
    except TraceInvalid as error:
        raise LoadInvalid(f"--replay: {path}: {error}") from error
    for name, times in found.items():
        if len(times) > MOST_REQUESTS:
            what = f"{len(times)} requests" + (f" of {name}" if name else "")
            raise LoadInvalid(
                f"--replay: {path}: found {what}, allowed: {MOST_REQUESTS}; cut it into several files"
            )
    return found


def _trace(text: str) -> Trace:
    try:
        return parse_trace(text)
    except TraceInvalid as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def number(above: float, most: float, zero: bool = False) -> Callable[[str], float]:
    allowed = f"a number {'from' if zero else 'above'} {above:g} to {most:g}"

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not (above < number <= most or (zero and number == above)):
            raise argparse.ArgumentTypeError(f"found {text[:64]!r}, allowed: {allowed}")
        return number

    return read


def whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            allowed = f"a whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(f"found {text[:64]!r}, allowed: {allowed}")
        return number

    return read
