"""The way of one member's work to peers that serve the member too.

For each request it is decided where the member's part runs (:mod:`tessera_runtime.dispatch.choose`). What a
peer cannot do for reasons of its own is done somewhere else: inference can be repeated. A peer is believed
to be up once it has answered what the member takes, and until a call finds it gone; then it is asked again
with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tessera_runtime.dataplane import Keys, MemberCall, OutputTensor
from tessera_runtime.dispatch.choose import Choice, Place, choose
from tessera_runtime.dispatch.member import MOST_KILLS, Member
from tessera_runtime.dispatch.peers import Channels
from tessera_runtime.dispatch.request import Outputs, Trip, Work
from tessera_runtime.dispatch.signatures import Signature, told_by_peer
from tessera_runtime.errors import ModelFailed, Overloaded, ServeError, Unavailable
from tessera_runtime.protocol.grpc_codec import encode_request
from tessera_runtime.protocol.peer_client import PeerAnswer
from tessera_runtime.target import PeerTarget

if TYPE_CHECKING:
    from tessera_runtime.dispatch.service import Service

log = logging.getLogger(__name__)

MOST_PLACES = 3
"""Where one request's work may have been before it fails, instances here that died with it included."""

HOP_S = 0.002
"""What a hop to a peer costs about, both ways: a smaller gain is none."""

LATE_S = 60.0
"""How long past the SLO's target an answer is waited for: a late one is better than none."""

FIRST_PAUSE_S = 0.05
MOST_PAUSE_S = 2.0
"""Between two questions whether a peer serves the member."""

PROBE_TIMEOUT_S = 5.0


class Peer:
    """One peer, as far as one member is concerned."""

    def __init__(self, target: PeerTarget, channels: Channels) -> None:
        self.target = target
        self.client = channels.take(target.address)
        self.up = False
        self.life = 0
        """Grows when it is found gone: one that has come back may be tried again."""
        self.rows = 0
        """Sent there and not answered yet."""
        self.problem = ""
        self.probe: asyncio.Task[None] | None = None
        self._others = 0.0
        """Rows of others that waited when it answered last."""
        self._heard = 0.0

    def place(self, now: float) -> Place:
        """What is known of it. The others' rows are taken to be worked off meanwhile."""
        rate = self.target.rows_per_second
        waiting = max(0.0, self._others - rate * (now - self._heard))
        return Place(self.rows + waiting, rate)

    def heard(self, queued_rows: int, own_rows: int, now: float) -> None:
        """It said how much waits there, ``own_rows`` of it at most sent from here."""
        self._others = max(0.0, float(queued_rows - own_rows))
        self._heard = now


class Routes:
    """The peers of one member of one service, and the work that is there."""

    def __init__(
        self,
        service: Service,
        index: int,
        channels: Channels,
        keys: Callable[[str], Keys],
        on_learned: Callable[[Service, int, Signature], None],
        on_up: Callable[[Service], None],
    ) -> None:
        """``keys``: what calls of a service carry, by its name."""
        self._service = service
        self._index = index
        self._channels = channels
        self._keys = keys
        self._on_learned = on_learned
        self._on_up = on_up
        self._peers: list[Peer] = []

    @property
    def up(self) -> bool:
        return any(peer.up for peer in self._peers)

    @property
    def problem(self) -> str:
        """Why no peer takes work, in words for the user."""
        return "" if self.up else next((p.problem for p in self._peers if p.problem), "")

    def rate(self) -> float:
        """Rows per second of the peers that are up, together."""
        return sum(peer.target.rows_per_second for peer in self._peers if peer.up)

    def set(self, targets: Sequence[PeerTarget]) -> None:
        """Have exactly these peers. Calls under way at others are finished."""
        wanted = {target.address: target for target in targets}
        for peer in [peer for peer in self._peers if peer.target.address not in wanted]:
            self._peers.remove(peer)
            if peer.probe is not None:
                peer.probe.cancel()
            self._channels.give_back(peer.client)
        for peer in self._peers:
            peer.target = wanted.pop(peer.target.address)
        for target in wanted.values():
            peer = Peer(target, self._channels)
            # Everybody knows the same peers: in an order of one's own, ties do not all go to one of them.
            self._peers.insert(random.randint(0, len(self._peers)), peer)
            peer.probe = self._channels.run(self._probe(peer, 0.0))

    def place(self, work: Work) -> bool:
        """Give ``work`` to the best place; where there is none it waits here. False when nothing has room."""
        choice, peers = self._choose(work.request.rows, work.trip)
        if choice is not None and choice.peer is not None:
            self._send(work, peers[choice.peer])
            return True
        if not self._member.offer(work):
            return False
        self._member.pump_soon()
        return True

    def prefer_peer(self, rows: int) -> bool:
        """Whether new work of so many rows would be done sooner at a peer."""
        choice, _ = self._choose(rows, None)
        return choice is not None and choice.peer is not None

    # Where

    @property
    def _member(self) -> Member:
        return self._service.members[self._index]

    def _choose(self, rows: int, trip: Trip | None) -> tuple[Choice | None, list[Peer]]:
        """The best place of all that have room and are not on ``trip``, and the peers among them."""
        member, now = self._member, time.monotonic()
        tried = trip.tried if trip is not None else []
        limit = member.queue.limit
        peers = [
            peer
            for peer in self._peers
            if peer.up
            and peer.rows + rows <= limit
            and (peer.client.address, peer.life) not in tried
        ]
        places = [peer.place(now) for peer in peers]
        here = member.gang if member.gang is not None and member.gang.serves else member
        local = None
        if here.serves and member.queued_rows + rows <= limit:
            rate = here.rate() or max((place.rate for place in places), default=1.0)
            local = Place(member.queued_rows + here.running_rows, rate)
        # Waiting for the batch that is running is what every plan counts on, and no reason to leave.
        return choose(rows, local, places, here.batch_s() + HOP_S), peers

    # There and back

    def _send(self, work: Work, peer: Peer) -> None:
        trip = work.trip = work.trip or Trip()
        trip.tried.append((peer.client.address, peer.life))
        rows = work.request.rows
        # The channel of a peer that leaves the target stays open for the calls that are under way.
        client = self._channels.take(peer.client.address)
        peer.rows += rows
        self._member.statistics.forwarded += 1

        def ended(task: asyncio.Task[None]) -> None:  # also when it was cancelled before it began
            peer.rows -= rows
            self._channels.give_back(client)

        trip.task = self._channels.run(self._call(work, trip, peer, peer.life))
        trip.task.add_done_callback(ended)

    async def _call(self, work: Work, trip: Trip, peer: Peer, life: int) -> None:
        try:
            answer = await self._ask(work, peer)
        except Exception:
            log.exception("a call of %s to a peer failed", self._service.name)
            answer = PeerAnswer(error=ModelFailed("internal error"))
        trip.task = None
        if answer.queued_rows is not None:
            peer.heard(answer.queued_rows, peer.rows - work.request.rows, time.monotonic())
        if isinstance(answer.error, Unavailable):
            self._gone(peer, life, str(answer.error))
        if not work.request.answered:
            self._settle(work, answer)

    async def _ask(self, work: Work, peer: Peer) -> PeerAnswer:
        request = work.request
        left_s = request.deadline - time.monotonic()
        part = MemberCall(
            self._member.name,
            self._service.target.members[self._index].digest,
            None if request.explicit else left_s,
            work.kills,
        )
        timeout_s = max(left_s, 0.001) if request.explicit else max(left_s, 0.0) + LATE_S
        names = self._member.input_names
        inputs = [(name, request.inputs[position]) for position, name in names]
        name = self._service.name
        data = encode_request(name, request.call.id, inputs)
        trace = request.call.traceparent
        return await peer.client.infer(data, part, timeout_s, trace, self._keys(name))

    def _settle(self, work: Work, answer: PeerAnswer) -> None:
        error = answer.error
        match error:
            case None:
                try:
                    outputs = self._checked(answer.outputs, work.request.rows)
                except ValueError as wrong:
                    refusal = f"member {work.member.name}: a peer answered {wrong}"
                    self._service.failed(work, ModelFailed(refusal))
                else:
                    self._service.answered(work, outputs)
            case Unavailable():
                self._retry(work, error)
            case Overloaded():
                self._retry_if_room(work, error)
            case _:
                self._service.failed(work, error)

    def _retry(self, work: Work, error: Unavailable) -> None:
        """The place is gone: another one, unless it looks as if this request were to blame."""
        work.kills = max(work.kills, error.losses)
        work.alone = work.kills > 0
        in_time = time.monotonic() < work.request.deadline
        if work.kills >= MOST_KILLS:
            self._service.failed(work, ModelFailed(str(error)))
        elif _places(work) >= MOST_PLACES or not in_time:
            self._service.failed(work, error)
        else:
            self._member.statistics.forward_retries["unavailable"] += 1
            if not self.place(work):
                self._service.failed(work, error)

    def _retry_if_room(self, work: Work, error: ServeError) -> None:
        """The place has too much to do: another one only where this would be answered in time."""
        choice, _ = self._choose(work.request.rows, work.trip)
        left_s = work.request.deadline - time.monotonic()
        if _places(work) >= MOST_PLACES or choice is None or choice.wait_s > left_s:
            self._service.failed(work, error)
            return
        self._member.statistics.forward_retries["overloaded"] += 1
        if not self.place(work):
            self._service.failed(work, error)

    def _checked(self, outputs: Sequence[OutputTensor], rows: int) -> Outputs:
        """Raises ValueError for anything but the member's outputs with a row for each of the request's."""
        assert self._member.signature is not None
        expected = {output.name: output.datatype for output in self._member.signature.outputs}
        if {output.name: output.datatype for output in outputs} != expected:
            raise ValueError(f"outputs {[output.name for output in outputs]}")
        for output in outputs:
            if output.array.shape[:1] != (rows,):
                shape = list(output.array.shape)
                raise ValueError(f"{output.name} of shape {shape} for {rows} rows")
        return {output.name: output.array for output in outputs}

    # Who is there

    def _gone(self, peer: Peer, life: int, problem: str) -> None:
        """A call found ``peer`` gone: ask until it is back. What was sent in an earlier life says nothing."""
        if peer.life != life or peer not in self._peers:
            return
        peer.life += 1
        peer.up = False
        peer.problem = problem
        log.warning("%s: %s", self._service.name, problem)
        if peer.probe is not None:
            peer.probe.cancel()
        peer.probe = self._channels.run(self._probe(peer, FIRST_PAUSE_S))

    async def _probe(self, peer: Peer, pause_s: float) -> None:
        """Ask ``peer`` what the member takes, until it says so; the first time after ``pause_s``."""
        while True:
            await asyncio.sleep(pause_s)
            member = self._service.target.members[self._index]
            part = MemberCall(member.name, member.digest)
            name = self._service.name
            answer = await peer.client.metadata(name, part, PROBE_TIMEOUT_S, self._keys(name))
            if answer.metadata is not None:
                break
            peer.problem = str(answer.error)
            pause_s = min(max(2 * pause_s, FIRST_PAUSE_S), MOST_PAUSE_S)
        if answer.queued_rows is not None:
            peer.heard(answer.queued_rows, peer.rows, time.monotonic())
        peer.up, peer.problem, peer.probe = True, "", None
        if self._member.signature is None:
            self._on_learned(self._service, self._index, told_by_peer(answer.metadata))
        if not self._member.lanes:
            self._member.strand()  # what has been waiting for a place
        self._on_up(self._service)


def _places(work: Work) -> int:
    """Where ``work`` has been."""
    return work.kills + (len(work.trip.tried) if work.trip is not None else 0)
