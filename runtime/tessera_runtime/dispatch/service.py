"""One version of a served ensemble: fans a request out to its members and makes one answer of theirs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tessera_core.ensemble.metadata import CombineError
from tessera_runtime.dataplane import (
    Alike,
    Done,
    InferCall,
    InferReply,
    ModelMetadata,
    OutputTensor,
    Parameter,
)
from tessera_runtime.dispatch.answer import AnswerMaker
from tessera_runtime.dispatch.deadlines import Deadlines
from tessera_runtime.dispatch.gang import Gang
from tessera_runtime.dispatch.member import Member
from tessera_runtime.dispatch.member_calls import MemberCalls
from tessera_runtime.dispatch.quorum import Quorum
from tessera_runtime.dispatch.request import Outputs, Request, Shape, Work
from tessera_runtime.dispatch.request_log import log_request
from tessera_runtime.dispatch.stage import AHEAD, Allocate, Stage
from tessera_runtime.dispatch.statistics import ServiceStatistics
from tessera_runtime.dispatch.validation import Buckets, check
from tessera_runtime.errors import ModelFailed, ServeError, Unavailable, status_of
from tessera_runtime.target import ServiceTarget

if TYPE_CHECKING:
    from tessera_runtime.dispatch.signatures import Published

MOST_SHAPES = 256

TOGETHER = -1
"""Index of work that is done by all members as one."""


class Service:
    """Members, their combination, and the requests that wait for it."""

    def __init__(self, target: ServiceTarget, deadlines: Deadlines, allocate: Allocate) -> None:
        """``allocate``: for what preprocessing makes."""
        self.target = target
        self.statistics = ServiceStatistics()
        self.members = tuple(
            Member(member.name, member.cap, member.max_batch, member.service_time)
            for member in target.members
        )
        self.calls = tuple(
            MemberCalls(self, index, deadlines) for index in range(len(self.members))
        )
        """What peers ask of each member alone."""
        self.gang: Gang | None = None
        """Of all members, where they are placed alike; it serves while it has instances."""
        self._set_caps()
        self.metadata: ModelMetadata | None = None
        """Known once every member has been loaded by some worker, here or at a peer."""
        self.in_flight = 0
        """Requests that wait for an answer, and calls of peers that do."""
        self.problem = ""
        """Why the service cannot become ready, in words for the user."""
        self._deadlines = deadlines
        self._stage = Stage(self.members, allocate) if target.stage is not None else None
        self._buckets: Buckets = ()
        self._shapes: dict[Alike, Shape] = {}
        """Of valid calls that were alike; bounded, for clients choose what they send."""
        self._answers = AnswerMaker(target, self.statistics.combine)
        self._everybody = tuple(range(len(target.answering)))
        self._slo_s = target.slo_ms / 1e3
        self._quorum = Quorum(target)
        self._required = frozenset(member.name for member in target.members if member.required)
        """To be ready."""

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def version(self) -> str:
        return self.target.version

    @property
    def ready(self) -> bool:
        """Whether a request could be answered now: every required member has an instance or a peer."""
        return self.metadata is not None and all(
            member.available or member.name not in self._required for member in self.members
        )

    @property
    def called_lately(self) -> bool:
        """Whether peers may not know yet that they should call somebody else."""
        return any(calls.lately for calls in self.calls)

    def burst(self) -> int:
        """Rows that may be given to it at once and be answered within the SLO: the least of its members."""
        required = [member for member in self.members if member.name in self._required]
        return min(member.burst(self._slo_s) for member in required or self.members)

    def publish(self, published: Published) -> None:
        """Set what clients may ask; called once the members' signatures are known and fit together."""
        self.metadata = published.metadata
        self._buckets = published.buckets
        if self._stage is not None:
            self._stage.inputs = published.staged
        self._shapes.clear()
        self._answers.publish(published.outputs)

    def retarget(self, target: ServiceTarget) -> None:
        """Take over settings that need no other models: caps, service times, the SLO."""
        self.target = target
        self._slo_s = target.slo_ms / 1e3
        self._quorum = Quorum(target)
        if self.metadata is not None:
            self.metadata = replace(self.metadata, versions=(target.version,))
        for member, wanted in zip(self.members, target.members, strict=True):
            member.service_time = wanted.service_time
        self._set_caps()

    def _set_caps(self) -> None:
        for member, wanted in zip(self.members, self.target.members, strict=True):
            member.caps = {
                place.device: place.setpoint or place.cap or wanted.cap
                for place in wanted.instances
            }
            member.cap = max(member.caps.values(), default=wanted.cap)
            member.set_active(
                {
                    place.device: place.active
                    for place in wanted.instances
                    if place.active is not None
                }
            )
        if self.gang is not None:
            self.gang.follow()

    def join(self) -> Gang:
        """The members as one, from now on."""
        if self.gang is None:
            self.gang = Gang(self, self.members)
            for member in self.members:
                member.gang = self.gang
        self.gang.follow()
        return self.gang

    def submit(self, call: InferCall, done: Done, held_since: float | None = None) -> Request:
        """Queue ``call`` at every member. Raises a ServeError; the call's slots are the service's from here.

        ``held_since``: when it arrived, if that is not now. Its latency and its client's own limit count from
        then, the SLO's deadline from now: by the old one it would be dropped as late at once.
        """
        now = time.monotonic()
        arrived = now if held_since is None else held_since
        try:
            shape = self._shape(call)
        except ServeError as error:
            for slot in call.slots:
                slot.release()
            self.statistics.refused(status_of(error).http, 0.0)
            raise
        explicit = call.timeout_s is not None
        deadline = arrived + call.timeout_s if call.timeout_s is not None else now + self._slo_s
        request = Request(call, done, self, shape, arrived, deadline, explicit)
        self.in_flight += 1
        self.statistics.rows += request.rows
        self._enqueue(request)
        if request.failure is not None:
            raise request.failure
        request.submitting = False
        self._deadlines.add(request)
        return request

    def _shape(self, call: InferCall) -> Shape:
        """Raises a ServeError."""
        alike = call.alike
        known = self._shapes.get(alike) if alike is not None else None
        if known is not None:
            return known
        if self.metadata is None:
            raise Unavailable(f"model {self.name} is still being loaded")
        shape = check(call, self.metadata, self._buckets)
        if alike is not None:
            if len(self._shapes) >= MOST_SHAPES:
                self._shapes.clear()
            self._shapes[alike] = shape
        return shape

    def abandon(self, request: Request) -> None:
        """The client went away: forget what has not started."""
        log_request(request, 499, "the client went away")
        self._close(request)
        self.statistics.refused(499, time.monotonic() - request.arrived)

    def expire(self, request: Request, now: float) -> None:
        """The deadline of ``request`` has come."""
        withdrawn = [work for work in request.works if work.member.withdraw(work)]
        if request.explicit or self.target.on_timeout == "Partial":
            self._decide(request, now)
        else:
            for work in withdrawn:
                self.late(work)

    # Owner: what the members report

    def answered(self, work: Work, outputs: Outputs) -> None:
        request = work.request
        if request.answered:
            return
        if self._stage is not None and work.index == AHEAD:
            try:
                self._stage.hand_on(request, outputs)
            except ServeError as error:
                self._fail(request, error)
                return
            self._to_members(request)
            return
        answers = request.answers
        answers[work.index] = outputs
        if len(answers) < len(self._everybody):
            return
        if any(isinstance(answer, Exception) for answer in answers.values()):
            self._decide(request, time.monotonic())
        else:
            self._answer(request, self._everybody)

    def answered_together(self, requests: Sequence[Request], answers: Sequence[Outputs]) -> None:
        """A batch of all members came back. ``answers``: of each member, for the rows of all ``requests``."""
        by_member = dict(enumerate(answers))
        try:
            outputs = self._answers.make(by_member, self._everybody)
        except CombineError as error:
            for request in requests:
                if not request.answered:
                    self._fail(request, _misfit(error))
            return
        parameters = self._answers.parameters(self._everybody)
        first = 0
        for request in requests:
            last = first + request.rows
            if not request.answered:
                wanted = request.call.outputs
                own = tuple(
                    [
                        OutputTensor(output.name, output.datatype, output.array[first:last])
                        for output in outputs
                        if not wanted or output.name in wanted
                    ]
                )
                self._tell(request, own, parameters)
            first = last

    def failed(self, work: Work, error: ServeError) -> None:
        request = work.request
        if request.answered:
            return
        if work.index in (TOGETHER, AHEAD):
            self._fail(request, error)
            return
        request.answers[work.index] = error
        self._decide(request, time.monotonic())

    def late(self, work: Work) -> None:
        self.failed(work, work.why_late())

    def stranded(self, work: Work) -> None:
        if work.index == TOGETHER:
            request = work.request
            request.works.remove(work)
            self._to_members(request, work.kills, work.alone)
        elif not _place(work):
            gone = f"member {work.member.name}: its instances ended, and nothing else has room"
            self.failed(work, Unavailable(gone))

    def _enqueue(self, request: Request) -> None:
        if self._stage is not None:
            work = self._stage.work(request)
            request.works.append(work)
            if _place(work):
                work.member.pump_soon()
            else:
                self.failed(work, work.why_refused())
            return
        gang = self.gang
        if gang is None or not gang.serves or self._leaves(request.rows):
            self._to_members(request)
            return
        work = Work(request, gang, TOGETHER)
        request.works.append(work)
        if gang.offer(work):
            gang.pump_soon()
        else:
            self.failed(work, work.why_refused())

    def _leaves(self, rows: int) -> bool:
        """Whether a peer is the better place for some of the members."""
        for member in self.members:
            if member.routes is not None and member.routes.prefer_peer(rows):
                return True
        return False

    def _to_members(self, request: Request, kills: int = 0, alone: bool = False) -> None:
        members = [self.members[index] for index in self._everybody]
        for index, member in enumerate(members):
            work = Work(request, member, index)
            work.kills, work.alone = kills, alone
            request.works.append(work)
            if not _place(work):
                self.failed(work, work.why_refused())
            if request.answered:
                return
        for member in members:
            if request.answered:
                return
            member.pump_soon()

    def _decide(self, request: Request, now: float) -> None:
        decided = self._quorum.decide(request, now)
        if isinstance(decided, ServeError):
            self._fail(request, decided)
        elif decided is not None:
            self._answer(request, decided)

    def _answer(self, request: Request, answered: Sequence[int]) -> None:
        """``answered``: the members, by index, whose answers count."""
        answers: dict[int, Outputs] = request.answers  # type: ignore[assignment]  # no errors among these
        try:
            outputs = self._answers.make(answers, answered, request.call.outputs)
        except CombineError as error:
            self._fail(request, _misfit(error))
            return
        if len(answered) < len(self._everybody):
            self.statistics.partial += 1
        self._tell(request, tuple(outputs), self._answers.parameters(answered))

    def _tell(
        self,
        request: Request,
        outputs: tuple[OutputTensor, ...],
        parameters: Mapping[str, Parameter],
    ) -> None:
        took = time.monotonic() - request.arrived
        self.statistics.answered(took, request.rows, took <= self._slo_s)
        log_request(request, 200)
        self._close(request)
        request.tell(InferReply(self.name, self.version, request.call.id, outputs, parameters))

    def _fail(self, request: Request, error: ServeError) -> None:
        code = status_of(error).http
        self.statistics.refused(code, time.monotonic() - request.arrived)
        log_request(request, code, str(error))
        self._close(request)
        if request.submitting:
            request.failure = error
        else:
            request.tell(error)

    def _close(self, request: Request) -> None:
        request.answered = True
        self.in_flight -= 1
        for work in request.works:
            work.member.withdraw(work)
            if work.trip is not None:
                work.trip.cancel()
        request.works.clear()  # breaks the cycle, so that the collector has nothing to find
        request.answers.clear()
        request.release()


def _place(work: Work) -> bool:
    """Queue ``work`` here or send it to a peer; False when nothing has room. Starts no batch."""
    member = work.member
    return member.offer(work) if member.routes is None else member.routes.place(work)


def _misfit(error: CombineError) -> ModelFailed:
    return ModelFailed(f"the members' answers do not fit together: {error}")
