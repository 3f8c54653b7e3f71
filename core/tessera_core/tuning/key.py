"""What names an artefact: everything that decides whether it is right and fast somewhere.

Two builds with equal facts are interchangeable; any other fact makes another key, so nothing is ever loaded on a device, with
a library or for shapes that it was not built for.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The share that it is built on and for."""

    kind: str
    """``cpu`` or ``cuda``."""
    product: str
    """Model name of the processor or GPU."""
    instructions: str
    """Of a processor, those that compilers choose by; compute capability of a GPU."""
    share: str
    """``cpu-N``, a slice's profile, ``mps:<percent>`` or ``full``."""
    units: int
    """Threads, or multiprocessors."""
    memory_mib: int
    driver: str = ""


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """What an artefact is made of."""

    model_digest: str
    """Of the file: weights and graph."""
    format: str
    variant: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, datatype and row shape of declared inputs."""
    device: DeviceFacts
    libraries: tuple[tuple[str, str], ...]
    """Name and version of all that take part, by name."""
    recipe: int
    """Version of how Tessera itself builds."""


def artefact_key(facts: BuildFacts) -> str:
    """64 hexadecimal digits: SHA-256 of the facts as canonical JSON."""
    document = json.dumps(asdict(facts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(document.encode()).hexdigest()
