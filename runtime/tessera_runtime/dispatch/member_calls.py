"""What peers ask: one member alone, for a request that they answer to their client.

Such a call joins the member's queue like the service's own work: same order, same batches, same admission,
same rule of what is dropped. It is never passed on, and it is no request of the service: who forwards it
counts that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tessera_runtime.dataplane import Done, InferCall, InferReply, ModelMetadata, OutputTensor
from tessera_runtime.dispatch.deadlines import Deadlines
from tessera_runtime.dispatch.member import Member
from tessera_runtime.dispatch.request import InputNames, Outputs, Request, Shape, Work
from tessera_runtime.dispatch.request_log import log_request
from tessera_runtime.dispatch.signatures import Signature, member_metadata
from tessera_runtime.dispatch.validation import Buckets, check
from tessera_runtime.errors import (
    DeadlineExceeded,
    ServeError,
    Unavailable,
    status_of,
)

if TYPE_CHECKING:
    from tessera_runtime.dispatch.service import Service

LATELY_S = 1.0
"""Peers that have not called for so long know of somebody else to call."""


class MemberCalls:
    """Owner of the calls from peers for one member."""

    def __init__(self, service: Service, index: int, deadlines: Deadlines) -> None:
        self._service = service
        self._index = index
        self._deadlines = deadlines
        self._called = 0.0
        self._known: tuple[Signature, str, ModelMetadata, InputNames, Buckets] | None = None
        """What a signature means for calls, and the version as of which."""

    @property
    def name(self) -> str:
        return self._service.name

    @property
    def lately(self) -> bool:
        """Whether a peer has called recently; false if none ever has."""
        return self._called > 0.0 and time.monotonic() - self._called < LATELY_S

    @property
    def queued_rows(self) -> int:
        """Rows that wait for the member."""
        return self._member.queued_rows

    @property
    def _member(self) -> Member:
        return self._service.members[self._index]

    def metadata(self) -> ModelMetadata:
        """What the member takes by itself. Raises Unavailable without an instance of it."""
        return self._knowledge()[0]

    def submit(self, call: InferCall, done: Done) -> Request:
        """Queue ``call``. Raises a ServeError; the call's slots are the member's from here."""
        assert call.part is not None
        arrived = self._called = time.monotonic()
        try:
            metadata, names, buckets = self._knowledge()
            shape = check(call, metadata, buckets)
        except ServeError as error:
            for slot in call.slots:
                slot.release()
            self._count(error)
            raise
        member = self._member
        slo_s = call.part.slo_s
        explicit = slo_s is None and call.timeout_s is not None
        left_s = slo_s if slo_s is not None else call.timeout_s
        deadline = arrived + (left_s if left_s is not None else self._service.target.slo_ms / 1e3)
        request = self._request(call, done, shape, names, arrived, deadline, explicit)
        work = Work(request, member, self._index)
        work.kills = call.part.losses
        work.alone = work.kills > 0
        request.works.append(work)
        self._service.in_flight += 1
        if not member.offer(work):
            self.failed(work, work.why_refused())
            assert request.failure is not None
            raise request.failure
        member.pump_soon()
        if request.failure is not None:
            raise request.failure
        request.submitting = False
        self._deadlines.add(request)
        return request

    def _request(
        self,
        call: InferCall,
        done: Done,
        shape: Shape,
        names: InputNames,
        arrived: float,
        deadline: float,
        explicit: bool,
    ) -> Request:
        """Calls share batches with the service's own requests where both list the inputs alike."""
        service = self._service
        alike = (
            service.metadata is not None
            and self._member.input_names == names
            and len(service.metadata.inputs) == len(names)
        )
        if not alike:
            shape = shape._replace(key=("a member's own inputs", shape.key))
        request = Request(call, done, self, shape, arrived, deadline, explicit)
        request.names = None if alike else names
        return request

    def _knowledge(self) -> tuple[ModelMetadata, InputNames, Buckets]:
        member, target = self._member, self._service.target
        signature = member.signature
        if signature is None or not member.lanes:
            raise Unavailable(f"member {member.name}: no instance is ready")
        known = self._known
        if known is None or known[0] is not signature or known[1] != target.version:
            metadata = member_metadata(target, target.members[self._index], signature)
            names = tuple((i, tensor.name) for i, tensor in enumerate(signature.inputs))
            declared = {tensor.name: tensor.buckets for tensor in target.inputs}
            if len(names) == len(declared) == 1:  # a lone input may have any name
                declared = {names[0][1]: target.inputs[0].buckets}
            buckets = tuple(declared.get(name, ()) for _, name in names)
            known = self._known = signature, target.version, metadata, names, buckets
        return known[2:]

    # Owner

    def answered(self, work: Work, outputs: Outputs) -> None:
        request = work.request
        if request.answered:
            return
        assert self._member.signature is not None
        tensors = _tensors(self._member.signature, outputs, request.call.outputs)
        reply = InferReply(self.name, self._service.version, request.call.id, tensors)
        self._close(request)
        self._member.statistics.received[200] += 1
        log_request(request, 200)
        request.tell(reply)

    def failed(self, work: Work, error: ServeError) -> None:
        if not work.request.answered:
            self._fail(work.request, error)

    def late(self, work: Work) -> None:
        self.failed(work, work.why_late())

    def stranded(self, work: Work) -> None:
        refusal = f"member {work.member.name}: its instances are gone"
        self.failed(work, Unavailable(refusal, work.kills))

    def expire(self, request: Request, now: float) -> None:
        withdrawn = [work for work in request.works if work.member.withdraw(work)]
        if request.explicit:
            limit_ms = 1e3 * (request.deadline - request.arrived)
            self._fail(request, DeadlineExceeded(f"no answer within {limit_ms:.0f} ms"))
        else:
            for work in withdrawn:
                self.late(work)

    def abandon(self, request: Request) -> None:
        log_request(request, 499, "the peer gave it up")
        self._close(request)
        self._member.statistics.received[499] += 1

    def _fail(self, request: Request, error: ServeError) -> None:
        self._count(error)
        log_request(request, status_of(error).http, str(error))
        self._close(request)
        if request.submitting:
            request.failure = error
        else:
            request.tell(error)

    def _close(self, request: Request) -> None:
        request.answered = True
        self._service.in_flight -= 1
        for work in request.works:
            work.member.withdraw(work)
        request.works.clear()
        request.release()

    def _count(self, error: ServeError) -> None:
        self._member.statistics.received[status_of(error).http] += 1


def _tensors(
    signature: Signature, outputs: Outputs, wanted: Sequence[str]
) -> tuple[OutputTensor, ...]:
    return tuple(
        OutputTensor(tensor.name, tensor.datatype, outputs[tensor.name])
        for tensor in signature.outputs
        if not wanted or tensor.name in wanted
    )
