"""The answer of a service, made of its members'."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tessera_core.api.modelservice import Combine
from tessera_core.ensemble.combine import combine
from tessera_core.ensemble.metadata import CombinedOutput
from tessera_core.perf.histogram import Histogram
from tessera_runtime.dataplane import OutputTensor, Parameter
from tessera_runtime.dispatch.request import Outputs
from tessera_runtime.target import ServiceTarget


class _Published(NamedTuple):
    """One output of the answer: its name, datatype, and the outputs of members, by index, that it is made of."""

    name: str
    datatype: str
    sources: tuple[tuple[int, str], ...]


class AnswerMaker:
    """Combines what the members answered for the same rows: those of a request, or of a batch."""

    def __init__(self, target: ServiceTarget, times: Histogram) -> None:
        """``times``: where it is noted how long each combination of an ensemble takes."""
        self._times = times
        self._rule = target.combine
        self._weighted = target.combine in (Combine.WEIGHTED_MEAN, Combine.WEIGHTED_VOTE)
        self._names = [member.name for member in target.answering]
        self._weights = [member.weight for member in target.answering]
        self._published: tuple[_Published, ...] = ()

    def publish(self, outputs: Sequence[CombinedOutput]) -> None:
        """What the answer consists of; known once the members' signatures are."""
        indexes = {name: index for index, name in enumerate(self._names)}
        self._published = tuple(
            [
                _Published(
                    output.tensor.name,
                    output.tensor.datatype.value,
                    tuple([(indexes[member], name) for member, name in output.sources]),
                )
                for output in outputs
            ]
        )

    def make(
        self, answers: Mapping[int, Outputs], answered: Sequence[int], wanted: Sequence[str] = ()
    ) -> list[OutputTensor]:
        """The ``wanted`` outputs, all where none is named, of the members that ``answered``, by index.

        Raises CombineError.
        """
        started = time.perf_counter()
        outputs: list[OutputTensor] = []
        for published in self._published:
            if wanted and published.name not in wanted:
                continue
            found = [
                (index, answers[index][name])
                for index, name in published.sources
                if index in answered
            ]
            if len(published.sources) > 1:
                array = self._combined(found)
            elif found:
                array = found[0][1]
            else:
                continue  # the answer of a member that is missing from a partial answer
            outputs.append(OutputTensor(published.name, published.datatype, array))
        if len(self._names) > 1:
            self._times.observe(time.perf_counter() - started)
        return outputs

    def parameters(self, answered: Sequence[int]) -> Mapping[str, Parameter]:
        """Whose answer it is; nothing where there is one member only."""
        if len(self._names) == 1:
            return {}
        return {
            "members_answered": ",".join([self._names[index] for index in answered]),
            "partial": len(answered) < len(self._names),
        }

    def _combined(self, found: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
        """Raises CombineError."""
        names = [self._names[index] for index, _ in found]
        arrays = [array for _, array in found]
        weights = [self._weights[index] for index, _ in found] if self._weighted else None
        return combine(self._rule, arrays, weights, members=names)
