"""How soon requests are in time again when the rate or the SLO changes at once.

Back is the first second after the change that has as many requests in time as NEEDED, and all seconds after it together
too; or as many as with the setting that the sweep found best for what holds then, where that is less. That one is there
from the start and knows nothing of the change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from bench.control_real.comparing import Sweep, best_of
from bench.control_real.driving import Pilot
from bench.control_real.policies import STATIC, TESSERA, pilot, static
from bench.control_real.served import Measured, Server
from bench.harness import Row
from numpy.typing import NDArray

from tessera_cli.loadgen import Phase
from tessera_core.control.setpoint import Goal

Shares = NDArray[np.float64]

RATE, SLO = "rate x 4", "SLO halved"
NEEDED = 0.99
NOISE = 0.02
"""Requests that may be late beyond that: a stall of the machine makes all of some milliseconds late."""
STEADY, LESS = 0.8, 0.5
"""Of the capacity: the rate after its step, and while the SLO is halved. Both are loads of the sweep."""
NEVER_S = float("nan")


@dataclass(frozen=True, slots=True)
class Span:
    before_s: float = 3.0
    after_s: float = 6.0

    @property
    def end_s(self) -> float:
        return self.before_s + self.after_s


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    phases: tuple[Phase, ...]
    sweep: Sweep
    """Of what holds after the change."""
    figure: str
    """By which its settings are judged."""
    slo_ms: float
    """After the change."""


def steps(
    slo_ms: float, sweeps: dict[float, Sweep], unit_per_s: float, span: Span
) -> Iterator[Step]:
    """``sweeps``: by load, of STEADY and LESS."""
    steady = STEADY * unit_per_s
    rising = (Phase(steady / 4, span.before_s), Phase(steady, span.after_s))
    yield Step(RATE, rising, sweeps[STEADY], "share", slo_ms)
    even = (Phase(LESS * unit_per_s, span.end_s),)
    yield Step(SLO, even, sweeps[LESS], "share_in_half", slo_ms / 2)


def step_rows(
    server: Server, measured: Measured, step: Step, span: Span, seed: int
) -> Iterator[Row]:
    """One row of the best setting and one of the policy, on the same arrivals."""
    place, slo_ms = server.place, server.task.slo_ms
    best = best_of(step.sweep, measured, step.figure)
    pilots = {
        STATIC: static(best, place, slo_ms),
        TESSERA: pilot(TESSERA, place, slo_ms, measured),
    }
    needed = NEEDED
    for name, each in pilots.items():
        seconds = _seconds(each, server, step, span, seed)
        if name == STATIC:
            needed = min(NEEDED, float(seconds.mean())) - NOISE
        labels = {"case": step.name, "network": server.task.name, "policy": name}
        yield Row(labels, ({"back_s": back_s(seconds, needed), "share": float(seconds.mean())},))


def _seconds(each: Pilot, server: Server, step: Step, span: Span, seed: int) -> Shares:
    """The share in time of each second after the change."""
    goals = [(span.before_s, Goal(step.slo_ms, each.goal.most))]
    answers = each.fly(server, step.phases, seed, goals)
    begins = span.before_s + np.arange(int(span.after_s))
    return np.array([answers.figures(begin, begin + 1.0, step.slo_ms)["share"] for begin in begins])


def back_s(shares: Shares, needed: float) -> float:
    """The first of the seconds from which on ``needed`` is reached, in it and on average; NEVER_S where none is."""
    for second, share in enumerate(shares):
        if min(share, float(shares[second:].mean())) >= needed:
            return float(second)
    return NEVER_S
