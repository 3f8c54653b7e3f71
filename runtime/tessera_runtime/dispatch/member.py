"""One member of a service: its queue, and the instances that empty it.

The rhythm: an instance is free → take a batch from the queue → send its descriptors → when the answer
arrives, first send the next batch, then hand out the answers, so that the instance never waits for the
dispatcher's own work.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tessera_core.batching.admission import Admission, done_after
from tessera_core.batching.arrivals import Arrivals
from tessera_core.batching.pace import Pace
from tessera_core.batching.policy import EdfQueue, Lengths, Padded
from tessera_core.batching.spacing import Spacing
from tessera_core.perf.histogram import Histogram
from tessera_runtime.dispatch.lane import Lane, descriptors_of
from tessera_runtime.dispatch.lanes import Lanes
from tessera_runtime.dispatch.request import InputNames, Work
from tessera_runtime.dispatch.signatures import Signature
from tessera_runtime.dispatch.statistics import MemberStatistics
from tessera_runtime.errors import InvalidRequest, ModelFailed, ServeError, Unavailable
from tessera_runtime.target import ServiceTime
from tessera_runtime.worker import messages as m

if TYPE_CHECKING:
    from tessera_runtime.dispatch.routes import Routes

QUEUE_BATCHES = 64
QUEUE_ROWS = 8192
"""The queue holds so many full batches, and so many rows at least, for a request of each connection: it bounds memory
only. What cannot be answered in time is refused before."""

RECENT_BATCHES = 16
"""Of which a report says what they took: enough for a median, and little in a report of many members."""

LEAST_WAIT_S = 0.001
"""Timers are no more precise: what would wait for less does not."""

MOST_KILLS = 2
"""A request that two processes did not survive is not given a third."""


class Member:
    """The queue of one member and the instances that serve it.

    Members that run as one differ in what becomes of answers (:meth:`answer`), who is to blame (:meth:`blamed`), whose
    bytes are counted (:meth:`count_gathered`), and what waits when no instance is left (:meth:`strand`).
    """

    def __init__(
        self,
        name: str,
        cap: int,
        max_batch: int,
        service_time: ServiceTime | None,
    ) -> None:
        self.name = name
        self.cap = cap
        self.caps: dict[str, int] = {}
        """Caps of devices that have their own: a slow slice takes smaller batches from the same queue."""
        self.service_time = service_time
        self.statistics = MemberStatistics()
        self.lanes = Lanes()
        self.arrivals = Arrivals()
        self.recent: deque[tuple[Lane, int, float]] = deque(maxlen=RECENT_BATCHES)
        """The last batches: what ran them, rows, seconds."""
        self.queue: EdfQueue[Work] = EdfQueue(limit=max(QUEUE_BATCHES * max_batch, QUEUE_ROWS))
        self.routes: Routes | None = None
        """The way to peers that serve the member too; None while there are none."""
        self.signature: Signature | None = None
        """Known once an instance has loaded the model, or a peer was asked."""
        self.input_names: InputNames = ()
        """Of the service's inputs."""
        self.largest = max_batch
        """Most rows of a batch, whatever the cap: the model's own limit, known once it is loaded."""
        self.gang: Member | None = None
        """Its service's members as one, where they are placed alike: what waits there waits for this one too."""
        self.pace = Pace()
        self.varies = False
        """Whether an input has rows of different lengths; known with the signature, as is the next."""
        self.mixes = False
        """Whether they may share a batch."""
        self._admission = Admission()
        self._spacing = Spacing()
        self._turn: asyncio.TimerHandle | None = None
        """Pumps when it is a batch's turn to start."""
        self._pump_due = False
        self._alone = False
        """Whether the last batch was one request and nothing else waited."""

    @property
    def available(self) -> bool:
        """Whether work would be taken somewhere now."""
        return len(self.lanes) > 0 or (self.routes is not None and self.routes.up)

    @property
    def serves(self) -> bool:
        """Whether work may be given to an instance from now on."""
        return bool(self.lanes.staying)

    @property
    def queued_rows(self) -> int:
        """Rows that wait for it."""
        return self.queue.rows + (self.gang.queue.rows if self.gang is not None else 0)

    @property
    def running_rows(self) -> int:
        """Rows in the batches of the instances that stay."""
        return sum([lane.rows for lane in self.lanes.staying if lane.batch])

    def queue_times(self) -> Histogram:
        """Per request, from arrival in the queue to the start of its batch."""
        own = self.statistics.queue
        return own if self.gang is None else own.plus(self.gang.statistics.queue)

    def latencies(self) -> Histogram:
        """Per request, from arrival in the queue to the end of its batch."""
        own = self.statistics.latency
        return own if self.gang is None else own.plus(self.gang.statistics.latency)

    def cap_of(self, lane: Lane) -> int:
        """Most rows of this instance's batches."""
        return min(self.caps.get(lane.device, self.cap), self.largest)

    def rate(self) -> float:
        """Rows per second of the instances that stay: as profiled, else as measured; 0 when not known."""
        if self.service_time is not None:
            caps = [self.cap_of(lane) for lane in self.lanes.staying]
            return sum(cap / max(self.service_time.seconds(cap), 1e-9) for cap in caps)
        measured_s = self.statistics.inference.total_s
        return len(self.lanes.staying) * self.statistics.rows / measured_s if measured_s else 0.0

    def batch_s(self) -> float:
        """How long a full batch takes here: as profiled, else as measured; 0 when not known."""
        if self.service_time is not None:
            return self.service_time.seconds(min(self.cap, self.largest))
        inference = self.statistics.inference
        return inference.total_s / inference.count if inference.count else 0.0

    def expected_s(self, rows: float) -> float:
        """How long a batch of ``rows`` should take; 0 when nothing is known."""
        return self.service_time.seconds(rows) if self.service_time is not None else 0.0

    def likely_s(self, rows: float) -> float:
        """How long a batch of ``rows`` would take now; 0 when nothing is known."""
        return self.pace.ratio * self.expected_s(rows)

    def burst(self, slo_s: float) -> int:
        """Rows that may be given to it at once and be answered within ``slo_s``: a batch for each instance,
        and what its peers carry in half of that time; one at least.
        """
        peers = self.routes.rate() if self.routes is not None else 0.0
        return max(1, sum(map(self.cap_of, self.lanes.taking)) + int(peers * slo_s / 2))

    def push(self, work: Work) -> bool:
        """Queue work. False when the queue is full. Starts nothing: see :meth:`pump`."""
        request = work.request
        shape = work if work.alone else request.shape
        deadline = request.deadline - work.ahead_s
        work.entry = self.queue.push(work, deadline, request.rows, shape)
        return work.entry is not None

    def offer(self, work: Work) -> bool:
        """Queue work that is expected to be answered in time; False for other work, and when the queue is full.

        An idle instance refuses nothing, so whatever the pace was, it is seen again.
        """
        now, rows, lanes = work.queued, work.request.rows, self.lanes
        self.arrivals.came(now, rows)
        if self.service_time is not None and lanes.taking and not lanes.free:
            fills = self.queue.rows + rows > min(self.cap, self.largest)
            left_s = work.request.deadline - work.ahead_s - now
            if not self._admission.admits(now, left_s, self.done_s(rows, now), fills):
                self.statistics.lost += 1
                return False
        return self.push(work)

    def done_s(self, rows: int, now: float) -> float:
        """Until ``rows`` more would be done, while all instances are busy; 0 without a profile."""
        rate = self.rate()
        if self.service_time is None or rate <= 0.0:
            return 0.0
        cap = min(self.cap, self.largest)
        running_s = min([lane.began + self.likely_s(lane.work) - now for lane in self.lanes.taking])
        busy_s = max(running_s, 0.0)
        return done_after(busy_s, self.queue.rows, rows, cap, rate / self.pace.ratio, self.likely_s)

    def withdraw(self, work: Work) -> bool:
        """Take work back out of the queue; False when it is running or done."""
        withdrawn = work.entry is not None and self.queue.withdraw(work.entry)
        self.statistics.lost += withdrawn
        return withdrawn

    def pump_soon(self) -> None:
        """Pump at the end of this turn of the loop, so that what arrives in the same turn can join; at once while
        requests come one by one, which saves each of them a turn.
        """
        if self._alone and self.lanes.free:
            self.pump()
        elif not self._pump_due:
            self._pump_due = True
            asyncio.get_running_loop().call_soon(self.pump)

    def pump(self) -> None:
        """Give every free instance a batch, while there is work."""
        self._pump_due = False
        while self.lanes.free and self.queue.rows:
            # The instance that finished last has the warmest caches.
            lane = self.lanes.free[-1]
            if lane.worker.domain.suspect is not None:
                other = self._free_beside_no_suspect()
                if other is None:
                    return
                lane = other
            now = time.monotonic()
            cap = self.cap_of(lane)
            if self._waits(now, cap):
                return
            instances = len(self.lanes.taking)
            lengths = (
                Lengths(
                    self.pace.mean, self.largest, instances if self.mixes else 0, self.pace.costs
                )
                if self.varies
                else None
            )
            taken = self.queue.take(now, cap, self.likely_s, lengths)
            self._admission.took(now, self.queue.rows, cap)
            if not taken.batch:
                self.pace.doubt()
            if taken.batch:
                self._alone = len(taken.batch) == 1 and not self.queue.rows
                self.lanes.free.remove(lane)
                if taken.batch[0].kills:
                    lane.worker.domain.suspect = lane
                observe = self.statistics.queue.observe
                for work in taken.batch:
                    work.request.retain()
                    observe(now - work.queued)
                names = taken.batch[0].request.names or self.input_names
                descriptors = descriptors_of(taken.batch, names, taken.shape)
                self.count_gathered(sum([sum(each.nbytes) for each in descriptors]))
                lane.rows, lane.work, lane.shape = taken.rows, taken.work, taken.shape
                lane.send(taken.batch, descriptors, now, self.expected_s(taken.work))
                self._spacing.started(now, self.likely_s(0.0), instances)
                if isinstance(taken.shape, Padded):
                    for work in taken.batch:
                        shape = work.request.shape
                        if isinstance(shape, Padded):
                            self.pace.came(shape, work.request.rows)
            self.statistics.lost += len(taken.dropped)
            for work in taken.dropped:
                work.request.service.late(work)

    def _waits(self, now: float, cap: int) -> bool:
        """Whether the next batch starts later, though an instance is free: to keep clear of the last one
        (:mod:`tessera_core.batching.spacing`), where nobody would be late for it.
        """
        due = self._spacing.due(self.queue.rows >= cap)
        if due - now < LEAST_WAIT_S or self.queue.deadline() < due + self.likely_s(cap):
            return False
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_later(due - now, self._turn_came)
        return True

    def _turn_came(self) -> None:
        self._turn = None
        self.pump()

    def count_gathered(self, nbytes: int) -> None:
        """Workers copy so many bytes of inputs to form a batch."""
        self.statistics.gathered_bytes += nbytes

    def _free_beside_no_suspect(self) -> Lane | None:
        """Of another process, or MPS server, than those that run a request which may end them: that would blame two."""
        for lane in reversed(self.lanes.free):
            if lane.worker.domain.suspect is None:
                return lane
        for lane in self.lanes.free:
            lane.worker.domain.waiting.add(self)
        return None

    def attach(self, lane: Lane) -> None:
        """A warm instance joins."""
        self.lanes.attach(lane)
        self.pump()

    def set_active(self, active: dict[str, int]) -> None:
        """By device, how many instances take batches from now on; one that stops finishes the batch that it has."""
        self.lanes.limit(active)
        self.pump()

    def leave(self, lane: Lane) -> None:
        """An instance ends soon: it takes batches until it is detached, and whoever stood by for it does at once."""
        self.lanes.leave(lane)
        self.pump()

    def detach(self, lane: Lane) -> None:
        """No new batch for this instance; the one it runs is finished first."""
        self.lanes.detach(lane)
        if self.lanes:
            self.pump()
        else:
            self.strand()

    def strand(self) -> None:
        """Nobody here takes what waits: who asked for it decides what becomes of it."""
        for work in self.queue.drain():
            work.request.service.stranded(work)

    def lane_lost(self, lane: Lane) -> None:
        """The instance's process is gone: what it ran is decided anew, one by one."""
        self.detach(lane)
        if not lane.worker.orphaned:
            for model in range(len(lane.probations)):
                lane.failed(model, "its process ended while it ran one")
        for work in lane.settle():
            work.request.release()
            work.kills += 1
            if work.kills < MOST_KILLS:
                self._retry_alone(work, Unavailable(f"member {self.name}: its instance ended"))
            else:
                refusal = (
                    f"member {self.name}: {work.kills} instances ended while running this request"
                )
                work.request.service.failed(work, ModelFailed(refusal))
        self.pump()

    def ran(self, lane: Lane, ran: m.Ran, outputs: Sequence[np.ndarray]) -> None:
        """A batch came back. Called by the lane, with the answers already out of its region.

        ``outputs``: as the model announced them.
        """
        if lane.probations:
            lane.saw(outputs)
        self.answer(lane, self._over(lane), ran, outputs)

    def answer(
        self, lane: Lane, batch: tuple[Work, ...], ran: m.Ran, outputs: Sequence[np.ndarray]
    ) -> None:
        """Hand out the answers of ``batch``, which ``lane`` has run; its next one is under way."""
        self.statistics.batch(rows_of(batch), ran.gather_ns, ran.infer_ns[0], ran.output_ns)
        first = 0
        for work in batch:
            last = first + work.request.rows
            answer = {
                name: array[first:last]
                for name, array in zip(lane.output_names[0], outputs, strict=True)
            }
            work.request.release()
            work.request.service.answered(work, answer)
            first = last

    def batch_failed(self, lane: Lane, failed: m.Failed) -> None:
        """The model raised, or refused what it was given: the instance is fine, the batch is not."""
        batch = self._next(lane)
        blamed = self.blamed(failed.model)
        error: ServeError
        if failed.refused:
            error = InvalidRequest(failed.reason)
        else:
            blamed.statistics.failed_batches += 1
            if lane.probations:
                lane.failed(failed.model, failed.reason)
            error = ModelFailed(f"member {blamed.name}: {failed.reason}")
        for work in batch:
            work.request.release()
            if len(batch) == 1:
                work.request.service.failed(work, error)
            else:
                # One request may be to blame: its batch mates must not fail with it.
                self._retry_alone(work, error)
        self.pump()

    def blamed(self, model: int) -> Member:
        """Whose model it is that raised."""
        return self

    def _retry_alone(self, work: Work, error: ServeError) -> None:
        work.alone = True
        in_time = time.monotonic() < work.request.deadline
        if work.request.answered or not in_time:
            work.request.service.failed(work, error)
        elif not self.lanes:
            work.request.service.stranded(work)
        elif not self.push(work):
            work.request.service.failed(work, error)

    def _over(self, lane: Lane) -> tuple[Work, ...]:
        """The batch that came back, with the next one sent. What it took is what later ones are expected to."""
        now = time.monotonic()
        took_s = now - lane.began
        full = 2.0 * lane.work >= self.cap_of(lane)
        self.pace.saw(took_s, self.expected_s(lane.work), lane.shape, full)
        self.recent.append((lane, lane.rows, took_s))
        batch = self._next(lane)
        observe = self.statistics.latency.observe
        for work in batch:
            observe(now - work.queued)
        return batch

    def _next(self, lane: Lane) -> tuple[Work, ...]:
        batch = lane.settle()
        self.lanes.finished(lane)
        self.pump()
        return batch


def rows_of(batch: Sequence[Work]) -> int:
    return sum([work.request.rows for work in batch])
