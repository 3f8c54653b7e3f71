"""Shared memory that travels as a file descriptor, and what the allocator does with freed memory.

Memory comes from ``memfd_create``: it has no name that could survive a SIGKILL, and no resource tracker
(that of ``multiprocessing.shared_memory`` unlinks segments that other processes still use before Python
3.13). Whoever creates a region seals its size, and whoever maps somebody else's checks that seal first:
reading past the end of a shrunk file kills the reader.

By default glibc's allocator gives large blocks back to the kernel as soon as they are freed. A network frees its
intermediate results with every batch, and would have their pages cleared and mapped anew for the next.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os

F_SEAL_FUTURE_WRITE = 0x0010
"""linux/fcntl.h (5.1): no new writable mapping, the existing ones stay. The fcntl module names it from 3.13."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""malloc.h; mallopt(3)."""

MOST_INT = 2**31 - 1

_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class UntrustedMemory(Exception):
    """A region offered by another process is not sealed, or not as long as announced."""


def create_region(name: str, size: int) -> tuple[int, mmap.mmap]:
    """A new anonymous region of ``size`` bytes that cannot be resized, and its writable mapping."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FIXED_SIZE)
    return fd, mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def seal_for_readers(fd: int) -> None:
    """From now on ``fd`` can only be mapped read-only; mappings that exist keep their rights."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)


def map_readonly(fd: int, size: int) -> mmap.mmap:
    """Map a region that another process owns. Closes ``fd``. Raises UntrustedMemory."""
    try:
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise UntrustedMemory("the region is not sealed against shrinking")
        length = os.fstat(fd).st_size
        if not 0 < size <= length:
            raise UntrustedMemory(f"{size} bytes were announced, the region has {length}")
        return mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
    except OSError as error:
        raise UntrustedMemory(f"not a sealable memory region: {error.strerror}") from error
    finally:
        os.close(fd)


def keep_freed_memory() -> None:
    """From now on memory that is freed waits in this process for its next use, in one arena for all threads.
    Does nothing where the allocator is not glibc's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, MOST_INT)
        mallopt(M_TRIM_THRESHOLD, MOST_INT)


def give_back_freed_memory() -> None:
    """Give what is free now to the kernel, where the allocator is glibc's."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
