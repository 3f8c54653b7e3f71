"""What was compiled for variants of models on this node, by its key.

::

    <root>/<key>            complete, read-only
    <root>/<key>.<n>.partial  being copied

An artefact is a program, so what is loaded must have been built here. The store is a directory that only the server's user
writes into, which is checked, and workers are confined to directories of their own: what one has built it hands over as a
descriptor, and the dispatcher copies it under a name that the worker does not choose. Nothing is ever taken from elsewhere.

A descriptor that was given out holds a shared lock, and only files that can be locked alone are evicted, the one that was used
longest ago first: as in the model cache (:mod:`tessera_runtime.models.cache`), in whose directory the store may lie.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tessera_core.tuning.key import BuildFacts, DeviceFacts, artefact_key
from tessera_core.tuning.variants import UNTUNED, parse
from tessera_runtime.target import DeviceTarget, MemberTarget, TensorTarget

RECIPE = 1
"""Of how artefacts are built: another number, and all are built anew."""

LIBRARIES = ("torch", "triton")
"""That take part in what is compiled."""

MOST_BYTES = 8 << 30
"""Of one artefact: it has the weights in it."""

COPY_BYTES = 1 << 20


class ArtefactRefused(Exception):
    """It is not kept, or the store is not fit to be loaded from; the text says why."""


class ArtefactStore:
    """Made when the server starts; the directory is there from then on."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Raises ArtefactRefused for a directory that others write into."""
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = root.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022 or root.is_symlink():
            raise ArtefactRefused(
                f"{root}: only the user of the server may write into it, for programs are loaded from "
                "there; choose another directory with --artefacts"
            )
        self._root = root
        self._max_bytes = max_bytes
        self._numbers = itertools.count()
        for left in root.glob("*.partial"):
            left.unlink(missing_ok=True)

    def open(self, key: str) -> int | None:
        """A descriptor of the artefact, which stays until that is closed; None where it was not built, or was evicted. The
        empty key is of what needs none.
        """
        if not key:
            return None
        try:
            found = os.open(self._root / key, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        fcntl.flock(found, fcntl.LOCK_SH)
        status = os.fstat(found)
        if status.st_nlink == 0 or status.st_uid != os.geteuid():
            os.close(found)
            return None
        os.utime(found)
        return found

    @contextmanager
    def found(self, key: str) -> Iterator[int | None]:
        """As :meth:`open`, and closed at the end."""
        artefact = self.open(key)
        try:
            yield artefact
        finally:
            if artefact is not None:
                os.close(artefact)

    def keep(self, key: str, built: int) -> None:
        """Copy what the descriptor ``built`` has, whole or not at all. Whoever could still write there must be gone. Blocks.
        Raises ArtefactRefused, OSError.
        """
        size = os.fstat(built).st_size
        most = min(MOST_BYTES, self._max_bytes)
        if not 0 < size <= most:
            raise ArtefactRefused(f"the artefact has {size} bytes; allowed: 1 to {most}")
        self._make_room(size)
        partial = self._root / f"{key}.{next(self._numbers)}.partial"
        try:
            with open(built, "rb", closefd=False) as source, open(partial, "xb") as target:
                source.seek(0)
                shutil.copyfileobj(source, target, COPY_BYTES)
                target.flush()
                os.fsync(target.fileno())
                os.fchmod(target.fileno(), 0o400)
            os.rename(partial, self._root / key)
        finally:
            partial.unlink(missing_ok=True)

    def _make_room(self, needed: int) -> None:
        entries = sorted(self._entries(), key=lambda entry: entry.used_ns)
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total + needed <= self._max_bytes:
                return
            if _remove_unused(entry.path):
                total -= entry.size
        if total + needed > self._max_bytes:
            raise ArtefactRefused(
                f"no room for an artefact of {needed} bytes: {total} of {self._max_bytes} are in use"
            )

    def _entries(self) -> Iterator[_Entry]:
        for path in self._root.iterdir():
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            yield _Entry(path, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    size: int
    used_ns: int


def _remove_unused(path: Path) -> bool:
    try:
        found = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(found)
    return True


def key_of(
    member: MemberTarget, inputs: Sequence[TensorTarget], device: DeviceTarget, variant: str
) -> str:
    """Of what is built for ``variant`` of a member on ``device`` of this machine; empty where nothing is. Raises ValueError
    for a variant that there is not.
    """
    if variant == UNTUNED or not parse(variant).compiles:
        return ""
    return artefact_key(
        BuildFacts(
            model_digest=member.digest,
            format=member.format,
            variant=variant,
            inputs=tuple((t.name, t.datatype, t.row_shape) for t in inputs),
            device=device_facts(device),
            libraries=tuple((name, _version(name)) for name in LIBRARIES),
            recipe=RECIPE,
        )
    )


def device_facts(device: DeviceTarget) -> DeviceFacts:
    """Of a share of this machine: a processor's are looked up, a GPU's were told."""
    if device.kind == "cpu":
        product, instructions = _processor()
        return DeviceFacts(
            kind="cpu",
            product=product,
            instructions=instructions,
            share=f"cpu-{device.threads}",
            units=device.threads,
            memory_mib=0,  # what is compiled for a processor does not depend on it
            driver="-".join(platform.libc_ver()),
        )
    return DeviceFacts(
        kind=device.kind,
        product=device.product or device.id,
        instructions="",
        share=f"{device.slice}:{device.mps_clients}",
        units=device.sm_count,
        memory_mib=device.memory_mib,
        driver=device.driver,
    )


@functools.cache
def _processor() -> tuple[str, str]:
    """Model name and instruction sets, as the kernel tells them; on other machines than x86 what Python knows."""
    said: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        said.setdefault(name.strip(), value.strip())
    flags = said.get("flags") or said.get("Features") or ""
    return said.get("model name", platform.machine()), " ".join(sorted(flags.split()))


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""
