"""One MIG-capable GPU through NVML: what it is cut into, and the single acts that change it.

Problem: NVML knows profiles by numbers and names that differ between drivers, and does not say how many memory slices
one takes. A GPU instance alone runs nothing: it needs a compute instance, and only that has a UUID.

Approach: profiles are discovered and matched with the model's table by their slices, where the memory slices are the
size of the places that the driver offers; the variant with media extensions has a constant of its own. Here an instance
is always the pair, a GPU instance with one compute instance that spans it; whatever differs is *unfinished*.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import pynvml

from tessera_core.gpu.geometry import Placement
from tessera_core.gpu.mig import MEDIA, GpuModel, match_profile
from tessera_core.gpu.tables import model_of
from tessera_runtime.partitioner.errors import (
    DriverLost,
    InUse,
    NoRoom,
    NotPartitionable,
    NotPermitted,
    PartitionError,
    Process,
    ResetRequired,
)

_ATTRIBUTES = {
    pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE: (),
    pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE: (),
    pynvml.NVML_GPU_INSTANCE_PROFILE_3_SLICE: (),
    pynvml.NVML_GPU_INSTANCE_PROFILE_4_SLICE: (),
    pynvml.NVML_GPU_INSTANCE_PROFILE_7_SLICE: (),
    pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1: (MEDIA,),
    pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE_REV1: (MEDIA,),
    pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV2: (),  # one slice with the memory of two
}
"""Of the kinds of profile that a table can have; the others (with graphics, without media) are seen, never made."""

_MOST_COMPUTE_INSTANCES = 8
"""Of one GPU instance: one for each of its compute slices."""

_ERRORS: dict[int, type[PartitionError]] = {
    pynvml.NVML_ERROR_NOT_SUPPORTED: NotPartitionable,
    pynvml.NVML_ERROR_NOT_FOUND: NotPartitionable,
    pynvml.NVML_ERROR_NO_PERMISSION: NotPermitted,
    pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES: NoRoom,
    pynvml.NVML_ERROR_RESET_REQUIRED: ResetRequired,
    pynvml.NVML_ERROR_UNINITIALIZED: DriverLost,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: DriverLost,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: DriverLost,
    pynvml.NVML_ERROR_GPU_IS_LOST: DriverLost,
}

_REMEDIES: dict[type[PartitionError], str] = {
    NoRoom: "; look for what else cuts this GPU, such as NVIDIA's MIG manager, and leave it to one of them",
    NotPermitted: "; the partitioner needs CAP_SYS_ADMIN",
    DriverLost: "; look for Xid errors in the kernel's log, reset the GPU or restart the machine",
}


@dataclass(frozen=True, slots=True)
class Slice:
    """An instance that exists."""

    placement: Placement
    """With the table's name of the profile; the driver's where the table has none."""
    gpu_instance: int
    """Id, as in the paths of ``/proc/driver/nvidia/capabilities``."""
    compute_instance: int | None
    """Id of the one that spans the GPU instance; None: unfinished."""
    uuid: str | None
    """What CUDA takes. An instance that is created again has another. None: unfinished."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A profile as the driver has it."""

    name: str
    driver_id: int
    compute_slices: int
    memory_slices: int
    starts: tuple[int, ...]
    max_count: int


@dataclass(frozen=True, slots=True)
class _Found:
    """A GPU instance, with the handles that NVML wants."""

    placement: Placement
    id: int
    handle: Any
    compute: tuple[tuple[int, Any], ...]
    """Each compute instance: its compute slices and handle."""
    whole: bool


class MigGpu:
    """One GPU, used from one thread inside ``with``; raises :class:`PartitionError` throughout.

    Changes, and most of what is read of instances, need CAP_SYS_ADMIN.
    """

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid

    def __enter__(self) -> MigGpu:
        with self._doing("initialise NVML"):
            pynvml.nvmlInit()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            pass  # of a driver that is gone there is nothing left to close

    @cached_property
    def model(self) -> GpuModel:
        """The table of this board."""
        with self._doing("ask its name"):
            name = str(pynvml.nvmlDeviceGetName(self._handle))
            pci_device_id = int(pynvml.nvmlDeviceGetPciInfo(self._handle).pciDeviceId)
        model = model_of(name, pci_device_id)
        if model is None:
            raise NotPartitionable(
                f"GPU {self.uuid}: there is no MIG table for {name!r}; use it whole"
            )
        return model

    def mig_enabled(self) -> bool:
        """Whether MIG is on now."""
        with self._doing("ask its MIG mode"):
            return bool(pynvml.nvmlDeviceGetMigMode(self._handle)[0])

    def enable_mig(self) -> None:
        """Switch MIG on, at once; nothing happens where it is on.

        Before Hopper the driver may reset the GPU for it, and with it whatever runs there: that is refused
        (:class:`ResetRequired`) before anything is changed.
        """
        if self.mig_enabled():
            return
        if self._architecture() < pynvml.NVML_DEVICE_ARCH_HOPPER:
            raise ResetRequired(
                f"GPU {self.uuid}: MIG is off, and a {self.model.name} has to be reset for it: run "
                f"`nvidia-smi -i {self.uuid} -mig 1`, end what uses the GPU, and run `nvidia-smi -i "
                f"{self.uuid} --gpu-reset`, or restart the machine"
            )
        with self._doing("switch MIG on"):
            if processes := self._processes(None):
                raise InUse(self._told("switch MIG on"), processes)
            try:
                activated = pynvml.nvmlDeviceSetMigMode(self._handle, pynvml.NVML_DEVICE_MIG_ENABLE)
                if activated != pynvml.NVML_SUCCESS:  # set, and not in force
                    raise pynvml.NVMLError(activated)
            except pynvml.NVMLError_InUse as error:
                raise InUse(self._told("switch MIG on"), self._processes(None)) from error

    def slices(self) -> tuple[Slice, ...]:
        """What it is cut into, in the order of positions; empty while MIG is off."""
        if not self.mig_enabled():
            return ()
        with self._doing("list its instances"):
            devices = dict(self._mig_devices())
            found = sorted(self._instances(), key=lambda each: each.placement.start)
            return tuple(
                Slice(
                    each.placement,
                    each.id,
                    *(devices.get(each.id, (None, None)) if each.whole else (None, None)),
                )
                for each in found
            )

    def create(self, placement: Placement) -> None:
        """A GPU instance at exactly this place and its compute instance."""
        kind = next((each for each in self._kinds if each.name == placement.profile), None)
        if kind is None or placement.start not in kind.starts:
            offered = ", ".join(f"{each.name} at {each.starts}" for each in self._kinds)
            raise NotPartitionable(f"GPU {self.uuid}: the driver has no {placement}, but {offered}")
        place = pynvml.c_nvmlGpuInstancePlacement_t(placement.start, kind.memory_slices)
        with self._doing(f"create {placement}"):
            instance = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(
                self._handle, kind.driver_id, ctypes.byref(place)
            )
            for slices, compute_id in self._compute_profiles(instance):
                if slices == kind.compute_slices:
                    pynvml.nvmlGpuInstanceCreateComputeInstance(instance, compute_id)
                    return
        raise NotPartitionable(
            f"GPU {self.uuid}: the driver has no compute instance that spans {placement}"
        )

    def destroy(self, placement: Placement) -> None:
        """The instance at this place, with its compute instances; nothing happens where there is none."""
        with self._doing(f"destroy {placement}"):
            found = [each for each in self._instances() if each.placement == placement]
            for each in found:
                try:
                    for _, compute in each.compute:
                        pynvml.nvmlComputeInstanceDestroy(compute)
                    pynvml.nvmlGpuInstanceDestroy(each.handle)
                except pynvml.NVMLError_InUse as error:
                    what = self._told(f"destroy {placement}")
                    raise InUse(what, self._processes(each.id)) from error

    # What NVML has

    @cached_property
    def _handle(self) -> Any:
        return pynvml.nvmlDeviceGetHandleByUUID(self.uuid)

    def _architecture(self) -> int:
        with self._doing("ask its architecture"):
            return int(pynvml.nvmlDeviceGetArchitecture(self._handle))

    @cached_property
    def _kinds(self) -> tuple[_Kind, ...]:
        """The profiles that the driver offers. Some drivers list them only while MIG is on."""
        with self._doing("list its profiles"):
            kinds = range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT)
            return tuple(kind for number in kinds for kind in self._kind(number))

    def _kind(self, number: int) -> Iterator[_Kind]:
        try:
            info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo(self._handle, number)
        except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_InvalidArgument):
            return  # not on this board, or newer than this driver
        count = ctypes.c_uint()
        ask = pynvml.nvmlDeviceGetGpuInstancePossiblePlacements
        ask(self._handle, info.id, None, ctypes.byref(count))
        places = (pynvml.c_nvmlGpuInstancePlacement_t * count.value)()
        ask(self._handle, info.id, places, ctypes.byref(count))
        if not count.value:
            return
        size = int(places[0].size)
        profile = None
        if number in _ATTRIBUTES:
            profile = match_profile(self.model, info.sliceCount, size, _ATTRIBUTES[number])
        yield _Kind(
            name=profile.name if profile is not None else str(info.name).removeprefix("MIG "),
            driver_id=info.id,
            compute_slices=info.sliceCount,
            memory_slices=size,
            starts=tuple(places[index].start for index in range(count.value)),
            max_count=info.instanceCount,
        )

    def _instances(self) -> Iterator[_Found]:
        for kind in self._kinds:
            count = ctypes.c_uint(kind.max_count)
            handles = (pynvml.c_nvmlGpuInstance_t * kind.max_count)()
            pynvml.nvmlDeviceGetGpuInstances(
                self._handle, kind.driver_id, handles, ctypes.byref(count)
            )
            for handle in handles[: count.value]:
                info = pynvml.nvmlGpuInstanceGetInfo(handle)
                compute = tuple(self._compute_instances(handle))
                yield _Found(
                    placement=Placement(kind.name, info.placement.start),
                    id=info.id,
                    handle=handle,
                    compute=compute,
                    whole=[slices for slices, _ in compute] == [kind.compute_slices],
                )

    def _compute_profiles(self, instance: Any) -> Iterator[tuple[int, int]]:
        """Compute slices and the driver's id of each kind of compute instance that ``instance`` takes."""
        for number in range(pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
            try:
                info = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                    instance, number, pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
                )
            except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_InvalidArgument):
                continue
            yield info.sliceCount, info.id

    def _compute_instances(self, instance: Any) -> Iterator[tuple[int, Any]]:
        for slices, compute_id in self._compute_profiles(instance):
            count = ctypes.c_uint(_MOST_COMPUTE_INSTANCES)
            handles = (pynvml.c_nvmlComputeInstance_t * _MOST_COMPUTE_INSTANCES)()
            pynvml.nvmlGpuInstanceGetComputeInstances(
                instance, compute_id, handles, ctypes.byref(count)
            )
            yield from ((slices, handle) for handle in handles[: count.value])

    def _mig_devices(self) -> Iterator[tuple[int, tuple[int, str]]]:
        """By GPU instance: the id of a compute instance in it, and its UUID."""
        for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(self._handle)):
            try:
                device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, index)
            except pynvml.NVMLError_NotFound:
                continue
            compute = int(pynvml.nvmlDeviceGetComputeInstanceId(device))
            uuid = str(pynvml.nvmlDeviceGetUUID(device))
            yield int(pynvml.nvmlDeviceGetGpuInstanceId(device)), (compute, uuid)

    def _processes(self, gpu_instance: int | None) -> tuple[Process, ...]:
        """Those that compute on this GPU, or on one instance of it."""
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        return tuple(
            Process(each.pid, _name(each.pid))
            for each in running
            if gpu_instance in (None, each.gpuInstanceId)
        )

    def _told(self, what: str) -> str:
        return f"GPU {self.uuid}: {what}"

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        """NVML's errors in it, as this package's."""
        try:
            yield
        except pynvml.NVMLError as error:
            kind = _ERRORS.get(error.value, PartitionError)
            raise kind(f"{self._told(what)}: {error}{_REMEDIES.get(kind, '')}") from error


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
