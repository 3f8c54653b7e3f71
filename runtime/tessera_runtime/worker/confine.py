"""What a worker process may still reach once somebody's model is in it.

A model that is code, or a parser that a crafted file has taken over, acts as the server's user: without more it reads every
model of the cache, the key of TLS and the server's secret. Landlock (Linux 5.13) lets a process give up such rights for
good, without any privilege: what is not granted below is refused from then on, to it and to all that it starts.

Granted are the programs and libraries of this machine, what describes it (``/proc``, ``/sys``, a few files of ``/etc``),
the devices that it runs on, the model, and one directory of its own to write in. Refused beside other files are signals to
processes outside, where the kernel knows how, and sockets (:mod:`tessera_runtime.worker.sockets`); and what root can do
more than others is dropped. There is no right for what changes a file without opening it, such as chmod.

Rules are of inodes. Those below ``/proc`` are made anew whenever the kernel has forgotten them, so it is granted as a whole;
what is there of other processes' memory is closed to whoever is confined.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tessera_runtime.worker.sockets import refuse_sockets, socket_filter

# include/uapi/linux/landlock.h, https://docs.kernel.org/userspace-api/landlock.html
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 1 << 9, 1 << 10, 1 << 11, 1 << 12
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
ABSTRACT_UNIX_SOCKET, SIGNAL = 1 << 0, 1 << 1

_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""Rights that a rule of a file may name; the others are of directories."""

READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
USE = READ | WRITE_FILE | TRUNCATE | IOCTL_DEV
OWN = (
    READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | REFER
    | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM
)  # fmt: skip

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, the same on all processors that Tessera runs on."""

_VERSION, _PATH_BENEATH = 1, 1

_CAPABILITY_VERSION, CAP_DAC_OVERRIDE = 0x20080522, 1 << 1
"""linux/capability.h"""

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")

_ETC = (
    "ld.so.cache", "ld.so.preload", "nsswitch.conf", "passwd", "group", "hosts", "host.conf", "localtime",
    "timezone", "os-release", "ssl/openssl.cnf", "pki/tls/openssl.cnf", "crypto-policies",
)  # fmt: skip
"""What the C library and OpenSSL read on their own."""

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
"""A path of imports may name anything. What else goes wrong is of the system, and nothing may be left out for that."""

_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_MPS_MEMORY = "/dev/shm"
"""A client of MPS opens what is in the directory that :data:`~tessera_runtime.mps.PIPES` names, and shares memory with
MPS's server in files here. CUDA looks in ``/tmp`` where the variable is not set: nobody gains rights by what anybody can
make there.
"""

TALK = READ | WRITE_FILE
SHARE = TALK | TRUNCATE | MAKE_REG | REMOVE_FILE


@dataclass(frozen=True, slots=True)
class Handled:
    """What a kernel can refuse: bits of its three kinds of rights."""

    files: int
    tcp: int
    scopes: int


@dataclass(frozen=True, slots=True)
class Grant:
    path: str
    rights: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How the workers of a server are confined."""

    abi: int
    """Of :func:`landlock_abi`, from 1 on."""
    scratch: str
    """Where each has a directory of its own."""
    readable: tuple[str, ...] = ()
    """Files and directories that models may read beside their own."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What one worker is about to be confined to."""

    own: str
    """Its directory, which nobody else reads and which goes when it has ended."""
    ruleset: int
    """Descriptor; all but what is known in the worker only is granted in it."""
    abi: int
    kind: str
    """Of its device: ``cpu`` or ``cuda``."""
    sockets: bytes
    """The filter of :func:`~tessera_runtime.worker.sockets.socket_filter`."""


def landlock_abi() -> int:
    """Version of Landlock's interface here; 0 where it is missing, switched off or kept from this process."""
    return max(0, _call(_CREATE_RULESET, None, 0, _VERSION))


def handled(abi: int) -> Handled:
    """All rights that version ``abi``, from 1 on, knows of those that this module does."""
    files = MAKE_SYM * 2 - 1
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        files |= right if abi >= since else 0
    return Handled(
        files,
        BIND_TCP | CONNECT_TCP if abi >= 4 else 0,
        ABSTRACT_UNIX_SOCKET | SIGNAL if abi >= 6 else 0,
    )


def grants(own: str, kind: str, readable: Iterable[str], pipes: str = "") -> Iterator[Grant]:
    """What a worker with the directory ``own`` on a device of ``kind`` keeps, beside its model. ``pipes``: of its MPS
    server, empty without one.
    """
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    python = (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *sys.path)
    for path in dict.fromkeys((*_SYSTEM, *python, *libraries)):
        yield Grant(path, RUN)
    for name in _ETC:
        yield Grant(f"/etc/{name}", READ)
    for path in ("/proc", "/sys", *readable):
        yield Grant(path, READ)
    for path in _DEVICES:
        yield Grant(path, USE)
    if kind == "cuda":
        for device in sorted(Path("/dev").glob("nvidia*")):
            yield Grant(str(device), USE)
        if pipes:
            yield Grant(pipes, TALK)
            yield Grant(_MPS_MEMORY, SHARE)
    yield Grant(own, OWN)


def grants_inside(kind: str, *models: str) -> Iterator[Grant]:
    """What only the worker itself can grant: its first models are told it, and ``/proc/self`` is another one here."""
    for model in models:
        yield Grant(model, READ)
    if kind == "cuda":
        # CUDA names its threads by their files in there, and does not start where it cannot.
        yield Grant("/proc/self", READ | WRITE_FILE | TRUNCATE)


def prepare(limits: Limits, own: str, kind: str, pipes: str = "") -> Sandbox:
    """Grant what is the same in the worker, for one that is about to be forked: done there, its copies of the pages that
    this touches would be the better part of what it has of its own. ``pipes``: as in :func:`grants`. Raises OSError.
    """
    can = handled(limits.abi)
    attributes = struct.pack("=QQQ", can.files, can.tcp, can.scopes)
    ruleset = _checked(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for grant in grants(own, kind, limits.readable, pipes):
            _add(ruleset, grant, can.files)
    except BaseException:
        os.close(ruleset)
        raise
    return Sandbox(own, ruleset, limits.abi, kind, socket_filter(kind))


def confine(sandbox: Sandbox, *models: str) -> None:
    """Give up, for good, everything of :func:`handled` but what is granted and the files ``models``, and sockets;
    paths that do not exist are passed over.

    Of this thread and those that it starts later, after :func:`~tessera_runtime.parent.gain_no_privileges`. Raises
    OSError where the kernel does not carry it out.
    """
    try:
        for grant in grants_inside(sandbox.kind, *models):
            _add(sandbox.ruleset, grant, handled(sandbox.abi).files)
        _checked(_RESTRICT_SELF, sandbox.ruleset, 0)
        refuse_sockets(sandbox.sockets)
    finally:
        os.close(sandbox.ruleset)


def drop_capabilities() -> None:
    """All but the one to pass by the modes of files, which root may need for the very libraries it runs: the others
    reach around Landlock. Of this process and those that it forks, for good. Raises OSError.
    """
    header, held = struct.pack("=Ii", _CAPABILITY_VERSION, 0), ctypes.create_string_buffer(24)
    if _libc.capget(header, held):
        raise OSError(ctypes.get_errno(), "capabilities cannot be read")
    _, permitted, *_ = struct.unpack("=6I", held.raw)
    kept = permitted & CAP_DAC_OVERRIDE
    if _libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capabilities cannot be dropped")


def _add(ruleset: int, grant: Grant, known: int) -> None:
    try:
        beneath = os.open(grant.path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return
        raise
    try:
        rights = grant.rights & known
        if not stat.S_ISDIR(os.fstat(beneath).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, beneath)
        _checked(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        if grant.path != "/proc/self":  # which stays known only while it is held
            os.close(beneath)


def _checked(number: int, *arguments: int | bytes) -> int:
    result = _call(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return result


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _call(number: int, *arguments: int | bytes | None) -> int:
    words = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return int(_libc.syscall(ctypes.c_long(number), *words))
