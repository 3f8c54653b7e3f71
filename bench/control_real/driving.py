"""Load on a server while a policy sets it, or settings take turns; and what became of the requests.

The load says how late it is: its progress is the only clock here, and whoever waits for it tells and asks the server in
between. All policies decide from the same report of the server's counters. It names no instance, so what a policy asks of
the first one it gets of all, whose mean is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from bench.control_real.served import Server
from bench.harness import Figures
from numpy.typing import NDArray

from tessera_cli.loadgen import LoadProcess, Phase, Progress, Samples
from tessera_core.control.setpoint import Batch, Goal, Policy, Setpoint, Window
from tessera_core.control.steer import window
from tessera_core.perf import LatencyProfile

TICK_S = 0.25
"""Policies decide on the first of these after they have waited."""
LATE_S = 0.005

DECISIONS = 60
"""More than any search takes."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Of all generators together. Arrays of shape (requests,); seconds from the start of each generator's load."""

    intended: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    """NaN: none came."""
    good: NDArray[np.bool_]

    @classmethod
    def of(cls, samples: Sequence[Samples]) -> Answers:
        return cls(
            *(
                np.concatenate([getattr(each, name) for each in samples])
                for name in ("intended", "sent", "done", "good")
            )
        )

    def within(self, slo_ms: float) -> NDArray[np.bool_]:
        """Which were answered well and in time."""
        return self.good & ((self.done - self.intended) * 1e3 <= slo_ms)

    def figures(self, from_s: float, to_s: float, slo_ms: float) -> Figures:
        """Of the requests that were meant to be sent in this time."""
        inside = (self.intended >= from_s) & (self.intended < to_s)
        came, seconds = int(inside.sum()), to_s - from_s
        good = int((self.within(slo_ms) & inside).sum())
        late = (self.sent - self.intended)[inside] > LATE_S
        latency_ms = (self.done - self.intended)[inside & self.good] * 1e3
        return {
            "offered_per_s": came / seconds,
            "good_per_s": good / seconds,
            "share": good / came if came else np.nan,
            "p99_ms": float(np.percentile(latency_ms, 99)) if latency_ms.size else np.nan,
            "sent_late": float(late.mean()) if came else np.nan,
        }


def under_load(
    server: Server,
    phases: Sequence[Phase],
    seed: int,
    tick_s: float,
    on_tick: Callable[[float], None],
) -> Answers:
    """``on_tick`` is called with the seconds since the load's start: with 0 and then after every ``tick_s``.
    Raises LoadFailed, and ControlError as the server does.
    """
    with ExitStack() as stack:
        loads = []
        for plan in server.plans(phases, seed, tick_s):
            load = stack.enter_context(LoadProcess(plan))
            loads.append((load, load.messages()))
        for _, messages in loads:  # all are sent their plans before any is waited for
            next(messages)
        on_tick(0.0)
        (_, clock), *others = loads
        for message in clock:
            if isinstance(message, Progress):
                on_tick(message.at_s)
        for _, messages in others:
            for _ in messages:
                pass  # what they measured comes last
        return Answers.of([load.samples() for load, _ in loads])


class Pilot:
    """A policy with what it remembers, which it keeps from one load to the next."""

    def __init__(self, policy: Policy[Any], goal: Goal) -> None:
        self._policy = policy
        self.goal = goal
        self.state = policy.start(goal)

    @property
    def setpoint(self) -> Setpoint:
        found: Setpoint = self.state.setpoint
        return found

    def search(self, profile: LatencyProfile) -> None:
        """Let it come to rest on full batches that take what was measured: a search that would be served to requests."""
        for _ in range(DECISIONS):
            now, seconds = self.setpoint, self.state.wait_s
            took_ms = profile.service_ms(now.cap, now.instances)
            runs = max(1, int(1e3 * seconds / took_ms))
            batches = ((Batch(now.cap, took_ms),) * runs,) * now.instances
            self.decide(Window(seconds, runs * now.cap * now.instances, batches))

    def decide(self, seen: Window) -> bool:
        """Whether another setting came of it."""
        before = self.setpoint
        self.state = self._policy.step(self.state, seen, self.goal)
        return self.setpoint != before

    def fly(
        self,
        server: Server,
        phases: Sequence[Phase],
        seed: int,
        goals: Sequence[tuple[float, Goal]] = (),
    ) -> Answers:
        """``goals``: from when on which holds, seconds from the start. The server knows at once, the policy when it decides."""
        waiting = list(goals)
        server.set(self.setpoint, self.goal.slo_ms)
        decided_s, before = 0.0, server.told()
        devices = frozenset((server.place.device.id,))

        def on_tick(at_s: float) -> None:
            nonlocal decided_s, before
            if not at_s:  # what came while the load was started is nothing to decide by
                before = server.told()
            if waiting and at_s >= waiting[0][0]:
                _, self.goal = waiting.pop(0)
                server.set(self.setpoint, self.goal.slo_ms)
            if at_s - decided_s < self.state.wait_s - TICK_S / 2:
                return
            now = server.told()
            seen = window(before, now, devices)
            if seen is not None and self.decide(seen):
                server.set(self.setpoint)
            decided_s, before = at_s, now

        return under_load(server, phases, seed, TICK_S, on_tick)
