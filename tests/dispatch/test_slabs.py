"""Blocks of the arena never overlap, never get lost, and always come together again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tessera_runtime.dispatch.slabs import SLAB, SMALLEST, SlabAllocator

SLABS = 6
SIZES = st.one_of(
    st.integers(0, 4_000),
    st.integers(SLAB // 2 - 2, SLAB // 2 + 2),
    st.integers(SLAB - 1, 3 * SLAB),
    st.just(SLABS * SLAB + 1),
)


class ArenaMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.arena = SlabAllocator(SLABS * SLAB)
        self.blocks: dict[int, int] = {}

    @rule(nbytes=SIZES)
    def allocate(self, nbytes: int) -> None:
        offset = self.arena.allocate(nbytes)
        if offset is None:
            return
        end = offset + nbytes
        assert 0 <= offset <= end <= self.arena.size
        assert offset % SMALLEST == 0
        assert offset not in self.blocks
        assert all(end <= o or o + n <= offset for o, n in self.blocks.items() if n and nbytes)
        self.blocks[offset] = nbytes

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.blocks)))
        del self.blocks[offset]
        self.arena.release(offset)

    @rule()
    def everything_fits_again_once_all_is_released(self) -> None:
        for offset in self.blocks:
            self.arena.release(offset)
        self.blocks.clear()
        whole = self.arena.allocate(self.arena.size)
        assert whole == 0
        self.arena.release(whole)

    @invariant()
    def counts_what_it_gave(self) -> None:
        assert sum(self.blocks.values()) <= self.arena.in_use <= self.arena.size
        assert (self.arena.in_use == 0) == (not self.blocks)


ArenaMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True
)
TestArenaMachine = ArenaMachine.TestCase


@given(st.integers(1, SLAB // 2))
@settings(deadline=None, max_examples=30)
def test_no_more_than_half_of_a_block_is_wasted(nbytes: int):
    arena = SlabAllocator(SLAB)
    assert arena.allocate(nbytes) is not None
    assert arena.in_use <= max(SMALLEST, 2 * nbytes - 1)


def test_all_of_the_arena_can_be_given_out():
    arena = SlabAllocator(2 * SLAB)
    blocks = [arena.allocate(SMALLEST) for _ in range(2 * SLAB // SMALLEST)]
    assert len(set(blocks)) == len(blocks)
    assert None not in blocks
    assert arena.allocate(1) is None


def test_a_change_of_sizes_strands_no_memory():
    arena = SlabAllocator(SLAB)
    for nbytes in (100, 5_000, 200_000, SLAB, 100):
        offset = arena.allocate(nbytes)
        assert offset is not None
        arena.release(offset)


def test_releasing_what_was_never_given_is_an_error():
    with pytest.raises(ValueError, match="offset 0"):
        SlabAllocator(SLAB).release(0)


@pytest.mark.parametrize("size", [0, SLAB - 1, SLAB + 1, -SLAB])
def test_the_size_is_whole_slabs(size: int):
    with pytest.raises(ValueError, match="multiple"):
        SlabAllocator(size)
