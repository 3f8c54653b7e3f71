"""All GPUs of the machine that know MIG, and what they are cut into."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from tessera_runtime.partitioner.errors import DriverLost, PartitionError
from tessera_runtime.partitioner.gpu import MigGpu, Slice

log = logging.getLogger(__name__)


def look() -> dict[str, tuple[Slice, ...]]:
    """By UUID; a GPU that cannot be looked at is left out. Raises DriverLost where nothing can be asked.

    The driver is asked anew each time, so that a GPU or a driver that comes back is found.
    """
    found: dict[str, tuple[Slice, ...]] = {}
    with _nvml():
        for uuid in _partitionable():
            try:
                with MigGpu(uuid) as gpu:
                    found[uuid] = gpu.slices()
            except PartitionError as error:
                log.warning("%s", error)
    return found


def _partitionable() -> Iterator[str]:
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            pynvml.nvmlDeviceGetMigMode(handle)
            uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        except pynvml.NVMLError_NotSupported:
            continue
        except pynvml.NVMLError as error:
            log.warning("GPU %d: %s", index, error)
            continue
        yield uuid


@contextmanager
def _nvml() -> Iterator[None]:
    """NVML, for the block. Raises DriverLost where it cannot be had, or lists no GPUs."""
    try:
        pynvml.nvmlInit()
        try:
            yield
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise DriverLost(f"list the GPUs: {error}") from error
