"""A content-addressed cache of model files, shared by processes.

::

    <root>/sha256/<hex>/model<suffix>    complete, verified, read-only
    <root>/uri/<source key>.json         which digest a source had, and the identity it had then
    <root>/partial/<source key>.<version>     downloads under way or broken off
    <root>/locks/<name>                  one downloader per source and per digest
    <root>/tuned/<key>                   what the server has compiled (tessera_runtime/artefacts.py), where it keeps it here

A file appears under its digest by one rename after it was verified and synced, so what is there is whole.
All locks are ``flock``: they end with the process that holds them. A downloader holds the source's lock
(and the digest's, where it is known), so whoever else wants the file waits and then finds it. A
:class:`CachedModel` holds a shared lock on its file, and eviction removes only files that it can lock
alone. A partial file is named after the identity (entity tag, times, size) its source had and the boot of
this machine: another identity starts over, and so does a loss of power, which may leave holes.

Between tenants the cache is not an authority: what it holds opens only to a reader (a namespace), a source and
credentials that were seen to have that content, and the store is asked on every fetch whether they still may
read it. Where there is a single tenant a pinned digest is enough. Either way a source that was read before is served from the
cache while its store is unreachable.

A model is a single file: ONNX with external data is not supported (see ``engines/onnx_file.py``).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tessera_runtime.models.errors import (
    DigestMismatch,
    InvalidUri,
    NoSpace,
    TooLarge,
    Unreachable,
)
from tessera_runtime.models.fetch import (
    REMEDIES,
    Facts,
    Progress,
    Source,
    download,
    facts,
    open_source,
)

RESERVE = 64 * 2**20
"""Bytes of the disk that are left free: a full disk harms more than this cache."""

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


class CachedModel:
    """A model file that stays in the cache until :meth:`close`, or until this process ends."""

    def __init__(self, path: Path, digest: str, descriptor: int) -> None:
        self.path = path
        self.digest = digest
        """``sha256:`` and 64 hexadecimal digits."""
        self.size = os.fstat(descriptor).st_size
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Allow eviction. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> CachedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ModelCache:
    """Safe for threads and processes that share ``root``."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        max_bytes: int,
        *,
        schemes: frozenset[str] = frozenset(REMEDIES),
        single_tenant: bool = True,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """``max_bytes`` bounds all files together. ``schemes`` are the URI schemes allowed here;
        ``single_tenant`` says that whoever knows a digest may have the file; ``pause`` waits between
        attempts.
        """
        self._root = Path(root)
        self._max_bytes = max_bytes
        self._schemes = schemes
        self._single_tenant = single_tenant
        self._pause = pause
        for name in ("sha256", "uri", "partial", "locks"):
            (self._root / name).mkdir(parents=True, exist_ok=True)

    def fetch(
        self,
        uri: str,
        digest: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        *,
        reader: str = "",
    ) -> CachedModel:
        """The file at ``uri``, downloaded only if the cache lacks it.

        ``digest`` is ``sha256:<hex>`` and is checked; without it the file of the last download is reused as
        long as the store reports the same identity. ``storage_options`` go to fsspec (credentials,
        endpoints). ``reader`` is the tenant who asks: what one has fetched is not known to another. Blocks; a
        second caller waits for the download of the first. Raises FetchError.
        """
        wanted = _hex(digest, uri)
        source = open_source(uri, storage_options, self._schemes, reader)
        with ExitStack() as locks:
            # The digest's lock always comes before the source's, so two callers cannot wait for each other.
            if wanted is not None:
                locks.enter_context(self._lock(wanted))
            locks.enter_context(self._lock(source.key))
            if wanted is not None and self._single_tenant:
                cached = self._open_cached(wanted, source.suffix)
                if cached is not None:
                    return cached
            known = self._known(source)
            if known is not None and wanted not in (None, known.digest):
                known = None
            try:
                about = facts(source, self._pause)
            except Unreachable:
                cached = self._open_cached(known.digest, source.suffix) if known else None
                if cached is None:
                    raise
                return cached
            if known is not None and about.identity and about.identity == known.identity:
                cached = self._open_cached(known.digest, source.suffix)
                if cached is not None:
                    return cached
            cached = self._download(source, about, wanted, progress)
            self._remember(source, _Known(cached.digest.removeprefix("sha256:"), about.identity))
            return cached

    def hold(self, path: Path) -> CachedModel | None:
        """The complete file at ``path`` of this cache, kept until it is closed; None when it is not there.

        For who was given the file before and has been restarted: nobody is asked.
        """
        folder = path.parent
        if folder.parent != self._root / "sha256" or not _DIGEST.fullmatch(folder.name):
            return None
        return self._open_cached(folder.name, path.suffix)

    def total_bytes(self) -> int:
        """Bytes of all models, of partial downloads and of what was compiled."""
        return sum(entry.size for entry in self._entries())

    def evict(self, needed: int = 0) -> None:
        """Remove what was used longest ago and is not in use, until ``needed`` more bytes fit.

        Raises NoSpace when they cannot.
        """
        entries = sorted(self._entries(), key=lambda entry: entry.used_ns)
        total = sum(entry.size for entry in entries)

        def fits() -> bool:
            free = shutil.disk_usage(self._root).free
            return total + needed <= self._max_bytes and (not needed or free >= needed + RESERVE)

        for entry in entries:
            if fits():
                return
            if _remove_unused(entry.path):
                total -= entry.size
        if needed and not fits():
            raise NoSpace(
                f"model cache: no room for {needed} bytes; {total} of {self._max_bytes} are in use"
            )

    # -- downloading

    def _download(
        self, source: Source, about: Facts, wanted: str | None, progress: Progress | None
    ) -> CachedModel:
        if about.size is not None and about.size > self._max_bytes:
            raise TooLarge(
                f"{source.label}: {about.size} bytes; the model cache holds {self._max_bytes}"
            )
        # Without an identity, only a digest can tell that a continued file is still the same one.
        resumable = bool(about.identity) or wanted is not None
        path = self._root / "partial" / f"{source.key}.{about.identity or 'unknown'}-{_boot()}"
        for other in path.parent.glob(f"{source.key}.*"):
            if other != path or not resumable:
                other.unlink(missing_ok=True)
        while True:
            with open(path, "a+b") as partial:
                fcntl.flock(partial, fcntl.LOCK_EX)  # eviction leaves it alone
                if os.fstat(partial.fileno()).st_nlink == 0:
                    continue  # evicted between open and lock
                start = os.fstat(partial.fileno()).st_size
                if start > (self._max_bytes if about.size is None else about.size):
                    partial.truncate(0)
                    start = 0
                self.evict(max(0, (about.size or 0) - start))
                found = download(
                    source,
                    about,
                    partial,
                    limit=self._max_bytes,
                    progress=progress,
                    pause=self._pause,
                )
                if wanted == found or (wanted is None and self._unchanged(source, about)):
                    return self._place(partial, path, found, source.suffix)
                path.unlink()
            if wanted is None:
                raise Unreachable(f"{source.label}: changed while it was read; fetch it again")
            if start == 0:
                raise DigestMismatch(
                    f"{source.label}: digest sha256:{found}, expected sha256:{wanted}"
                )
            # What was there from before may be of another version of the file: once more, from nothing.

    def _unchanged(self, source: Source, about: Facts) -> bool:
        """Whether ranges that were read one after the other are of one version, as far as anyone can say."""
        return not about.identity or facts(source, self._pause).identity == about.identity

    def _place(self, partial: IO[bytes], path: Path, digest: str, suffix: str) -> CachedModel:
        """Move a verified file under its digest."""
        partial.flush()
        os.fsync(partial.fileno())
        os.fchmod(partial.fileno(), 0o444)
        fcntl.flock(partial, fcntl.LOCK_SH)  # still no eviction, but readers may come
        folder = self._root / "sha256" / digest
        folder.mkdir(exist_ok=True)
        os.rename(path, folder / f"model{suffix}")
        for directory in (folder, folder.parent):
            _sync(directory)
        self.evict()
        cached = self._open_cached(digest, suffix)
        if cached is None:
            raise NoSpace("model cache: the file was evicted at once; the cache is too small")
        return cached

    # -- what is there

    def _open_cached(self, digest: str, suffix: str) -> CachedModel | None:
        """The file of ``digest``, locked against eviction and marked as used."""
        folder = self._root / "sha256" / digest
        path = folder / f"model{suffix}"
        if not path.exists():
            others = sorted(folder.glob("model*"))
            if not others:
                return None
            try:
                os.link(others[0], path)  # same content under another name; costs nothing
            except FileExistsError:
                pass
            except FileNotFoundError:
                return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink == 0:  # evicted between open and lock
            os.close(descriptor)
            return None
        os.utime(descriptor)
        return CachedModel(path, f"sha256:{digest}", descriptor)

    def _known(self, source: Source) -> _Known | None:
        try:
            known = json.loads((self._root / "uri" / f"{source.key}.json").read_bytes())
            digest, identity = str(known["digest"]), str(known["identity"])
        except (OSError, ValueError, TypeError, KeyError):
            return None  # never fetched, or not written by this version: fetch it
        return _Known(digest, identity) if _DIGEST.fullmatch(digest) else None

    def _remember(self, source: Source, known: _Known) -> None:
        path = self._root / "uri" / f"{source.key}.json"
        temporary = path.with_suffix(".new")  # the source's lock is held, so no one else writes it
        temporary.write_text(json.dumps(asdict(known)))
        os.replace(temporary, path)

    def _entries(self) -> Iterator[_Entry]:
        seen = set()
        for pattern in ("sha256/*/model*", "partial/*", "tuned/*"):
            for path in self._root.glob(pattern):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                size = 0 if status.st_ino in seen else status.st_size
                seen.add(status.st_ino)
                yield _Entry(path, size, status.st_mtime_ns)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Waits for whoever holds it; a holder's silence is bounded by the limits in ``fetch``."""
        with open(self._root / "locks" / name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True, slots=True)
class _Known:
    """The digest a source had when it was last downloaded, and its identity then (``Facts.identity``)."""

    digest: str
    identity: str


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    size: int
    used_ns: int


def _remove_unused(path: Path) -> bool:
    """Unlink ``path`` unless someone holds a lock on it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _hex(digest: str | None, uri: str) -> str | None:
    if digest is None:
        return None
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise InvalidUri(f"digest {digest[:80]!r}; expected sha256: and 64 hexadecimal digits")
    return match[1]


def _sync(directory: Path) -> None:
    """Make renames in ``directory`` survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
