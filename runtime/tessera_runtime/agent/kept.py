"""What an agent keeps on disk, so that it goes on where it was after a restart, also without an API server.

No credentials are in it: a target names files, never where they came from.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import msgspec

from tessera_runtime.target import ServerTarget

log = logging.getLogger(__name__)

STATE_FILE = "agent.json"


class Measured(msgspec.Struct, frozen=True):
    """A profiling task that is done."""

    task: tuple[str, str, str, str]
    """(served name, member, device, slice)."""
    source: str
    """Hash of what was measured: another model under the same name is measured anew."""
    result: dict[str, Any]
    """A ProfileResult document."""
    variant: str = ""


class Tried(msgspec.Struct, frozen=True):
    """A variant of a tuning task that is done."""

    key: tuple[str, str, str, str, str]
    """(served name, member, device, slice, variant)."""
    source: str
    """Hash of what was tried."""
    digest: str
    """Of the model's file."""
    outcome: dict[str, Any]
    """An Outcome document."""


class Fallback(msgspec.Struct, frozen=True):
    """A variant that is not run here although it is ordered."""

    service: str
    member: str
    digest: str
    product: str
    slice: str
    """Kind of slice."""
    variant: str
    reason: str


class Kept(msgspec.Struct, frozen=True):
    """The last word of the operator that was carried out, and what came of it."""

    epoch: int = 0
    """Largest of the specs that were carried out."""
    generation: int | None = None
    """Of the spec that ``target`` was made from; None: none yet."""
    target: ServerTarget | None = None
    """What the server was told last; None: nothing yet."""
    measured: tuple[Measured, ...] = ()
    tried: tuple[Tried, ...] = ()
    fallbacks: tuple[Fallback, ...] = ()


def read_kept(directory: Path) -> Kept:
    """What was kept; nothing where there is nothing, or where it is damaged or of another version."""
    path = directory / STATE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept()
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("%s is not used: %s", path, error)
        return Kept()


def write_kept(directory: Path, kept: Kept) -> None:
    """Replace the file atomically. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{STATE_FILE}.partial"
    with partial.open("wb") as file:
        file.write(msgspec.json.encode(kept))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, directory / STATE_FILE)
