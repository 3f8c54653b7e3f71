"""A request on its way through the members."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tessera_core.batching.policy import Entry
from tessera_runtime.dataplane import Done, InferCall, InputTensor
from tessera_runtime.errors import ServeError

if TYPE_CHECKING:
    from tessera_runtime.dispatch.member import Member
    from tessera_runtime.dispatch.service import Service

Outputs = Mapping[str, np.ndarray]
"""One member's answer for one request: arrays by output name, batch dimension included."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What validation found out about a call."""

    inputs: tuple[InputTensor, ...]
    """In the order of the service's metadata."""
    rows: int
    row_shapes: tuple[tuple[int, ...], ...]
    """Of each input, padded up to its bucket."""
    key: tuple[tuple[int, ...], ...] | None
    """Requests of equal key may share a batch; None where the shapes are fixed."""


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
        "row_shapes",
        "rows",
        "service",
        "shape",
        "submitting",
        "works",
    )

    def __init__(
        self,
        call: InferCall,
        done: Done,
        service: Service,
        shape: Shape,
        arrived: float,
        deadline: float,
        explicit: bool,
    ) -> None:
        self.call = call
        self.done = done
        self.service = service
        self.inputs = shape.inputs
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
            for slot in self.call.slots:
                slot.release()

    def cancel(self) -> None:
        """Ticket: the client went away."""
        if not self.answered:
            self.service.abandon(self)


class Work:
    """What one member has to do for one request."""

    __slots__ = ("alone", "entry", "index", "kills", "member", "queued", "request")

    def __init__(self, request: Request, member: Member, index: int) -> None:
        self.request = request
        self.member = member
        self.index = index
        """Position of the member in its service."""
        self.entry: Entry[Work] | None = None
        self.alone = False
        """Whether it must not share a batch: another request failed or died together with it."""
        self.kills = 0
        """Worker processes that ended while running this."""
        self.queued = time.monotonic()
