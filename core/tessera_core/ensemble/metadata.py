"""What an ensemble publishes: the shape and datatype of the members' combined outputs.

Problem: clients read an ensemble's outputs before any inference ran, and members that cannot be combined
(nine classes here, ten there) must be refused when they are loaded, not in the first request.

Approach: :func:`result_metadata` says for one output what ``combine`` will make of it, by the same rules;
:func:`check_combinable` pairs the outputs of all members and applies it to each pair.

    CombineError(ValueError)    members that do not fit together; names the member, found and expected
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera_core.api.modelservice import Combine
from tessera_core.api.tensors import VARIABLE, Datatype, Shape, Tensor

FLOATING = frozenset({Datatype.FP16, Datatype.FP32, Datatype.FP64})
INTEGER = frozenset(Datatype) - FLOATING - {Datatype.BOOL, Datatype.BYTES}

VOTES = frozenset({Combine.MAJORITY_VOTE, Combine.WEIGHTED_VOTE})
_FRACTIONAL = frozenset({Combine.MEAN, Combine.WEIGHTED_MEAN, Combine.SOFT_VOTE, Combine.MEDIAN})
"""Rules whose result may lie between its inputs: integers become FP64."""


@dataclass(frozen=True, slots=True)
class CombinedOutput:
    """One published output and where it comes from."""

    tensor: Tensor
    sources: tuple[tuple[str, str], ...]
    """(member, its output) in the members' order; a single one when members are not combined."""


class CombineError(ValueError):
    """Members whose outputs do not fit together, or do not fit the rule."""

    def __init__(self, rule: Combine, member: str, found: str, expected: str) -> None:
        super().__init__(f"{rule.value}: {member}: found {found}, expected {expected}")
        self.rule = rule
        self.member = member
        self.found = found
        self.expected = expected


def describe(output: Tensor) -> str:
    """``FP32[rows,10]``: how errors print a tensor."""
    return f"{output.datatype.value}[{','.join(map(str, ('rows', *output.shape)))}]"


def result_metadata(rule: Combine, outputs: Sequence[Tensor], members: Sequence[str]) -> Tensor:
    """Shape and datatype of ``combine(rule, …)`` over one output of each of ``members``.

    The name is the first member's. Raises CombineError where ``combine`` would for every request.
    """
    if not outputs:
        raise CombineError(rule, "ensemble", "no members", "at least one")
    first = outputs[0]
    for member, output in zip(members, outputs, strict=True):
        _check_one(rule, member, output)
        if output.datatype != first.datatype:
            raise CombineError(
                rule, member, describe(output), f"{first.datatype.value} as {members[0]} gives"
            )
    shape = first.shape
    for member, output in zip(members[1:], outputs[1:], strict=True):
        shape = _join(rule, member, shape, output)
    if rule in VOTES:
        labels = first.datatype in INTEGER and shape in ((), (1,))
        return Tensor(first.name, Datatype.INT64, () if labels else shape[:-1])
    if rule in _FRACTIONAL and first.datatype not in FLOATING:
        return Tensor(first.name, Datatype.FP64, shape)
    return Tensor(first.name, first.datatype, shape)


def check_combinable(
    rule: Combine, members: Mapping[str, Sequence[Tensor]], *, partial: bool
) -> tuple[CombinedOutput, ...]:
    """Check at load time that ``members`` (name → outputs, in spec order) fit ``rule``; what is published.

    Outputs are paired by name; members with one output each are paired whatever it is called. Without
    combination every output is published as ``<member>.<output>``. ``partial``: answers may lack members
    (``onTimeout: Partial`` or optional members), which Concat refuses because positions would shift.
    Raises CombineError.
    """
    if not members:
        raise CombineError(rule, "ensemble", "no members", "at least one")
    for member, outputs in members.items():
        if not outputs:
            raise CombineError(rule, member, "no outputs", "at least one")
    if rule is Combine.NONE:
        return tuple(
            CombinedOutput(
                Tensor(f"{member}.{output.name}", output.datatype, output.shape),
                ((member, output.name),),
            )
            for member, outputs in members.items()
            for output in outputs
        )
    if rule is Combine.CONCAT and partial:
        raise CombineError(rule, "ensemble", "partial answers", "every member in every answer")
    names = tuple(members)
    return tuple(
        CombinedOutput(
            result_metadata(rule, paired, names),
            tuple((member, output.name) for member, output in zip(names, paired, strict=True)),
        )
        for paired in _pairs(rule, members)
    )


def _pairs(rule: Combine, members: Mapping[str, Sequence[Tensor]]) -> list[tuple[Tensor, ...]]:
    if all(len(outputs) == 1 for outputs in members.values()):
        return [tuple(outputs[0] for outputs in members.values())]
    by_name = {
        member: {output.name: output for output in outputs} for member, outputs in members.items()
    }
    wanted = next(iter(by_name.values()))
    for member, outputs in by_name.items():
        if outputs.keys() != wanted.keys():
            raise CombineError(
                rule, member, f"outputs {', '.join(outputs)}", f"outputs {', '.join(wanted)}"
            )
    return [tuple(outputs[name] for outputs in by_name.values()) for name in wanted]


def _check_one(rule: Combine, member: str, output: Tensor) -> None:
    """What ``rule`` asks of each member alone."""
    if rule is Combine.NONE:
        raise CombineError(rule, member, describe(output), "no call: outputs are kept apart")
    if rule is Combine.CONCAT:
        if not output.shape:
            raise CombineError(rule, member, describe(output), "an axis after rows to join along")
        return
    if output.datatype is Datatype.BYTES:
        raise CombineError(rule, member, describe(output), "numbers")
    if rule is Combine.SOFT_VOTE and (not output.shape or output.shape[-1] == 0):
        raise CombineError(rule, member, describe(output), "logits [rows,…,classes]")
    if rule in VOTES and not _votes(output):
        raise CombineError(
            rule, member, describe(output), "scores [rows,…,classes ≥ 2] or integer labels [rows]"
        )


def _votes(output: Tensor) -> bool:
    if output.datatype in INTEGER and output.shape in ((), (1,)):
        return True
    return bool(output.shape) and (output.shape[-1] >= 2 or output.shape[-1] == VARIABLE)


def _join(rule: Combine, member: str, shape: Shape, output: Tensor) -> Shape:
    """The shape that ``shape`` and ``output`` have in common; along the last axis their sum for Concat."""
    last = len(shape) - 1
    joined: list[int] = []
    fits = len(output.shape) == len(shape)
    for axis, (left, right) in enumerate(zip(shape, output.shape, strict=False)):
        variable = VARIABLE in (left, right)
        if rule is Combine.CONCAT and axis == last:
            joined.append(VARIABLE if variable else left + right)
        else:
            fits = fits and (variable or left == right)
            joined.append(max(left, right))
    if not fits:
        expected = describe(Tensor(output.name, output.datatype, shape))
        if rule is Combine.CONCAT:
            expected += " up to its last axis"
        raise CombineError(rule, member, describe(output), expected)
    return tuple(joined)
