"""What becomes of a request of which some members have not answered: the rule of the core, asked for one request."""

from __future__ import annotations

from collections.abc import Sequence

from tessera_core.ensemble.quorum import Answer, Fail, MemberState, decide
from tessera_runtime.dispatch.request import Request
from tessera_runtime.errors import DeadlineExceeded, ServeError
from tessera_runtime.target import ServiceTarget


class Quorum:
    """Which of a service's members an answer needs."""

    def __init__(self, target: ServiceTarget) -> None:
        self._names = [member.name for member in target.answering]
        self._everybody = tuple(range(len(self._names)))
        self._required = frozenset(member.name for member in target.answering if member.required)
        self._fewest = target.min_members
        self._on_timeout = target.on_timeout

    def decide(self, request: Request, now: float) -> Sequence[int] | ServeError | None:
        """The members, by index, whose answers make one now, or why there is none; None while it has to wait."""
        answers = request.answers
        if len(self._everybody) == 1:
            only = answers.get(0)
            if only is None:
                return _too_late(request)
            return only if isinstance(only, ServeError) else self._everybody
        states = {self._names[index]: _state(answers.get(index)) for index in self._everybody}
        # A deadline of the SLO's ends nothing that is already running, unless partial answers are wanted.
        ends = request.explicit or self._on_timeout == "Partial"
        decision = decide(
            states,
            now,
            request.deadline if ends else now + 1.0,
            self._required,
            self._fewest,
            self._on_timeout,
        )
        if isinstance(decision, Answer):
            return [index for index in self._everybody if self._names[index] in decision.members]
        if isinstance(decision, Fail):
            # The error of a member that may fail must not hide that a required one is late.
            for index, answer in answers.items():
                if isinstance(answer, ServeError) and self._names[index] in decision.members:
                    return answer
            return _too_late(request)
        return None


def _state(answer: object) -> MemberState:
    if answer is None:
        return MemberState.PENDING
    return MemberState.FAILED if isinstance(answer, Exception) else MemberState.ANSWERED


def _too_late(request: Request) -> DeadlineExceeded:
    return DeadlineExceeded(f"no answer within {1e3 * (request.deadline - request.arrived):.0f} ms")
