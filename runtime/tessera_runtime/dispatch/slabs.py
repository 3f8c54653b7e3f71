"""Where in an arena a block goes.

The arena is cut into slabs; a slab serves blocks of one size (a power of two), or, with its neighbours, one
large block. A slab whose blocks are all free serves any size again, so a change of payload sizes cannot
strand the memory. Offsets only: no memory is touched here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SLAB = 1 << 20
"""1 MiB: one slab holds 2,048 of the smallest blocks, and a 64 MiB body takes 64 slabs."""

SMALLEST = 512
"""Bytes of the smallest block: eight cache lines, below which bookkeeping outweighs the data."""


@dataclass
class _Slab:
    block: int
    """Bytes of each block; for the first slab of a large block, the length of the whole run."""
    free: list[int] = field(default_factory=list)
    used: int = 0


class SlabAllocator:
    """Blocks of a region of ``size`` bytes, a multiple of :data:`SLAB`."""

    def __init__(self, size: int) -> None:
        if size < SLAB or size % SLAB:
            raise ValueError(f"arena size must be a positive multiple of {SLAB}, found {size}")
        self.size = size
        self.in_use = 0
        """Bytes handed out, rounded up to block sizes."""
        self._slabs: list[_Slab | None] = [None] * (size // SLAB)
        self._partial: dict[int, dict[int, _Slab]] = {}
        """Slabs with a free block, by block size."""

    def allocate(self, nbytes: int) -> int | None:
        """Offset of a block of at least ``nbytes``, or None when there is no room."""
        if nbytes > SLAB // 2:
            return self._allocate_run(nbytes)
        block = max(SMALLEST, 1 << (nbytes - 1).bit_length()) if nbytes else SMALLEST
        partial = self._partial.setdefault(block, {})
        if not partial:
            index = self._find_run(1)
            if index is None:
                return None
            start = index * SLAB
            slab = _Slab(block, list(range(start + SLAB - block, start - 1, -block)))
            self._slabs[index] = partial[index] = slab
        index, slab = next(iter(partial.items()))
        offset = slab.free.pop()
        slab.used += 1
        if not slab.free:
            del partial[index]
        self.in_use += block
        return offset

    def release(self, offset: int) -> None:
        """Give back the block at ``offset``, as :meth:`allocate` returned it."""
        index = offset // SLAB
        slab = self._slabs[index]
        if slab is None:
            raise ValueError(f"no block is in use at offset {offset}")
        self.in_use -= slab.block
        if slab.block > SLAB // 2:
            for i in range(index, index + slab.block // SLAB):
                self._slabs[i] = None
            return
        slab.free.append(offset)
        slab.used -= 1
        partial = self._partial[slab.block]
        partial[index] = slab
        # One empty slab per size stays, so that a lone request does not cut a slab anew each time.
        if slab.used == 0 and len(partial) > 1:
            del partial[index]
            self._slabs[index] = None

    def _allocate_run(self, nbytes: int) -> int | None:
        count = -(-nbytes // SLAB)
        index = self._find_run(count)
        if index is None:
            return None
        run = _Slab(count * SLAB, used=1)
        for i in range(index, index + count):
            self._slabs[i] = run
        self.in_use += run.block
        return index * SLAB

    def _find_run(self, count: int) -> int | None:
        """First fit over the slabs; when there is none, after giving up the empty slabs kept for reuse."""
        found = self._first_fit(count)
        if found is None and self._reclaim():
            found = self._first_fit(count)
        return found

    def _first_fit(self, count: int) -> int | None:
        run = 0
        for index, slab in enumerate(self._slabs):
            run = run + 1 if slab is None else 0
            if run == count:
                return index - count + 1
        return None

    def _reclaim(self) -> bool:
        reclaimed = False
        for partial in self._partial.values():
            for index in [i for i, slab in partial.items() if slab.used == 0]:
                del partial[index]
                self._slabs[index] = None
                reclaimed = True
        return reclaimed
