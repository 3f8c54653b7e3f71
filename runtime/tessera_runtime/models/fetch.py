"""Reads one file from a model store into a local one, resumably.

fsspec gives every store the same interface, but not the same errors, identities or support for partial reads;
this module is where those differences end. A :class:`Source` is one file of one store as certain
credentials see it. :func:`download` appends to a local file whatever it lacks, so a process that was
killed goes on where its file ends.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec

from tessera_core.api.stages import SCHEME
from tessera_runtime.models.errors import (
    AddressForbidden,
    Denied,
    FetchError,
    InvalidUri,
    NoSpace,
    NotFound,
    SchemeUnsupported,
    TooLarge,
    Unreachable,
)

REMEDIES: Mapping[str, str] = {
    "file": "fsspec is part of tessera[serve]",
    "http": "pip install 'tessera[serve]'",
    "https": "pip install 'tessera[serve]'",
    "s3": "pip install 'tessera[s3]'",
    "gs": "pip install 'tessera[gs]'",
    "az": "pip install adlfs",
    "hf": "pip install 'tessera[hf]'",
}
"""Schemes that models may have, and what provides them."""

CHUNK = 8 * 2**20
"""Bytes per read: large enough that a round trip of 50 ms costs under a third at 1 Gbit/s, small enough
to see progress and to lose little in a crash."""

ATTEMPTS = 4
"""Per download without progress in between."""

PAUSE_S = 0.5
"""Before the second attempt; doubles."""

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60
"""Longest silence of an HTTP store."""

MAX_URI = 4096

MOST_CAUSES = 16
"""Exceptions behind an exception that are looked at."""

Progress = Callable[[int, int | None], None]
"""Bytes on disk, and all bytes where the store tells."""

_IDENTITY_FIELDS = (
    "ETag", "etag", "Content-MD5", "Digest", "md5Hash", "content_md5", "generation", "VersionId",
    "blob_id", "Last-Modified", "LastModified", "last_modified", "updated", "mtime", "ino",
)  # fmt: skip
"""What the various filesystems call the things that change when a file does."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a model store."""

    label: str
    """For messages: no user, password or query."""
    key: str
    """Hash of URI, credentials and reader: two sources with one key are the same file to the same reader."""
    suffix: str
    """File name extension with its dot, lower case, or empty."""
    filesystem: Any
    path: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store says of the file now."""

    size: int | None
    identity: str
    """Hash of entity tag, times and size; empty when the store gives nothing that would change with it."""


def redacted(uri: str) -> str:
    """``uri`` without user, password, query and fragment."""
    try:
        parts = urlsplit(uri)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "(malformed URI)"
    return f"{parts.scheme}://{host}{parts.path}"


def open_source(
    uri: str,
    storage_options: Mapping[str, Any] | None,
    schemes: frozenset[str],
    reader: str = "",
) -> Source:
    """``reader``: for whom the file is read; sources of two readers are two sources.

    Raises InvalidUri or SchemeUnsupported; does not touch the network.
    """
    label = redacted(uri)
    scheme, separator, rest = uri.partition("://")
    # fsspec reads "::" as a chain of filesystems, which would get around the list of schemes.
    if not separator or not rest.strip("/") or "::" in uri or len(uri) > MAX_URI or "\0" in uri:
        raise InvalidUri(f"{label}: expected scheme://path of one file")
    if scheme == SCHEME:
        data = fsspec.filesystem("data")
        path = f"data:application/json;base64,{rest}"
        return Source(
            f"{SCHEME}://",
            hashlib.sha256(f"{reader} {uri}".encode()).hexdigest(),
            ".json",
            data,
            path,
        )
    if scheme not in schemes:
        raise SchemeUnsupported(
            f"{label}: scheme {scheme!r} is not allowed here; allowed: {', '.join(sorted(schemes))}"
        )
    options = dict(storage_options or {})
    key = hashlib.sha256(
        json.dumps([uri, options, reader], sort_keys=True, default=repr).encode()
    ).hexdigest()
    try:
        filesystem, path = fsspec.core.url_to_fs(
            uri, **_bounded(scheme, options), skip_instance_cache=True, use_listings_cache=False
        )
    except ImportError:
        raise SchemeUnsupported(
            f"{label}: no library for {scheme}:// is installed; {REMEDIES[scheme]}"
        ) from None
    except Exception as error:
        raise InvalidUri(f"{label}: {type(error).__name__} when opening its store") from None
    suffix = re.search(r"\.[A-Za-z0-9]{1,8}$", urlsplit(uri).path)
    return Source(label, key, suffix[0].lower() if suffix else "", filesystem, path)


def _bounded(scheme: str, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` with time limits for stores that wait for ever by default."""
    if scheme not in ("http", "https"):
        return options
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
    )
    return options | {"client_kwargs": {"timeout": timeout, **options.get("client_kwargs", {})}}


def facts(source: Source, pause: Callable[[float], None] = time.sleep) -> Facts:
    """Ask the store about the file; this is also the check that the reader may read it.

    Raises NotFound, Denied, Unreachable, or InvalidUri for a directory.
    """
    info = _with_retries(source, lambda: source.filesystem.info(source.path), pause)
    if info.get("type") == "directory":
        raise InvalidUri(f"{source.label}: is a directory; a model is a single file")
    size = info.get("size")
    found = {name: str(info[name]) for name in _IDENTITY_FIELDS if info.get(name) is not None}
    identity = json.dumps([size, found], sort_keys=True) if found else ""
    return Facts(
        int(size) if size is not None else None,
        hashlib.sha256(identity.encode()).hexdigest()[:32] if identity else "",
    )


def download(
    source: Source,
    about: Facts,
    target: IO[bytes],
    *,
    limit: int,
    progress: Progress | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> str:
    """Append to ``target`` what it lacks of the file; the SHA-256 of the whole, in hexadecimal.

    ``target`` is open for reading and appending; what it holds must be the file's beginning. A store
    without partial reads starts over. After a break the download goes on, up to ATTEMPTS times without
    progress. Raises TooLarge over ``limit`` bytes, NoSpace, NotFound, Denied, Unreachable.
    """
    digest = hashlib.sha256()
    target.seek(0)
    while kept := target.read(CHUNK):
        digest.update(kept)
    done = target.tell()
    failures = 0
    while True:
        before = done
        try:
            for block in _blocks(source, done):
                if block is None:
                    target.truncate(0)
                    digest, done = hashlib.sha256(), 0
                    continue
                done += len(block)
                if done > limit:
                    raise TooLarge(f"{source.label}: more than the {limit} bytes allowed")
                _write(source, target, block)
                digest.update(block)
                if progress is not None:
                    progress(done, about.size)
            if about.size is not None and done != about.size:
                raise EOFError(f"{done} of {about.size} bytes")
            return digest.hexdigest()
        except FetchError:
            raise
        except Exception as error:
            failures = 1 if done > before else failures + 1
            translated = _translated(source, error)
            if failures >= ATTEMPTS or not translated.temporary:
                raise translated from None
            pause(PAUSE_S * 2 ** (failures - 1))


def _blocks(source: Source, start: int) -> Iterator[bytes | None]:
    """Blocks of the file from ``start``; None says that the next one is the file's first after all."""
    try:
        with source.filesystem.open(source.path, "rb", block_size=CHUNK) as reader:
            reader.seek(start)
            while block := reader.read(CHUNK):
                yield block
    except ValueError:  # how fsspec says that an HTTP server ignores ranges
        yield None
        with source.filesystem.open(source.path, "rb", block_size=0) as reader:
            while block := reader.read(CHUNK):
                yield block


def _write(source: Source, target: IO[bytes], block: bytes) -> None:
    try:
        target.write(block)
        target.flush()  # a full disk shows here, and a kill loses nothing that was counted
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{source.label}: the disk of the model cache is full") from None
        raise


def _with_retries(source: Source, call: Callable[[], Any], pause: Callable[[float], None]) -> Any:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:
            translated = _translated(source, error)
            if attempt == ATTEMPTS or not translated.temporary:
                raise translated from None
            pause(PAUSE_S * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _translated(source: Source, error: BaseException) -> FetchError:
    """What a store's exception means. Its text is left out: it may repeat credentials."""
    refused = _refused(error)
    if refused is not None:
        return type(refused)(f"{source.label}: {refused}")
    cause = error.__cause__
    if cause is not None and isinstance(error, FileNotFoundError) and _is_http(cause):
        # fsspec says so of every failure over HTTP; what happened is the cause.
        return _translated(source, cause)
    status = getattr(error, "status", None)
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return NotFound(f"{source.label}: no such file")
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in kind:
        return Denied(f"{source.label}: the store refuses access; check the credentials")
    if isinstance(error, IsADirectoryError):
        return InvalidUri(f"{source.label}: is a directory; a model is a single file")
    detail = f"{kind} {status}" if isinstance(status, int) else kind
    return Unreachable(f"{source.label}: the store does not answer as it should ({detail})")


def _refused(error: BaseException) -> AddressForbidden | None:
    """What ended a connection before it was made, however the store's library wrapped it."""
    found: BaseException | None = error
    for _ in range(MOST_CAUSES):
        if found is None or isinstance(found, AddressForbidden):
            return found
        found = found.__cause__ or found.__context__
    return None


def _is_http(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "aiohttp"
