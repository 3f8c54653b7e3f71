"""What a preprocessing stage answered becomes the members' inputs in the arena."""

from __future__ import annotations

import numpy as np
import pytest

from tessera_runtime.dispatch.arena import InputArena
from tessera_runtime.dispatch.stage import FRAMES, StagedInput, staged
from tessera_runtime.errors import InvalidRequest, Overloaded, ServeError, TooLarge

MIB = 1 << 20
ARENA = 64 * MIB
FEATURES = StagedInput("x", "features", (-1, 4), ())
LENGTHS = StagedInput("n", FRAMES, (1,), ())


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).random(shape, dtype=np.float32)


def test_tensors_lie_in_the_arena_as_a_clients_would() -> None:
    arena = InputArena(ARENA, MIB)
    made = values(2, 3, 4, 5)
    found = staged({"tensor": made}, [StagedInput("x", "tensor", (3, 4, 5), ())], arena.allocate)
    (tensor,) = found.inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("x", "FP32", (2, 3, 4, 5))
    start = tensor.slot.offset + tensor.start
    there = np.frombuffer(arena.memory[start : start + tensor.nbytes], np.float32)
    np.testing.assert_array_equal(there.reshape(made.shape), made)
    assert found.row_shapes == ((3, 4, 5),)
    assert found.key is None, "requests of one shape share batches"
    for slot in found.slots:
        slot.release()
    assert arena.in_use == 0


def test_padding_of_the_batch_mates_is_cut_off_and_rows_keep_their_lengths() -> None:
    arena = InputArena(ARENA, MIB)
    outputs = {"features": values(2, 90, 4), FRAMES: np.array([30, 50], np.int64)}
    found = staged(outputs, [FEATURES, LENGTHS], arena.allocate)
    assert [each.shape for each in found.inputs] == [(2, 50, 4), (2, 1)]
    assert [each.datatype for each in found.inputs] == ["FP32", "INT64"]
    assert found.key == found.row_shapes == ((50, 4), (1,))


def test_rows_are_padded_up_to_a_bucket() -> None:
    arena = InputArena(ARENA, MIB)
    outputs = {"features": values(1, 60, 4), FRAMES: np.array([60], np.int64)}
    wanted = StagedInput("x", "features", (-1, 4), ((50, 4), (100, 4)))
    found = staged(outputs, [wanted], arena.allocate)
    assert (found.inputs[0].shape, found.row_shapes) == ((1, 60, 4), ((100, 4),))
    longer = {"features": values(1, 101, 4), FRAMES: np.array([101], np.int64)}
    with pytest.raises(InvalidRequest, match="the largest padding bucket"):
        staged(longer, [wanted], arena.allocate)


@pytest.mark.parametrize(
    ("size", "largest", "error"), [(64 << 10, MIB, Overloaded), (ARENA, 8 << 10, TooLarge)]
)
def test_nothing_is_kept_of_what_has_no_room(
    size: int, largest: int, error: type[ServeError]
) -> None:
    arena = InputArena(size, largest)
    outputs = {"small": values(1, 4), "large": values(1, 32 << 10)}
    wanted = [StagedInput("a", "small", (4,), ()), StagedInput("b", "large", (32 << 10,), ())]
    held = arena.allocate(4096)
    before = arena.in_use
    with pytest.raises(error):
        staged(outputs, wanted, arena.allocate)
    assert arena.in_use == before
    held.release()
