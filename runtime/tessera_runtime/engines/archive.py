"""What a model file is, and whether its container can be trusted, before any engine opens it.

A model file comes from somewhere else. The first thing that reads it must therefore be something that
cannot be talked into running code: the standard library's zip reader and nothing more. This module finds
out what kind of file it is, refuses what is only a pickle, and bounds the archive: members, names, sizes.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
from dataclasses import dataclass

from tessera_runtime.engines.base import LoadRefused

MAX_MEMBERS = 100_000
"""A large transformer has a few thousand weights; the directory of this many members is about 10 MiB."""

MAX_EXPANSION = 8
"""Uncompressed over file size. Weights do not compress; TorchScript deflates its sources alone."""

EXPANSION_FLOOR = 64 * 2**20
"""Bytes that any archive may expand to: sources of a small TorchScript model compress well."""

_MEMBER_NAME = re.compile(r"[\w.@+\-]+(?:/[\w.@+\-]+)*")


def file_size(path: str) -> int:
    """Bytes of the regular file at ``path``. Raises LoadRefused."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise LoadRefused(f"model file cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise LoadRefused("model must be a single file; found a directory or a special file")
    if status.st_size == 0:
        raise LoadRefused("model file is empty")
    return status.st_size


def check_fits(size: int, memory_mib: int) -> None:
    """Refuse a file that is larger than the device memory it may use (0 is unlimited)."""
    if memory_mib and size > memory_mib * 2**20:
        raise LoadRefused(
            f"model file of {size / 2**20:.0f} MiB does not fit in {memory_mib} MiB of device memory; "
            "place it on a larger device or raise its memory"
        )


@dataclass(frozen=True, slots=True)
class Archive:
    """The checked directory of a zip file that holds one model under one root folder."""

    reader: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    """By name without the root folder."""

    def read(self, name: str, limit: int) -> bytes:
        """Contents of one member of at most ``limit`` bytes. Raises LoadRefused."""
        info = self.member(name)
        if info.file_size > limit:
            raise LoadRefused(f"{name}: {info.file_size} bytes; at most {limit} are allowed")
        try:
            return self.reader.read(info)
        except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise LoadRefused(f"{name}: damaged in the archive ({error})") from error

    def member(self, name: str) -> zipfile.ZipInfo:
        info = self.members.get(name)
        if info is None:
            raise LoadRefused(f"{name}: missing from the archive; export the model again")
        return info

    def close(self) -> None:
        self.reader.close()


def open_archive(path: str) -> Archive:
    """Open and check a zip file as PyTorch writes them; nothing is decompressed.

    Raises LoadRefused for a raw pickle, a file that is no zip or is cut off, more than MAX_MEMBERS
    members, strange or repeated names (case-folded: PyTorch's reader ignores case), encryption, and
    archives that would expand beyond MAX_EXPANSION times their size.
    """
    size = file_size(path)
    with open(path, "rb") as file:
        head = file.read(4)
    if head[:2] != b"PK":
        raise LoadRefused(_not_a_zip(head))
    try:
        reader = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LoadRefused(f"archive is damaged or cut off ({error}); fetch it again") from error
    try:
        return Archive(reader, _checked_members(reader.infolist(), size))
    except LoadRefused:
        reader.close()
        raise


def _not_a_zip(head: bytes) -> str:
    if head[:1] == b"\x80":
        return (
            "file is a raw pickle, which runs code when it is opened; "
            "export the model with torch.export.save or to ONNX"
        )
    return "file is no PyTorch archive; check the member's model.format"


def _checked_members(infos: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    if not 0 < len(infos) <= MAX_MEMBERS:
        raise LoadRefused(f"archive has {len(infos)} members; 1 to {MAX_MEMBERS} are allowed")
    members: dict[str, zipfile.ZipInfo] = {}
    roots: set[str] = set()
    folded: set[str] = set()
    for info in infos:
        root, _, name = info.filename.partition("/")
        parts = info.filename.split("/")
        if not name or not _MEMBER_NAME.fullmatch(info.filename) or {".", ".."} & set(parts):
            raise LoadRefused(f"archive has a member with the unsafe name {info.filename[:80]!r}")
        if info.flag_bits & 1:
            raise LoadRefused(f"{name}: encrypted; save the model without encryption")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise LoadRefused(f"{name}: compression {info.compress_type}; allowed: stored, deflate")
        roots.add(root)
        folded.add(name.casefold())
        members[name] = info
    if len(roots) > 1 or len(folded) < len(infos):
        raise LoadRefused("archive repeats member names or has several root folders")
    expanded = sum(info.file_size for info in infos)
    allowed = max(MAX_EXPANSION * size, EXPANSION_FLOOR)
    if expanded > allowed:
        raise LoadRefused(
            f"archive of {size} bytes would expand to {expanded}; at most {allowed} are allowed"
        )
    return members


def check_torchscript(path: str) -> None:
    """Refuse a file that is not a TorchScript archive. Raises LoadRefused."""
    archive = open_archive(path)
    try:
        if any(name.startswith("models/") for name in archive.members):
            raise LoadRefused("file was saved by torch.export; set model.format to TorchExport")
        if "constants.pkl" not in archive.members:
            raise LoadRefused(
                "file is a pickled checkpoint, not TorchScript; export the model with "
                "torch.export.save or to ONNX"
            )
    finally:
        archive.close()
