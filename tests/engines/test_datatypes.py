import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_runtime.datatypes import (
    DATATYPES,
    datatype_of,
    decode_bytes,
    element_size,
    encode_bytes,
)

SIZES = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4,
    "INT64": 8, "FP16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
}  # fmt: skip


def test_every_datatype_has_its_size_and_comes_back_from_numpy():
    assert DATATYPES.keys() == SIZES.keys()
    for name, dtype in DATATYPES.items():
        assert element_size(name) == SIZES[name]
        assert datatype_of(dtype) == name


def test_text_arrays_are_bytes_and_big_endian_is_the_same_datatype():
    assert datatype_of(np.dtype("S5")) == datatype_of(np.dtype("U5")) == "BYTES"
    assert datatype_of(np.dtype(">f4")) == "FP32"


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "V4"])
def test_other_numpy_types_are_refused_by_name(dtype):
    with pytest.raises(ValueError, match="no datatype for numpy"):
        datatype_of(np.dtype(dtype))


def test_unknown_datatype_lists_what_is_allowed():
    with pytest.raises(ValueError, match="'BF16'; allowed: BOOL"):
        element_size("BF16")


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_byte_elements_survive_encoding(elements):
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    assert decode_bytes(encode_bytes(array), len(elements)).tolist() == elements


def test_encoding_follows_the_wire_layout():
    array = np.array([[b"ab", "ü"], [b"", b"\0"]], dtype=object)
    assert encode_bytes(array) == b"\2\0\0\0ab\2\0\0\0\xc3\xbc\0\0\0\0\1\0\0\0\0"


def test_encoding_refuses_other_objects():
    with pytest.raises(ValueError, match="element 1 is int"):
        encode_bytes(np.array([b"a", 7], dtype=object))


@given(st.binary(max_size=40), st.integers(-2, 50))
def test_any_buffer_either_decodes_exactly_or_is_refused(buffer, count):
    try:
        array = decode_bytes(buffer, count)
    except ValueError:
        return
    assert len(array) == count
    assert encode_bytes(array) == buffer


@pytest.mark.parametrize(
    ("buffer", "count", "message"),
    [
        (b"\1\0\0\0", 1, "length 1 but only 0"),
        (b"\xff\xff\xff\xff" + b"x" * 8, 1, "length 4294967295"),
        (b"\0\0\0\0\0", 1, "1 bytes left over"),
        (b"\1\0\0\0a\0\0\0", 2, "cut off at byte 5"),
        (b"", 10**12, "need at least"),
        (b"", -1, "-1 elements"),
    ],
)
def test_damaged_byte_tensors_say_what_is_wrong(buffer, count, message):
    with pytest.raises(ValueError, match=message):
        decode_bytes(buffer, count)
