"""A setting that is given and kept: what other policies are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from tessera_core.control.setpoint import Goal, Setpoint, Window


@dataclass(frozen=True, slots=True)
class StaticState:
    setpoint: Setpoint
    wait_s: float = inf


class Static:
    def __init__(self, setpoint: Setpoint) -> None:
        self._setpoint = setpoint

    def start(self, goal: Goal) -> StaticState:
        return StaticState(self._setpoint)

    def step(self, state: StaticState, window: Window, goal: Goal) -> StaticState:
        return state
