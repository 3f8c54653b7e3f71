"""Where the bytes of a request body go: an arena slot, or for small bodies that are no tensor data the heap."""

from __future__ import annotations

from collections.abc import Callable

from tessera_runtime.dataplane import Slot
from tessera_runtime.errors import TooLarge
from tessera_runtime.protocol.chunked import ChunkDecoder

_FIRST = 16 * 1024
"""Bytes of the first slot for a body of unknown length; it doubles from there."""


class HeapSlot:
    """Off the arena, so that a full arena never stands in the way of an unload."""

    __slots__ = ("offset", "view")

    def __init__(self, size: int) -> None:
        self.offset = 0
        self.view = memoryview(bytearray(size))

    def release(self) -> None:
        """Left to the garbage collector."""


class ChunkedBody:
    """A chunked body of at most ``limit`` bytes, decoded into a slot that grows."""

    __slots__ = ("_allocate", "_decoder", "_limit", "_slot", "size")

    def __init__(self, allocate: Callable[[int], Slot], limit: int) -> None:
        self._allocate = allocate
        self._limit = limit
        self._decoder = ChunkDecoder()
        self._slot: Slot | None = None
        self.size = 0
        """Bytes decoded so far."""

    @property
    def done(self) -> bool:
        return self._decoder.done

    def feed(self, data: bytes) -> int:
        """Take what belongs to the body and say how much that was: all of it, unless done.

        Raises ValueError for bad framing, TooLarge, or what the allocation raises.
        """
        pieces, consumed = self._decoder.feed(data)
        for piece in pieces:
            self._append(piece)
        return consumed

    def _append(self, piece: bytes) -> None:
        end = self.size + len(piece)
        if end > self._limit:
            raise TooLarge(f"the chunked body is over the {self._limit} bytes allowed")
        old = self._slot
        if old is None or end > len(old.view):
            self._slot = self._allocate(min(self._limit, max(_FIRST, 2 * end)))
            if old is not None:
                self._slot.view[: self.size] = old.view[: self.size]
                old.release()
        assert self._slot is not None
        self._slot.view[self.size : end] = piece
        self.size = end

    def take(self) -> Slot | None:
        """The slot, now the caller's; None for an empty body, or when it was taken before."""
        slot, self._slot = self._slot, None
        return slot
