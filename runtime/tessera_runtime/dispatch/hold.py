"""Requests for a service that nothing can answer yet wait here for its first instance or peer.

That is how a service at zero is started by its first request: the agent reports how many wait. Once the
service is ready they are submitted in the order of their arrival, as many at a time as it can answer within
its SLO; all at once, most would be dropped as late. While any wait, later ones wait behind them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tessera_runtime.dataplane import Done, InferCall, InferReply, Ticket
from tessera_runtime.errors import (
    DeadlineExceeded,
    NotFound,
    Overloaded,
    ServeError,
    Unavailable,
    status_of,
)

if TYPE_CHECKING:
    from tessera_runtime.dispatch.service import Service

Submit = Callable[[InferCall, Done, float], Ticket]
"""Submit a held call that arrived at the given time. Raises a ServeError."""


class Held:
    """A request that waits, and the ticket of its client also after it was submitted."""

    def __init__(self, hold: Hold, call: InferCall, done: Done) -> None:
        self.call = call
        self.since = time.monotonic()
        self.timer: asyncio.TimerHandle | None = None
        self.rows = _rows(call)
        self._hold = hold
        self._done = done
        self._ticket: Ticket | None = None

    def cancel(self) -> None:
        """Ticket: the client went away."""
        if self._ticket is not None:
            self._ticket.cancel()
            self._hold.ended(self)
        else:
            self._hold.forget(self)

    def submit(self, submit: Submit) -> None:
        """Stop waiting. The outcome is told in any case."""
        try:
            self._ticket = submit(self.call, self._answered, self.since)
        except ServeError as error:
            self._answered(error)

    def refuse(self, error: ServeError) -> None:
        for slot in self.call.slots:
            slot.release()
        self._done(error)

    def _answered(self, outcome: InferReply | ServeError) -> None:
        self._hold.ended(self)
        self._done(outcome)


class Hold:
    """The waiting requests of one served name."""

    def __init__(
        self, service: Callable[[], Service | None], submit: Submit, most_s: float
    ) -> None:
        """``service``: the version that serves now; ``most_s``: how long a request may wait."""
        self._service = service
        self._submit = submit
        self._most_s = most_s
        self._waiting: deque[Held] = deque()
        self._submitted: set[Held] = set()
        self._due = False

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def add(self, call: InferCall, done: Done, limit: int) -> Held:
        """Let ``call`` wait. Raises Overloaded over ``limit``; its slots are the caller's then."""
        if len(self._waiting) >= limit:
            raise Overloaded(
                f"model {call.model} is being started and {len(self._waiting)} requests wait for it, "
                f"at most {limit} may"
            )
        held = Held(self, call, done)
        wait_s = self._most_s if call.timeout_s is None else min(call.timeout_s, self._most_s)
        held.timer = asyncio.get_running_loop().call_later(wait_s, self._expire, held)
        self._waiting.append(held)
        self.release_soon()
        return held

    def release_soon(self) -> None:
        """Submit what the service can answer now, at the end of this turn of the loop."""
        if self._waiting and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._release)

    def forget(self, held: Held) -> None:
        """The client went away."""
        if self._take(held):
            for slot in held.call.slots:
                slot.release()

    def ended(self, held: Held) -> None:
        """A submitted request was answered, or its client went away."""
        self._submitted.discard(held)
        self.release_soon()

    def refuse_all(self, error: ServeError) -> None:
        """Nothing is going to answer them."""
        while self._waiting:
            held = self._waiting[0]
            self._take(held)
            self._refuse(held, error)

    def _release(self) -> None:
        self._due = False
        service = self._service()
        if service is None or not service.ready:
            return
        room = service.burst() - sum(held.rows for held in self._submitted)
        while self._waiting and (room >= self._waiting[0].rows or not self._submitted):
            held = self._waiting[0]
            room -= held.rows
            self._take(held)
            self._submitted.add(held)
            held.submit(self._submit)

    def _expire(self, held: Held) -> None:
        if not self._take(held):
            return
        waited = f"model {held.call.model} is still being started after {time.monotonic() - held.since:.1f} s"
        limit_s = held.call.timeout_s
        if limit_s is not None and limit_s <= self._most_s:
            self._refuse(held, DeadlineExceeded(waited))
        else:
            self._refuse(held, Unavailable(waited))

    def _refuse(self, held: Held, error: ServeError) -> None:
        service = self._service()
        if service is not None:
            took = time.monotonic() - held.since
            service.statistics.refused(status_of(error).http, took)
        held.refuse(error)

    def _take(self, held: Held) -> bool:
        """Whether ``held`` was waiting; it is not any more."""
        if held.timer is not None:
            held.timer.cancel()
        try:
            self._waiting.remove(held)
        except ValueError:
            return False
        return True


class Holds:
    """The waiting requests of all services, by served name."""

    def __init__(
        self, service: Callable[[str], Service | None], submit: Submit, most_s: float
    ) -> None:
        """``service``: the version of a name that serves now; ``most_s``: how long a request may wait."""
        self._service = service
        self._submit = submit
        self._most_s = most_s
        self._holds: dict[str, Hold] = {}

    def waiting(self, name: str) -> int:
        hold = self._holds.get(name)
        return len(hold) if hold is not None else 0

    def add(self, call: InferCall, done: Done, limit: int) -> Held:
        """As :meth:`Hold.add`."""
        name = call.model
        if name not in self._holds:
            self._holds[name] = Hold(lambda: self._service(name), self._submit, self._most_s)
        return self._holds[name].add(call, done, limit)

    def release_soon(self, name: str) -> None:
        if name in self._holds:
            self._holds[name].release_soon()

    def forget(self, name: str) -> None:
        """``name`` is not served any more."""
        if name in self._holds:
            self._holds.pop(name).refuse_all(NotFound(f"model {name} is not served any more"))

    def refuse_after(self, timeout_s: float) -> None:
        """Refuse what still waits after ``timeout_s``: the server ends."""
        refusal = Unavailable("the server ends before the model is started")
        for hold in self._holds.values():
            asyncio.get_running_loop().call_later(timeout_s, hold.refuse_all, refusal)


def _rows(call: InferCall) -> int:
    """Rows as far as an unchecked call says."""
    return max(1, call.inputs[0].shape[0]) if call.inputs and call.inputs[0].shape else 1
