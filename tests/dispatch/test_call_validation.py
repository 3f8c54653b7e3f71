"""What a call must look like to be queued, and what the batcher learns of it."""

from __future__ import annotations

from dataclasses import replace as changed

import pytest
from msgspec.structs import replace

from tessera_core.batching.policy import Padded
from tessera_runtime.dataplane import InferCall, InputTensor, ModelMetadata, TensorSpec
from tessera_runtime.dispatch.validation import check, key_of
from tessera_runtime.errors import InvalidRequest, NotFound

METADATA = ModelMetadata(
    name="test.m",
    versions=("1",),
    platform="python_python",
    inputs=(
        TensorSpec("x", "FP32", (-1, 4)),
        TensorSpec("ids", "INT64", (-1, -1)),
        TensorSpec("text", "BYTES", (-1, 1)),
    ),
    outputs=(TensorSpec("y", "FP32", (-1, 4)), TensorSpec("z", "FP32", (-1, 1))),
    max_rows=8,
)
NO_BUCKETS = ((), (), ())


class NoSlot:
    view = memoryview(bytearray())
    offset = 0

    def release(self) -> None: ...


SLOT = NoSlot()


def tensor(name: str, datatype: str, shape: tuple[int, ...], nbytes: int) -> InputTensor:
    return InputTensor(name, datatype, shape, SLOT, 0, nbytes)


X = tensor("x", "FP32", (2, 4), 32)
IDS = tensor("ids", "INT64", (2, 3), 48)
TEXT = tensor("text", "BYTES", (2, 1), 17)


def call(*inputs: InputTensor, outputs: tuple[str, ...] = ()) -> InferCall:
    return InferCall("test.m", "", "", inputs, (SLOT,), outputs)


def test_inputs_are_found_in_any_order():
    assert check(call(X, IDS, TEXT), METADATA, NO_BUCKETS).order is None
    shape = check(call(TEXT, X, IDS), METADATA, NO_BUCKETS)
    assert shape.order == (1, 2, 0)
    assert shape.rows == 2
    assert shape.row_shapes == ((4,), (3,), (1,))
    assert shape.key == ((4,), (3,), (1,))


def test_fixed_shapes_need_no_key():
    fixed = changed(METADATA, inputs=METADATA.inputs[:1])
    assert check(call(X), fixed, ((),)).key is None


def test_the_first_bucket_that_holds_a_row_is_taken():
    buckets = ((), ((2,), (4,), (8,)), ())
    for width, bucket in ((0, 2), (2, 2), (3, 4), (8, 8)):
        ids = tensor("ids", "INT64", (2, width), 16 * width)
        assert check(call(X, ids, TEXT), METADATA, buckets).row_shapes[1] == (bucket,)


def test_padded_rows_are_known_by_their_share_of_the_longest() -> None:
    declared = ((3,), (-1,), (-1, 2))
    buckets = ((), ((4,), (8,)), ((2, 2), (6, 2)))
    longest = key_of(((3,), (8,), (6, 2)), declared, buckets)
    shorter = key_of(((3,), (4,), (2, 2)), declared, buckets)
    assert longest == Padded(1.0, ((3,), (8,), (6, 2)))
    assert shorter == Padded(0.4, ((3,), (4,), (2, 2)))
    assert longest.holds(shorter)
    assert not shorter.holds(longest)


def test_rows_that_are_not_padded_share_batches_with_their_equals_only() -> None:
    declared = ((-1,), (-1,))
    assert key_of(((4,), (3,)), declared, (((4,),), ())) == ((4,), (3,))
    assert key_of(((4,),), ((4,),), ((),)) is None


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ((X, IDS), r"found \['ids', 'x'\]"),
        ((X, IDS, TEXT, replace(X, name="extra")), "takes exactly"),
        ((X, IDS, replace(TEXT, name="texts")), "takes exactly"),
        ((X, X, IDS), "given twice"),
        ((replace(X, datatype="FP16"), IDS, TEXT), r"x\.datatype: found FP16, expected FP32"),
        ((replace(X, shape=(2, 5)), IDS, TEXT), r"x\.shape: found \[2, 5\], expected \[-1, 4\]"),
        ((replace(X, shape=(2, 4, 1)), IDS, TEXT), r"x\.shape"),
        ((replace(X, shape=()), IDS, TEXT), "number of rows, 1 to 8"),
        ((replace(X, shape=(0, 4), nbytes=0), IDS, TEXT), "1 to 8"),
        ((replace(X, shape=(9, 4), nbytes=144), IDS, TEXT), "1 to 8"),
        (
            (X, replace(IDS, shape=(3, 2)), TEXT),
            r"ids\.shape: found 3 rows, the other inputs have 2",
        ),
        ((X, replace(IDS, shape=(2, -3)), TEXT), r"ids\.shape"),
        ((X, replace(IDS, shape=(2, 99), nbytes=1584), TEXT), "largest padding bucket is"),
        ((replace(X, nbytes=31), IDS, TEXT), "found 31 bytes of data, shape .* takes 32"),
        ((X, replace(IDS, nbytes=0), TEXT), "takes 48"),
        ((X, IDS, replace(TEXT, shape=(2, 2))), r"text\.shape"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_found(inputs, reason: str):
    with pytest.raises(InvalidRequest, match=reason):
        check(call(*inputs), METADATA, ((), ((4,),), ()))


def test_an_unknown_output_is_not_found():
    check(call(X, IDS, TEXT, outputs=("z", "y")), METADATA, NO_BUCKETS)
    with pytest.raises(NotFound, match=r"'w' is not one of \['y', 'z'\]"):
        check(call(X, IDS, TEXT, outputs=("y", "w")), METADATA, NO_BUCKETS)
