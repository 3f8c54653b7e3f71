"""What a GPU is cut into, by calls that need no privilege.

They tell of an instance its slices, memory, engines and UUID, and not where it is (``core/gpu/locate.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pynvml

from tessera_core.gpu.capabilities import Capability
from tessera_core.gpu.geometry import Placement
from tessera_core.gpu.locate import locate
from tessera_core.gpu.mig import GpuModel, Profile, nearest_profile
from tessera_runtime.devices.capabilities import HELP, known_rights, obstacle

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MigSlice:
    """A MIG instance that CUDA can be given."""

    uuid: str
    placement: Placement
    """With the table's name of the profile. Where it is, if that was told; else it is only called so."""
    sm_count: int
    memory_mib: int
    jpeg_engines: int = 0
    """That decode for this instance."""

    @property
    def name(self) -> str:
        """``<profile>@<start>``."""
        return str(self.placement)


def is_cut(handle: Any) -> bool:
    """Whether the GPU is in MIG mode. Raises NVMLError."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False  # a GPU without MIG, or a driver of before


def mig_devices(handle: Any) -> Iterator[Any]:
    """Handles of what this process sees of a GPU in MIG mode. Raises NVMLError."""
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except pynvml.NVMLError_NotFound:
            continue


def find_slices(handle: Any, model: GpuModel) -> tuple[tuple[MigSlice, ...], str]:
    """The instances of a GPU in MIG mode that this process can use, at deduced places, and why it cannot use another one
    that it sees; empty where there is none. Raises NVMLError.

    Those that somebody divided into several compute instances are left out: none of them is what a profile stands for.
    """
    rights = known_rights()
    found = {
        str(pynvml.nvmlDeviceGetUUID(device)): (
            profile,
            attributes,
            _obstacle(rights, handle, device),
        )
        for device in mig_devices(handle)
        for attributes in [pynvml.nvmlDeviceGetAttributes(device)]
        for profile in [_profile(model, attributes)]
        if profile is not None
    }
    places = locate(model, {uuid: profile.name for uuid, (profile, *_) in found.items()}, {}, {})
    if unplaced := sorted(found.keys() - places):
        log.error("%s: no place for %s: table and driver differ", model.name, ", ".join(unplaced))
    slices = _in_order(
        MigSlice(
            uuid,
            place,
            sm_count=found[uuid][1].multiprocessorCount,
            memory_mib=found[uuid][1].memorySizeMB,
            jpeg_engines=found[uuid][1].sharedJpegCount,
        )
        for uuid, place in places.items()
        if not found[uuid][2]
    )
    problems = (
        f"{uuid}, a {profile.name}, is not offered: {why}; {HELP}"
        for uuid, (profile, _, why) in sorted(found.items())
        if why
    )
    return slices, next(problems, "")


def placed(
    model: GpuModel,
    slices: Iterable[MigSlice],
    told: Mapping[str, Placement],
    before: Mapping[str, Placement],
) -> tuple[MigSlice, ...]:
    """``slices`` at the places that :func:`locate` finds with ``told`` and ``before``, by UUID."""
    by_uuid = {each.uuid: each for each in slices}
    profiles = {uuid: each.placement.profile for uuid, each in by_uuid.items()}
    places = locate(model, profiles, told, before)
    return _in_order(replace(by_uuid[uuid], placement=place) for uuid, place in places.items())


def _obstacle(rights: Mapping[Capability, int], handle: Any, device: Any) -> str:
    """Why ``device``, a part of the GPU ``handle``, cannot be used; empty also where that is not known."""
    if not rights:
        return ""
    try:
        wanted = Capability(
            pynvml.nvmlDeviceGetMinorNumber(handle),
            pynvml.nvmlDeviceGetGpuInstanceId(device),
            pynvml.nvmlDeviceGetComputeInstanceId(device),
        )
    except pynvml.NVMLError:
        return ""  # who uses it will be told
    return obstacle(rights, wanted)


def _profile(model: GpuModel, attributes: Any) -> Profile | None:
    """``attributes``: nvmlDeviceAttributes_t. The optical flow accelerator (OFA) comes with the media extensions."""
    if attributes.computeInstanceSliceCount != attributes.gpuInstanceSliceCount:
        return None
    return nearest_profile(
        model,
        attributes.gpuInstanceSliceCount,
        attributes.memorySizeMB,
        media=attributes.sharedOfaCount > 0,
    )


def _in_order(slices: Iterable[MigSlice]) -> tuple[MigSlice, ...]:
    return tuple(sorted(slices, key=lambda each: (each.placement.start, each.placement)))
