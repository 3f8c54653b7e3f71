"""Drive a load from this process: :func:`run_load` is the whole of what the load's process does."""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from array import array
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import uvloop

from tessera_cli.loadgen.plan import (
    PROGRESS_LATENCIES,
    ClosedLoop,
    Finished,
    LoadPlan,
    Message,
    OpenLoop,
    Progress,
    Started,
)
from tessera_cli.loadgen.pool import Pool
from tessera_cli.loadgen.samples import LATE_S
from tessera_cli.loadgen.status import UNANSWERED, is_good
from tessera_core.simulate.arrivals import MS_PER_S, poisson

Emit = Callable[[Message], None]


def run_load(plan: LoadPlan, emit: Emit) -> None:
    """Send the load of ``plan`` and report to ``emit``; the last message is Finished. Raises LoadFailed."""
    if isinstance(plan.shape, OpenLoop):
        # epoll and uvloop wait in whole milliseconds; select(2) waits in microseconds, and there are few sockets.
        loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    else:
        loop = uvloop.new_event_loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_Drive(plan, emit).run())


def arrivals_s(shape: OpenLoop) -> npt.NDArray[np.float64]:
    """When each request is meant to be sent, in seconds from the start."""
    generator = np.random.default_rng(shape.seed)
    times, start = [], 0.0
    for phase in shape.phases:
        times.append(start + poisson(phase.rate_per_s, phase.seconds, generator) / MS_PER_S)
        start += phase.seconds
    return np.concatenate(times)


class _Drive:
    def __init__(self, plan: LoadPlan, emit: Emit) -> None:
        self._plan = plan
        self._emit = emit
        self._pools = [Pool(target, self._sending, self._answered) for target in plan.targets]
        self._clock = time.perf_counter
        self._start = 0.0
        self._end = math.inf
        """When the closed loop stops sending."""
        self._intended = array("d")
        self._sent = array("d")
        self._done = array("d")
        self._status = array("i")
        self._answers: list[bytes] = []
        self._outstanding = 0
        self._all_answered = asyncio.Event()
        self._closed_loop = isinstance(plan.shape, ClosedLoop)
        self._window: list[float] = []
        """Latencies in ms of good answers since the last Progress."""
        self._sent_before = self._answered_before = self._answers_seen = 0
        self._failed = self._late = 0

    async def run(self) -> None:
        try:
            for pool in self._pools:
                await pool.open()
            if isinstance(self._plan.shape, OpenLoop):
                await self._open_loop(self._plan.shape)
            else:
                await self._run_closed_loop(self._plan.shape)
            try:
                async with asyncio.timeout(self._plan.answer_timeout_s):
                    if self._outstanding:
                        await self._all_answered.wait()
            except TimeoutError:
                pass  # what is missing has the status UNANSWERED
        finally:
            for pool in self._pools:
                pool.close()
        self._emit(self._finished())

    async def _open_loop(self, shape: OpenLoop) -> None:
        times = arrivals_s(shape)
        self._begin()
        progress = asyncio.get_running_loop().create_task(self._report_progress())
        for at in times.tolist():
            wait = self._start + at - self._clock()
            if wait > 0:
                await asyncio.sleep(wait)
            self._submit(self._start + at)
        await asyncio.sleep(max(0.0, self._start + shape.seconds - self._clock()))
        progress.cancel()

    async def _run_closed_loop(self, shape: ClosedLoop) -> None:
        for _ in range(shape.concurrency):
            self._submit(self._clock())
        await asyncio.sleep(shape.warmup_s)
        self._begin()
        progress = asyncio.get_running_loop().create_task(self._report_progress())
        self._end = self._start + shape.seconds
        await asyncio.sleep(shape.seconds)
        progress.cancel()

    def _begin(self) -> None:
        self._start = self._clock()
        self._window.clear()
        self._sent_before = len(self._intended)
        self._answered_before = self._answers_seen
        self._failed = self._late = 0
        self._emit(Started(time.time()))

    def _submit(self, intended: float) -> None:
        number = len(self._intended)
        self._intended.append(intended)
        self._sent.append(math.nan)
        self._done.append(math.nan)
        self._status.append(UNANSWERED)
        if self._plan.keep_answers:
            self._answers.append(b"")
        self._outstanding += 1
        self._all_answered.clear()
        turn, which = divmod(number, len(self._pools))
        requests = self._plan.targets[which].requests
        self._pools[which].submit(number, requests[turn % len(requests)])

    def _sending(self, number: int) -> None:
        now = self._clock()
        self._sent[number] = now
        self._late += now - self._intended[number] > LATE_S

    def _answered(self, number: int, status: int, body: bytes) -> None:
        now = self._clock()
        self._done[number] = now
        self._status[number] = status
        self._answers_seen += 1
        if is_good(status):
            self._window.append((now - self._intended[number]) * 1e3)
        else:
            self._failed += 1
        if self._plan.keep_answers:
            self._answers[number] = body
        self._outstanding -= 1
        if self._closed_loop and now < self._end:
            self._submit(now)
        elif self._outstanding == 0:
            self._all_answered.set()

    async def _report_progress(self) -> None:
        due = self._start
        while True:
            due += self._plan.progress_s
            await asyncio.sleep(due - self._clock())
            window, self._window = self._window, []
            step = -(-len(window) // PROGRESS_LATENCIES) or 1
            self._emit(
                Progress(
                    at_s=self._clock() - self._start,
                    sent=len(self._intended) - self._sent_before,
                    answered=self._answers_seen - self._answered_before,
                    failed=self._failed,
                    late=self._late,
                    in_flight=self._outstanding,
                    latencies_ms=tuple(window[::step]),
                )
            )
            self._sent_before, self._answered_before = len(self._intended), self._answers_seen
            self._failed = self._late = 0

    def _finished(self) -> Finished:
        def since_start(times: array[float]) -> bytes:
            return (np.frombuffer(times, "<f8") - self._start).tobytes()

        return Finished(
            intended=since_start(self._intended),
            sent=since_start(self._sent),
            done=since_start(self._done),
            status=np.frombuffer(self._status, np.int32).astype("<i4").tobytes(),
            answers=tuple(self._answers),
        )
