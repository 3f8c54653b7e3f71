"""Members of a service that are placed alike, as one.

Their instances share a process, in which each batch goes through all of their models: it is formed once, sent
once, answered once and combined once. What cannot go that way goes to the members one by one, as without it:
calls of peers for one member, work for which peers are the better place, everything while no such process is
there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tessera_runtime.dispatch.lane import Lane
from tessera_runtime.dispatch.member import Member, rows_of
from tessera_runtime.dispatch.request import Outputs, Work
from tessera_runtime.target import ServiceTime
from tessera_runtime.worker import messages as m

if TYPE_CHECKING:
    from tessera_runtime.dispatch.service import Service


class Gang(Member):
    """The queue of all members, and the instances that run all of their models."""

    def __init__(self, service: Service, members: Sequence[Member]) -> None:
        names = " + ".join([member.name for member in members])
        super().__init__(names, members[0].cap, members[0].largest, None)
        self.members = tuple(members)
        self._service = service
        self.follow()

    def follow(self) -> None:
        """Take over what has changed of the members."""
        self.cap = min([member.cap for member in self.members])
        self.largest = min([member.largest for member in self.members])
        self.service_time = _one_after_the_other([member.service_time for member in self.members])
        self.varies = any(member.varies for member in self.members)
        self.mixes = all(member.mixes for member in self.members)
        self.caps = dict(self.members[0].caps)
        self.set_active(self.members[0].lanes.active)
        self.input_names = self.members[0].input_names

    def answer(
        self, lane: Lane, batch: tuple[Work, ...], ran: m.Ran, outputs: Sequence[np.ndarray]
    ) -> None:
        rows, share = rows_of(batch), len(self.members)
        answers: list[Outputs] = []
        first = 0
        for index, member in enumerate(self.members):
            member.statistics.batch(
                rows, ran.gather_ns // share, ran.infer_ns[index], ran.output_ns // share
            )
            names = lane.output_names[index]
            last = first + len(names)
            answers.append(dict(zip(names, outputs[first:last], strict=True)))
            first = last
        for work in batch:
            work.request.release()
        self._service.answered_together([work.request for work in batch], answers)

    def blamed(self, model: int) -> Member:
        return self.members[model]

    def count_gathered(self, nbytes: int) -> None:
        for member in self.members:  # each of the models is given a copy
            member.statistics.gathered_bytes += nbytes

    def strand(self) -> None:
        """One turn later: what has ended with the process are the members' instances too, and they know by then."""
        asyncio.get_running_loop().call_soon(self._strand)

    def _strand(self) -> None:
        if not self.lanes:
            super().strand()


def _one_after_the_other(times: Sequence[ServiceTime | None]) -> ServiceTime | None:
    known = [each for each in times if each is not None]
    if len(known) < len(times):
        return None
    return ServiceTime(
        sum([each.alpha_ms for each in known]), sum([each.tau0_ms for each in known])
    )
