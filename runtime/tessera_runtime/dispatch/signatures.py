"""What a service publishes, from what its members' model files say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_core.api.tensors import Datatype, Tensor
from tessera_core.ensemble.metadata import CombinedOutput, check_combinable
from tessera_runtime.dataplane import ModelMetadata, TensorSpec
from tessera_runtime.dispatch.validation import Buckets
from tessera_runtime.target import ServiceTarget
from tessera_runtime.worker import messages as m


class Incompatible(Exception):
    """The members cannot be served together."""


@dataclass(frozen=True, slots=True)
class Published:
    metadata: ModelMetadata
    outputs: tuple[CombinedOutput, ...]
    buckets: Buckets
    input_names: tuple[tuple[tuple[int, str], ...], ...]
    """Per member, for each input of its model: position among the service's inputs, and its own name."""
    largest: tuple[int, ...]
    """Per member, most rows of a batch: what was warmed, or less where the file itself allows less."""


def publish(target: ServiceTarget, loaded: Sequence[m.Loaded]) -> Published:
    """Join the members' signatures. Raises Incompatible, CombineError.

    Inputs of equal name are one input and must agree. Members that each take a single input take the same
    one, whatever each calls it: the first member's name is published.
    """
    inputs: list[m.Tensor] = []
    names: list[tuple[tuple[int, str], ...]] = []
    single = all(len(signature.inputs) == 1 for signature in loaded)
    for member, signature in zip(target.members, loaded, strict=True):
        own: list[tuple[int, str]] = []
        for tensor in signature.inputs:
            position = _position(inputs, tensor, single)
            if position == len(inputs):
                inputs.append(tensor)
            known = inputs[position]
            if (known.datatype, known.row_shape) != (tensor.datatype, tensor.row_shape):
                raise Incompatible(
                    f"member {member.name}: input {tensor.name!r} is {tensor.datatype}"
                    f"{list(tensor.row_shape)}, the members before it take {known.datatype}"
                    f"{list(known.row_shape)}"
                )
            own.append((position, tensor.name))
        names.append(tuple(own))
    outputs = _outputs(target, loaded)
    largest = tuple(
        min(member.max_batch, signature.max_rows or member.max_batch)
        for member, signature in zip(target.members, loaded, strict=True)
    )
    metadata = ModelMetadata(
        name=target.name,
        versions=(target.version,),
        platform=_platform(target, loaded),
        inputs=tuple(TensorSpec(t.name, t.datatype, (-1, *t.row_shape)) for t in inputs),
        outputs=tuple(
            TensorSpec(o.tensor.name, o.tensor.datatype.value, (-1, *o.tensor.shape))
            for o in outputs
        ),
        max_rows=min(largest),
    )
    declared = {tensor.name: tensor.buckets for tensor in target.inputs}
    buckets = tuple(declared.get(tensor.name, ()) for tensor in inputs)
    return Published(metadata, outputs, buckets, tuple(names), largest)


def _position(inputs: Sequence[m.Tensor], tensor: m.Tensor, single: bool) -> int:
    if single:
        return 0
    for position, known in enumerate(inputs):
        if known.name == tensor.name:
            return position
    return len(inputs)


def _outputs(target: ServiceTarget, loaded: Sequence[m.Loaded]) -> tuple[CombinedOutput, ...]:
    members = {
        member.name: [Tensor(t.name, Datatype(t.datatype), t.row_shape) for t in signature.outputs]
        for member, signature in zip(target.members, loaded, strict=True)
    }
    if len(members) == 1 and target.combine is Combine.NONE:
        # A lone model keeps the names of its outputs: nothing could be confused with anything.
        [(name, outputs)] = members.items()
        return tuple(CombinedOutput(output, ((name, output.name),)) for output in outputs)
    partial = target.on_timeout is OnTimeout.PARTIAL or not all(x.required for x in target.members)
    return check_combinable(target.combine, members, partial=partial)


def _platform(target: ServiceTarget, loaded: Sequence[m.Loaded]) -> str:
    if len(loaded) > 1:
        return "tessera_ensemble"
    library = loaded[0].engine.split("-")[0]
    return f"{library}_{target.members[0].format.lower()}"
