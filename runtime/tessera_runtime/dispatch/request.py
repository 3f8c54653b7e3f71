"""A request on its way through the members."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from tessera_core.batching.policy import Entry
from tessera_runtime.dataplane import Done, InferCall, InferReply
from tessera_runtime.errors import Overloaded, ServeError, Unavailable

if TYPE_CHECKING:
    from tessera_runtime.dispatch.member import Member
    from tessera_runtime.dispatch.stage import Staged

log = logging.getLogger(__name__)

Outputs = Mapping[str, np.ndarray]
"""One member's answer for one request: arrays by output name, batch dimension included."""


InputNames = tuple[tuple[int, str], ...]
"""For each input of a member's model: its position among the request's inputs, and the model's own name."""


class Shape(NamedTuple):
    """What validation found out about a call, and about those that are alike."""

    order: tuple[int, ...] | None
    """Of the metadata's inputs among the call's; None where they are the same."""
    rows: int
    row_shapes: tuple[tuple[int, ...], ...]
    """Of each input, padded up to its bucket."""
    key: Hashable
    """Requests of equal key may share a batch; None where the shapes are fixed, ``Padded`` where they were padded."""


class Owner(Protocol):
    """Who answers a request, and is told what becomes of its work: a service, or a member that a peer calls."""

    @property
    def name(self) -> str:
        """The served name."""
        ...

    def answered(self, work: Work, outputs: Outputs) -> None: ...

    def failed(self, work: Work, error: ServeError) -> None: ...

    def late(self, work: Work) -> None:
        """Dropped from the queue: it could not have finished in time."""
        ...

    def stranded(self, work: Work) -> None:
        """Taken out of the queue, for the instances that would have run it are gone."""
        ...

    def expire(self, request: Request, now: float) -> None:
        """The deadline of ``request`` has come."""
        ...

    def abandon(self, request: Request) -> None:
        """The client went away."""
        ...


class Request:
    """One submitted call. Lives until its client is answered *and* no batch reads its inputs any more."""

    __slots__ = (
        "_readers",
        "answered",
        "answers",
        "arrived",
        "call",
        "deadline",
        "done",
        "explicit",
        "failure",
        "inputs",
        "names",
        "row_shapes",
        "rows",
        "service",
        "shape",
        "slots",
        "submitting",
        "works",
    )

    def __init__(
        self,
        call: InferCall,
        done: Done,
        service: Owner,
        shape: Shape,
        arrived: float,
        deadline: float,
        explicit: bool,
    ) -> None:
        self.call = call
        self.done = done
        self.service = service
        self.inputs = (
            call.inputs
            if shape.order is None
            else tuple([call.inputs[index] for index in shape.order])
        )
        """In the order of the metadata."""
        self.names: InputNames | None = None
        """Where a member call's inputs are in another order than the service's: which one is which."""
        self.slots = call.slots
        """What is released in the end."""
        self.rows = shape.rows
        self.row_shapes = shape.row_shapes
        self.shape = shape.key
        self.arrived = arrived
        self.deadline = deadline
        self.explicit = explicit
        """Whether the client gave the deadline: then it is answered at that moment at the latest. The
        deadline that follows from the SLO only steers the queue: a late answer is better than none."""
        self.answered = False
        self.answers: dict[int, Outputs | Exception] = {}
        """By member index: what came back."""
        self.works: list[Work] = []
        self.submitting = True
        """While true, a failure is raised by ``submit`` and not passed to ``done``."""
        self.failure: ServeError | None = None
        self._readers = 1

    def retain(self) -> None:
        """A batch is about to read the inputs."""
        self._readers += 1

    def release(self) -> None:
        """The client was answered, or a batch that read the inputs ended."""
        self._readers -= 1
        if self._readers == 0:
            for slot in self.slots:
                slot.release()

    def go_on_with(self, staged: Staged) -> None:
        """Members read what preprocessing made of the client's inputs from now on."""
        self.inputs = staged.inputs
        self.row_shapes = staged.row_shapes
        self.shape = staged.key
        self.slots = (*self.slots, *staged.slots)

    def tell(self, outcome: InferReply | ServeError) -> None:
        """Answer. A front end that fails on one answer must not take the batch's other answers with it."""
        try:
            self.done(outcome)
        except Exception:
            log.exception("a front end failed on the answer to a request of %s", self.service.name)

    def cancel(self) -> None:
        """Ticket: the client went away."""
        if not self.answered:
            self.service.abandon(self)


class Work:
    """What one member has to do for one request."""

    __slots__ = (
        "ahead_s",
        "alone",
        "entry",
        "index",
        "kills",
        "member",
        "queued",
        "request",
        "trip",
    )

    def __init__(self, request: Request, member: Member, index: int) -> None:
        self.request = request
        self.member = member
        self.index = index
        """Position of the member in its service."""
        self.ahead_s = 0.0
        """What is left to do after it, at least: it has to be done that much earlier."""
        self.entry: Entry[Work] | None = None
        self.alone = False
        """Whether it must not share a batch: another request failed or died together with it."""
        self.kills = 0
        """Worker processes that ended while running this."""
        self.queued = time.monotonic()
        self.trip: Trip | None = None
        """Set once it was sent to a peer."""

    def why_refused(self) -> ServeError:
        """What is said when it was not queued."""
        queue = self.member.queue
        if queue.rows + self.request.rows > queue.limit:
            return Overloaded(f"member {self.member.name}: the queue is full ({queue.limit} rows)")
        return Overloaded(
            f"member {self.member.name}: {queue.rows} rows are waiting, the answer would be late"
        )

    def why_late(self) -> ServeError:
        """What is said when it was dropped from the queue."""
        member = self.member
        if self.kills:
            return Unavailable(
                f"member {member.name}: its instance ended and no time was left to try another",
                self.kills,
            )
        if not member.lanes:
            return Unavailable(f"member {member.name}: no instance is ready")
        return Overloaded(
            f"member {member.name}: {member.queue.rows} rows are waiting, the answer would be late"
        )


@dataclass
class Trip:
    """Work at peers."""

    tried: list[object] = field(default_factory=list)
    """The peers that have had it, each in the life in which it had it."""
    task: asyncio.Task[None] | None = None
    """The call under way."""

    def cancel(self) -> None:
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
