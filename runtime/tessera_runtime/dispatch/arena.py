"""The input arena: where request tensors lie from the socket until the last worker has gathered them.

The dispatcher maps it writable and then seals it, so that workers, who run other people's models, can
only map it read-only.
"""

from __future__ import annotations

from tessera_runtime.dispatch.slabs import SLAB, SlabAllocator
from tessera_runtime.errors import Overloaded, TooLarge
from tessera_runtime.memory import create_region, seal_for_readers


class ArenaSlot:
    """A block of the input arena, counted: the request holds it, and so does each batch that reads it."""

    __slots__ = ("_arena", "_holders", "nbytes", "offset")

    def __init__(self, arena: InputArena, offset: int, nbytes: int) -> None:
        self._arena = arena
        self._holders = 1
        self.offset = offset
        self.nbytes = nbytes

    @property
    def view(self) -> memoryview:
        return self._arena.memory[self.offset : self.offset + self.nbytes]

    def retain(self) -> None:
        self._holders += 1

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._arena.free(self.offset)
        elif self._holders < 0:
            raise RuntimeError("a slot of the input arena was released twice")


class InputArena:
    """Where request tensors lie from the socket until the last worker has gathered them."""

    def __init__(self, size: int, largest: int) -> None:
        """``size``: bytes in all, rounded up to whole slabs; ``largest``: bytes of the largest block."""
        size = -(-size // SLAB) * SLAB
        self._blocks = SlabAllocator(size)
        self._largest = largest
        self.size = size
        self.fd, self._map = create_region("tessera-inputs", size)
        self.memory = memoryview(self._map)
        seal_for_readers(self.fd)

    @property
    def in_use(self) -> int:
        """Bytes held by requests and batches."""
        return self._blocks.in_use

    def allocate(self, nbytes: int) -> ArenaSlot:
        """A block of ``nbytes``. Raises TooLarge over the limit of one block, Overloaded when full."""
        if nbytes > self._largest:
            raise TooLarge(
                f"found {nbytes} bytes in one request, at most {self._largest} are allowed"
            )
        offset = self._blocks.allocate(nbytes)
        if offset is None:
            raise Overloaded(
                f"no room for {nbytes} bytes of input: {self.in_use} of {self.size} are in use"
            )
        return ArenaSlot(self, offset, nbytes)

    def free(self, offset: int) -> None:
        self._blocks.release(offset)
