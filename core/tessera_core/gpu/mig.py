"""Multi-Instance GPU: the types of the vendor's tables, and names as drivers write them.

Problem: a slice is only known by what the vendor publishes for its board: where it may start, how many
streaming multiprocessors (SMs) and how much memory it really has. None of this follows from its name: a
``3g.40gb`` of an H100 SXM has 60 SMs, not 3/7 of 132, and one and the same slice of an A100-80 is called
``3g.39gb`` by some drivers and ``3g.40gb`` by others.

Approach: one frozen row per profile and board. A value that was read off hardware or a vendor's page
stands alone; one that was concluded carries an :class:`Inferred` note; one that nobody recorded is None.
Positions and sizes count *memory slices* (8 on seven-slice parts, 4 on the A30), as ``nvidia-smi mig
-lgipp`` prints them: ``{0,4}:4`` is a profile of four memory slices that may start at 0 or 4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

MEDIA = "me"
"""Attribute of a profile that owns the media extensions (NVJPG, OFA) of the board; there is one set."""

_PROFILE_NAME = re.compile(r"(?:mig[ -])?(\d)g\.(\d{1,3})gb(?:[+.](me))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Inferred:
    """A field whose value was concluded, not recorded, and from what."""

    field: str
    why: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of GPU instance of one board."""

    name: str
    """The driver's name, e.g. ``1g.10gb+me``; aliases are resolved by :func:`find_profile`."""
    profile_id: int
    """What ``nvidia-smi mig -cgi`` takes. Scoped to a driver: a hint for people, never a key."""
    compute_slices: int
    memory_slices: int
    starts: tuple[int, ...]
    """Memory slices at which an instance may begin, ascending."""
    max_count: int
    """Instances of this profile that fit one GPU."""
    sm_count: int | None
    """Streaming multiprocessors of one instance; None where no recording was found."""
    memory_mib: int
    """Usable memory of one instance, MiB; the smallest one seen where drivers disagree."""
    copy_engines: int
    attributes: tuple[str, ...] = ()
    inferred: tuple[Inferred, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuModel:
    """One board as MIG sees it. Two products with equal slices but unequal SM counts are two models."""

    name: str
    products: tuple[str, ...]
    """NVML product names as labels (blanks are dashes), the usual one first."""
    pci_device_ids: tuple[int, ...]
    """PCI device ids (vendor 10DE) that are known to be this board."""
    compute_slices: int
    memory_slices: int
    sm_count: int
    """Streaming multiprocessors of the whole board; the widest profile may have fewer."""
    memory_mib: int
    """Memory of the whole board, MiB, as NVML reports it with MIG off."""
    profiles: tuple[Profile, ...]
    """Widest first, ordinary before media extensions."""
    source: str
    """The recordings and vendor pages that the rows were read from."""
    inferred: tuple[Inferred, ...] = ()

    def __hash__(self) -> int:
        # Models key the geometry caches; hashing every row would cost more than most look-ups save.
        return hash(self.name)


@lru_cache(maxsize=1024)  # of few products, asked for each device and profile of a cluster
def label(product: str) -> str:
    """An NVML product name in its label form: ``NVIDIA H100 PCIe`` → ``NVIDIA-H100-PCIe``.

    GPU feature discovery's single strategy appends the slice (``…-MIG-1g.10gb``); it is cut off here.
    """
    return re.sub(r"-MIG-.*$", "", "-".join(product.split()))


def find_profile(model: GpuModel, name: str) -> Profile | None:
    """The profile that a driver, a label or a person calls ``name``, or None.

    Takes ``3g.40gb``, ``MIG 3g.40gb``, ``mig-3g.40gb`` and, where Kubernetes forbids the plus sign,
    ``1g.10gb.me``. Drivers round the memory differently, so the profile with equal compute
    slices and attributes within 1 GB or 10 % is meant; there is one at most, since the next has twice that.
    """
    wanted = _split(name)
    if wanted is None:
        return None
    compute, gigabytes, attributes = wanted
    for profile in model.profiles:
        size = _gigabytes(profile)
        if (profile.compute_slices, profile.attributes) == (compute, attributes) and (
            abs(gigabytes - size) <= max(1, size / 10)
        ):
            return profile
    return None


def match_profile(
    model: GpuModel, compute_slices: int, memory_slices: int, attributes: tuple[str, ...] = ()
) -> Profile | None:
    """The profile with exactly these slices, as NVML reports them: the way to match across drivers."""
    wanted = (compute_slices, memory_slices, attributes)
    for profile in model.profiles:
        if (profile.compute_slices, profile.memory_slices, profile.attributes) == wanted:
            return profile
    return None


def nearest_profile(
    model: GpuModel, compute_slices: int, memory_mib: int, *, media: bool
) -> Profile | None:
    """The profile of an instance as those see it who may not ask for its memory slices, or None.

    ``memory_mib``: of several with these compute slices the nearest is meant, since the next has twice that.
    ``media``: whether it owns media extensions, which tells the variants of one profile apart.
    """
    return min(
        (each for each in model.profiles if each.compute_slices == compute_slices),
        key=lambda each: (abs(each.memory_mib - memory_mib), (MEDIA in each.attributes) != media),
        default=None,
    )


def _split(name: str) -> tuple[int, int, tuple[str, ...]] | None:
    found = _PROFILE_NAME.fullmatch(name.strip())
    if found is None:
        return None
    compute, gigabytes, attribute = found.groups()
    return int(compute), int(gigabytes), (attribute.lower(),) if attribute else ()


def _gigabytes(profile: Profile) -> int:
    """The size in the profile's own name: what a driver's alias of it must be close to."""
    parts = _split(profile.name)
    assert parts is not None, f"{profile.name} is not a profile name"
    return parts[1]
