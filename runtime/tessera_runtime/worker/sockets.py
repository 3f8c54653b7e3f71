"""No sockets for whoever runs a model, but those it was given.

Landlock knows TCP since Linux 6.7, and neither UDP nor, as yet, the paths of Unix sockets, behind which there may be whole
systems (Docker's, D-Bus). So a seccomp filter refuses to make a socket at all: pairs, pipes and what the dispatcher has
handed over go on. On a GPU Unix sockets stay, since CUDA asks with one whether there is an MPS server.

``io_uring`` makes sockets without that system call and is refused as well.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

_SET_MODE_FILTER, _SPEC_ALLOW = 1, 1 << 2
"""linux/seccomp.h. Without the flag, kernels before 5.16 slow down all computing of a process with a filter."""

_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 13
"""The second is EACCES, as Landlock answers."""

_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
"""In struct seccomp_data, little-endian."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
"""linux/bpf_common.h: of words, by constants."""

_X32 = 0x40000000
_IO_URING_SETUP = 425


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of linux/audit.h and asm/unistd.h."""

    architecture: int
    socket: int
    seccomp: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 41, 317),
    "aarch64": _Machine(0xC00000B7, 198, 277),
}

Instruction = tuple[int, int, int, int]
"""Code, what to skip if true, if false, and the constant."""


def program(machine: str, families: Sequence[int]) -> tuple[Instruction, ...]:
    """The filter that lets sockets of ``families`` be made and no others; nothing for machines that are not known."""
    known = _MACHINES.get(machine)
    if known is None:
        return ()
    refuse = 7 + len(families)
    allow = refuse + 1
    return (
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 0, refuse - 2, known.architecture),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, refuse - 4, 0, _X32),
        (_EQUAL, refuse - 5, 0, _IO_URING_SETUP),
        (_EQUAL, 0, allow - 6, known.socket),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        *((_EQUAL, allow - at, 0, family) for at, family in enumerate(families, 8)),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    )


def socket_filter(kind: str) -> bytes:
    """For a worker on a device of ``kind``; empty where nothing is known of this machine's processor."""
    families = (socket.AF_UNIX,) if kind == "cuda" else ()
    return b"".join(struct.pack("=HBBI", *each) for each in program(os.uname().machine, families))


def refuse_sockets(code: bytes) -> None:
    """From now on, and for good, this thread and those that it starts make no sockets but those that ``code`` of
    :func:`socket_filter` lets them.

    After :func:`~tessera_runtime.parent.gain_no_privileges`. Raises OSError where the kernel does not carry it out.
    """
    if not code:
        return
    # struct sock_fprog: how many instructions, and where they are
    place = ctypes.create_string_buffer(code, len(code))
    given = struct.pack("@HP", len(code) // 8, ctypes.addressof(place))
    number = ctypes.c_long(_MACHINES[os.uname().machine].seccomp)
    if _libc.syscall(number, _SET_MODE_FILTER, _SPEC_ALLOW, given):
        reason = ctypes.get_errno()
        raise OSError(reason, f"seccomp: {os.strerror(reason)}")


_libc = ctypes.CDLL(None, use_errno=True)
