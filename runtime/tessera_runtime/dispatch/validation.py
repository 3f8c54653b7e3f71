"""Whether a call fits what the service takes: names, datatypes, shapes, element counts, rows."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from tessera_core.batching.policy import Padded
from tessera_runtime.dataplane import InferCall, InputTensor, ModelMetadata, TensorSpec
from tessera_runtime.datatypes import DATATYPES
from tessera_runtime.dispatch.request import Shape
from tessera_runtime.errors import InvalidRequest, NotFound

Buckets = Sequence[Sequence[tuple[int, ...]]]
"""For each input, the row shapes that variable rows are padded up to."""


def check(call: InferCall, metadata: ModelMetadata, buckets: Buckets) -> Shape:
    """What the batcher needs to know of ``call``. Raises InvalidRequest, NotFound for an unknown output."""
    given = {tensor.name: index for index, tensor in enumerate(call.inputs)}
    if len(given) != len(call.inputs):
        raise InvalidRequest("inputs: the same name is given twice")
    if len(given) != len(metadata.inputs) or any(i.name not in given for i in metadata.inputs):
        wanted = [spec.name for spec in metadata.inputs]
        raise InvalidRequest(
            f"inputs: found {sorted(given)}, model {metadata.name} takes exactly {wanted}"
        )
    order = tuple([given[spec.name] for spec in metadata.inputs])
    inputs = [call.inputs[index] for index in order]
    rows = inputs[0].shape[0] if inputs[0].shape else 0
    if not 1 <= rows <= metadata.max_rows:
        raise InvalidRequest(
            f"inputs.{inputs[0].name}.shape: found {list(inputs[0].shape)}, the first dimension is the "
            f"number of rows, 1 to {metadata.max_rows}"
        )
    row_shapes: list[tuple[int, ...]] = []
    for tensor, spec, sizes in zip(inputs, metadata.inputs, buckets, strict=True):
        _check_tensor(tensor, spec, rows)
        row_shape = tensor.shape[1:]
        if -1 in spec.shape[1:]:
            row_shape = bucket_of(tensor.name, tensor.datatype, row_shape, sizes)
        row_shapes.append(row_shape)
    if call.outputs:
        known = {spec.name for spec in metadata.outputs}
        for name in call.outputs:
            if name not in known:
                raise NotFound(f"outputs: {name!r} is not one of {sorted(known)}")
    key = key_of(row_shapes, [spec.shape[1:] for spec in metadata.inputs], buckets)
    same = order == tuple(range(len(order)))
    return Shape(None if same else order, rows, tuple(row_shapes), key)


def key_of(
    row_shapes: Sequence[tuple[int, ...]], declared: Sequence[tuple[int, ...]], buckets: Buckets
) -> Hashable:
    """What says which work may share a batch; ``row_shapes`` are padded, in the ``declared`` ones -1 is variable."""
    variable = [index for index, shape in enumerate(declared) if -1 in shape]
    if not variable:
        return None
    shapes = tuple(row_shapes)
    if not all(buckets[index] for index in variable):
        return shapes
    longest = sum([max([math.prod(bucket) for bucket in buckets[index]]) for index in variable])
    return Padded(sum([math.prod(shapes[index]) for index in variable]) / longest, shapes)


def _check_tensor(tensor: InputTensor, spec: TensorSpec, rows: int) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidRequest(
            f"inputs.{tensor.name}.datatype: found {tensor.datatype}, expected {spec.datatype}"
        )
    shape = tensor.shape
    fits = len(shape) == len(spec.shape) and all(
        size == wanted or (wanted == -1 and size >= 0)
        for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidRequest(
            f"inputs.{tensor.name}.shape: found {list(shape)}, expected {list(spec.shape)} (-1 is any size)"
        )
    if shape[0] != rows:
        raise InvalidRequest(
            f"inputs.{tensor.name}.shape: found {shape[0]} rows, the other inputs have {rows}"
        )
    if tensor.datatype != "BYTES":
        needed = math.prod(shape) * DATATYPES[tensor.datatype].itemsize
        if tensor.nbytes != needed:
            raise InvalidRequest(
                f"inputs.{tensor.name}: found {tensor.nbytes} bytes of data, shape {list(shape)} of "
                f"{tensor.datatype} takes {needed}"
            )


def bucket_of(
    name: str, datatype: str, row_shape: tuple[int, ...], buckets: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    """What rows of ``row_shape`` are padded up to. Raises InvalidRequest over the largest."""
    if not buckets:
        return row_shape
    if datatype == "BYTES":
        return row_shape  # padding text with empty strings would change its meaning
    for bucket in buckets:
        if all(size <= limit for size, limit in zip(row_shape, bucket, strict=True)):
            return bucket
    raise InvalidRequest(
        f"inputs.{name}.shape: found rows of {list(row_shape)}, the largest padding bucket is "
        f"{list(buckets[-1])}"
    )
