"""Input memory: counted, bounded, and read-only for everybody but the dispatcher."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tessera_runtime.dispatch.arena import InputArena
from tessera_runtime.dispatch.slabs import SLAB
from tessera_runtime.errors import Overloaded, TooLarge
from tessera_runtime.memory import UntrustedMemory, create_region, map_readonly

WRITES = """
import mmap, os, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
shared = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
assert shared[:5] == b"hello"
for attempt in (
    lambda: mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    lambda: os.pwrite(fd, b"x", 0),
    lambda: os.ftruncate(fd, 0),
    lambda: os.ftruncate(fd, 2 * size),
    lambda: mmap.mmap(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), size),
):
    try:
        attempt()
    except PermissionError:
        continue
    sys.exit("it could be changed")
"""


@pytest.fixture
def arena() -> Iterator[InputArena]:
    arena = InputArena(2 * SLAB, SLAB)
    yield arena
    os.close(arena.fd)


def test_another_process_can_read_it_and_change_nothing(arena: InputArena):
    slot = arena.allocate(5)
    slot.view[:] = b"hello"
    assert slot.offset == 0
    tried = subprocess.run(
        [sys.executable, "-c", WRITES, str(arena.fd), str(arena.size)],
        pass_fds=(arena.fd,),
        capture_output=True,
        text=True,
        check=False,
    )
    assert tried.returncode == 0, tried.stderr
    slot.view[:] = b"later"  # the mapping made before the seal stays writable


def test_a_block_is_free_once_every_holder_has_released_it(arena: InputArena):
    slot = arena.allocate(100)
    slot.retain()
    slot.release()
    assert arena.in_use > 0
    slot.release()
    assert arena.in_use == 0
    with pytest.raises(RuntimeError, match="twice"):
        slot.release()


def test_one_request_and_all_together_are_bounded(arena: InputArena):
    with pytest.raises(TooLarge, match=f"found {SLAB + 1} bytes"):
        arena.allocate(SLAB + 1)
    slots = [arena.allocate(SLAB) for _ in range(2)]
    with pytest.raises(Overloaded, match="in use"):
        arena.allocate(1)
    slots[0].release()
    arena.allocate(1)


def test_the_size_is_rounded_up_to_whole_slabs():
    arena = InputArena(1, 1)
    assert arena.size == SLAB
    os.close(arena.fd)


# Regions of other processes


def test_a_sealed_region_is_mapped_for_reading_only():
    fd, region = create_region("test", mmap.PAGESIZE)
    region[:3] = b"abc"
    mapped = map_readonly(fd, mmap.PAGESIZE)
    assert mapped[:3] == b"abc"
    with pytest.raises(TypeError):
        mapped[0] = 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_region_that_could_shrink_is_refused():
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, mmap.PAGESIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    with pytest.raises(UntrustedMemory, match="not sealed"):
        map_readonly(fd, mmap.PAGESIZE)


def test_a_region_shorter_than_announced_is_refused():
    fd, _ = create_region("test", mmap.PAGESIZE)
    with pytest.raises(UntrustedMemory, match="were announced"):
        map_readonly(fd, 2 * mmap.PAGESIZE)


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_what_is_no_memory_region_is_refused_and_closed(kind: str, tmp_path):
    if kind == "pipe":
        fd, other = os.pipe()
    else:
        fd, other = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT), None
    with pytest.raises(UntrustedMemory):
        map_readonly(fd, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    if other is not None:
        os.close(other)


@pytest.mark.parametrize("size", [0, -1])
def test_a_region_of_no_bytes_is_refused(size: int):
    fd, _ = create_region("test", mmap.PAGESIZE)
    with pytest.raises(UntrustedMemory):
        map_readonly(fd, size)
