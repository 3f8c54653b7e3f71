"""What a service publishes, from what its members' model files say."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_core.api.tensors import Datatype, Tensor
from tessera_core.ensemble.metadata import CombinedOutput, CombineError, check_combinable
from tessera_runtime.dataplane import ModelMetadata, TensorSpec
from tessera_runtime.dispatch.request import InputNames
from tessera_runtime.dispatch.stage import StagedInput
from tessera_runtime.dispatch.validation import Buckets
from tessera_runtime.target import MemberTarget, ServiceTarget
from tessera_runtime.worker import messages as m

if TYPE_CHECKING:
    from tessera_runtime.dispatch.service import Service

log = logging.getLogger(__name__)


class Incompatible(Exception):
    """The members cannot be served together."""


class Signature(Protocol):
    """What a model takes and answers, as its own file says: ``Loaded`` of a worker, or told by a peer."""

    @property
    def inputs(self) -> tuple[m.Tensor, ...]: ...

    @property
    def outputs(self) -> tuple[m.Tensor, ...]: ...

    @property
    def max_rows(self) -> int:
        """Rows of the largest batch; 0 is unlimited."""
        ...

    @property
    def engine(self) -> str:
        """Library and version."""
        ...


@dataclass(frozen=True, slots=True)
class PeerSignature:
    """A :class:`Signature` that a peer told."""

    inputs: tuple[m.Tensor, ...]
    outputs: tuple[m.Tensor, ...]
    max_rows: int
    engine: str


def told_by_peer(metadata: ModelMetadata) -> PeerSignature:
    """The signature in the metadata that a peer answers for a member."""

    def tensors(specs: Sequence[TensorSpec]) -> tuple[m.Tensor, ...]:
        return tuple(m.Tensor(spec.name, spec.datatype, spec.shape[1:]) for spec in specs)

    engine = metadata.platform.partition("_")[0]
    return PeerSignature(
        tensors(metadata.inputs), tensors(metadata.outputs), metadata.max_rows, engine
    )


def member_metadata(
    service: ServiceTarget, member: MemberTarget, signature: Signature
) -> ModelMetadata:
    """What a peer is told of one member alone; the inverse of :func:`told_by_peer`."""

    def specs(tensors: Sequence[m.Tensor]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(t.name, t.datatype, (-1, *t.row_shape)) for t in tensors)

    return ModelMetadata(
        name=service.name,
        versions=(service.version,),
        platform=_platform(member, signature),
        inputs=specs(signature.inputs),
        outputs=specs(signature.outputs),
        max_rows=largest_batch(member, signature),
    )


def largest_batch(member: MemberTarget, signature: Signature) -> int:
    """Most rows of a batch: what was warmed, or less where the file itself allows less."""
    return min(member.max_batch, signature.max_rows or member.max_batch)


def may_mix(service: ServiceTarget, signature: Signature) -> bool:
    """Whether a row may be padded beyond its own bucket: nobody forbids it, and no answer is as long as what it was padded
    to, so that clients would see what theirs shared a batch with.
    """
    return all(tensor.mixed for tensor in service.inputs) and not any(
        -1 in tensor.row_shape for tensor in signature.outputs
    )


@dataclass(frozen=True, slots=True)
class Published:
    metadata: ModelMetadata
    outputs: tuple[CombinedOutput, ...]
    buckets: Buckets
    input_names: tuple[InputNames, ...]
    """Per member."""
    staged: tuple[StagedInput, ...] = ()
    """What preprocessing makes, in the order of the members' inputs."""


def publish(target: ServiceTarget, loaded: Sequence[Signature]) -> Published:
    """Join the members' signatures. Raises Incompatible, CombineError.

    Inputs of equal name are one input and must agree. Members that each take a single input take the same
    one, whatever each calls it: the first member's name is published. Where there is preprocessing, its own input
    is published, and it must make all inputs of the members.
    """
    inputs, names = _joined(target.answering, loaded[: len(target.answering)])
    outputs = _outputs(target, loaded[: len(target.answering)])
    largest = [
        largest_batch(member, signature)
        for member, signature in zip(target.members, loaded, strict=True)
    ]
    declared = {tensor.name: tensor.buckets for tensor in target.inputs}
    staged: tuple[StagedInput, ...] = ()
    taken: Sequence[m.Tensor] = inputs
    if target.stage is not None:
        stage = loaded[-1]
        staged = tuple(_staged(tensor, stage, declared.get(tensor.name, ())) for tensor in inputs)
        taken = stage.inputs
        names = (*names, tuple((i, tensor.name) for i, tensor in enumerate(taken)))
    metadata = ModelMetadata(
        name=target.name,
        versions=(target.version,),
        platform="tessera_ensemble"
        if len(target.answering) > 1
        else _platform(target.members[0], loaded[0]),
        inputs=tuple(TensorSpec(t.name, t.datatype, (-1, *t.row_shape)) for t in taken),
        outputs=tuple(
            TensorSpec(o.tensor.name, o.tensor.datatype.value, (-1, *o.tensor.shape))
            for o in outputs
        ),
        max_rows=min(largest),
    )
    buckets = tuple(() if staged else declared.get(tensor.name, ()) for tensor in taken)
    return Published(metadata, outputs, buckets, names, staged)


def _joined(
    members: Sequence[MemberTarget], loaded: Sequence[Signature]
) -> tuple[Sequence[m.Tensor], tuple[InputNames, ...]]:
    """The inputs of all, and per member which of them it takes by which name. Raises Incompatible."""
    inputs: list[m.Tensor] = []
    names: list[InputNames] = []
    single = all(len(signature.inputs) == 1 for signature in loaded)
    for member, signature in zip(members, loaded, strict=True):
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
    return inputs, tuple(names)


def _staged(tensor: m.Tensor, stage: Signature, buckets: Sequence[tuple[int, ...]]) -> StagedInput:
    """Where preprocessing makes ``tensor``. Raises Incompatible."""
    for made in stage.outputs:
        if made.datatype == tensor.datatype and _fits(made.row_shape, tensor.row_shape):
            if -1 in made.row_shape and -1 not in tensor.row_shape:
                buckets = (tensor.row_shape,)  # padded, as a model of one size wants it
            return StagedInput(tensor.name, made.name, tensor.row_shape, buckets)
    found = ", ".join(f"{made.datatype}{list(made.row_shape)}" for made in stage.outputs)
    raise Incompatible(
        f"the members take {tensor.name!r} as {tensor.datatype}{list(tensor.row_shape)}, preprocessing makes "
        f"{found} (rows; -1 is variable)"
    )


def _fits(made: tuple[int, ...], taken: tuple[int, ...]) -> bool:
    if made == ():
        return taken in ((), (1,))
    return len(made) == len(taken) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(made, taken, strict=True)
    )


def learn(service: Service, index: int, signature: Signature) -> None:
    """Tell ``service`` what its member at ``index`` takes and answers: it publishes its own signature once all are
    known, or says why they cannot be served together.
    """
    member = service.members[index]
    member.signature = signature
    member.largest = largest_batch(service.target.members[index], signature)
    member.varies = any(-1 in tensor.row_shape for tensor in signature.inputs)
    member.mixes = may_mix(service.target, signature)
    signatures = [member.signature for member in service.members]
    known = [signature for signature in signatures if signature is not None]
    if service.metadata is not None or len(known) < len(signatures):
        return
    try:
        published = publish(service.target, known)
    except (Incompatible, CombineError) as error:
        service.problem = str(error)
        log.error("%s cannot be served: %s", service.name, error)
        return
    for member, names in zip(service.members, published.input_names, strict=True):
        member.input_names = names
    service.publish(published)


def _position(inputs: Sequence[m.Tensor], tensor: m.Tensor, single: bool) -> int:
    if single:
        return 0
    for position, known in enumerate(inputs):
        if known.name == tensor.name:
            return position
    return len(inputs)


def _outputs(target: ServiceTarget, loaded: Sequence[Signature]) -> tuple[CombinedOutput, ...]:
    members = {
        member.name: [Tensor(t.name, Datatype(t.datatype), t.row_shape) for t in signature.outputs]
        for member, signature in zip(target.answering, loaded, strict=True)
    }
    if len(members) == 1 and target.combine is Combine.NONE:
        # A lone model keeps the names of its outputs: nothing could be confused with anything.
        [(name, outputs)] = members.items()
        return tuple(CombinedOutput(output, ((name, output.name),)) for output in outputs)
    partial = target.on_timeout is OnTimeout.PARTIAL or not all(
        x.required for x in target.answering
    )
    return check_combinable(target.combine, members, partial=partial)


def _platform(member: MemberTarget, signature: Signature) -> str:
    return f"{signature.engine.split('-')[0]}_{member.format.lower()}"
