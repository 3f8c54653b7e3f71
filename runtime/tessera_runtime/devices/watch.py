"""Asks NVML how the GPUs are, and hears of their Xids: a thread that only reads and tells.

NVML stays initialised while it runs, since events are lost between a shutdown and the next initialisation. A GPU or driver
that was away has forgotten who listens, so whenever one does not answer, everything begins anew.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import pynvml

from tessera_runtime.devices.health import Action, Answer, Reading, Slowdown, Xid

log = logging.getLogger(__name__)

READ_S = 10.0
"""Between two readings. An Xid is read at once."""
WAIT_MS = 500
"""For an event, so how long the thread may outlive its order to end."""
STOP_S = 5.0
"""That its end is waited for: a driver that hangs must not keep an agent from ending."""
SETTLE_S = 0.1
"""Between an Xid and its reading: the driver says what it asks for after it, and a storm is to keep no core busy."""
MOST_XIDS = 64
"""That are told with one reading; a storm says nothing new."""

Readings = Mapping[str, Reading]
Xids = Mapping[str, Sequence[Xid]]
"""By GPU."""

_EVENTS = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError
_DOUBLE_BIT = 48
"""The Xid of a double-bit ECC error, which NVML also has an event of its own for."""
_NO_DRIVER = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
_LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_NOT_FOUND})
_ACTIONS = {
    pynvml.NVML_GPU_RECOVERY_ACTION_NONE: Action.NONE,
    pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET: Action.RESET,
    pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: Action.REBOOT,
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: Action.PEERS,
    pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: Action.DRAIN_AND_RESET,
    pynvml.NVML_GPU_RECOVERY_ACTION_RECOVER_IMEX_DOMAIN: Action.PEERS,
    pynvml.NVML_GPU_RECOVERY_ACTION_BUS_RESET: Action.RESET,
    pynvml.NVML_GPU_RECOVERY_ACTION_SYSTEM_REBOOT: Action.REBOOT,
}
_SLOWDOWNS = {
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: Slowdown.HARDWARE_THERMAL,
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: Slowdown.SOFTWARE_THERMAL,
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: Slowdown.POWER_BRAKE,
    pynvml.nvmlClocksEventReasonHwSlowdown: Slowdown.HARDWARE,
}

T = TypeVar("T")


class Watch:
    """Of some GPUs, by a thread of its own from ``start`` to ``stop``."""

    def __init__(
        self,
        uuids: Sequence[str],
        tell: Callable[[Readings, Xids], None],
        read_s: float = READ_S,
    ) -> None:
        """``tell``: called by the thread with every reading of all GPUs, and the Xids since the one before."""
        self._uuids, self._tell, self._read_s = tuple(uuids), tell, read_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-health", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False also where something that nobody thought of has ended it."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread and wait for it; one that the driver never answers is left behind."""
        self._stop.set()
        self._thread.join(timeout=STOP_S)

    def _run(self) -> None:
        xids: Xids = {}
        while not self._stop.is_set():
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError as error:
                self._tell(dict.fromkeys(self._uuids, _silent(error)), xids)
                xids = {}
                self._stop.wait(self._read_s)
                continue
            try:
                xids = self._listen(xids)
            finally:
                with suppress(pynvml.NVMLError):
                    pynvml.nvmlShutdown()

    def _listen(self, xids: Xids) -> Xids:
        """Read and hear until a GPU does not answer, or nothing can be heard. ``xids``: not told yet; what is so then."""
        try:
            with _event_set() as events:
                self._register(events)
                while not self._stop.is_set():
                    answers = self._read(xids)
                    xids = {}  # a failing wait must not have them told twice
                    xids = self._hear(events)
                    if not answers:
                        break
                return xids
        except pynvml.NVMLError as error:
            # Of one GPU of many, or of the driver: the readings say which.
            log.warning("no Xids are heard: %s", error)
            self._read(xids)
            self._stop.wait(self._read_s)
            return {}

    def _read(self, xids: Xids) -> bool:
        """Tell how the GPUs are; whether all of them answer."""
        readings = {uuid: read(uuid) for uuid in self._uuids}
        self._tell(readings, xids)
        return all(each.answer is Answer.YES for each in readings.values())

    def _register(self, events: Any) -> None:
        for uuid in self._uuids:
            try:
                handle = _handle(uuid)
                supported = pynvml.nvmlDeviceGetSupportedEventTypes(handle)
                pynvml.nvmlDeviceRegisterEvents(handle, _EVENTS & supported, events)
            except pynvml.NVMLError as error:
                log.warning("no Xids of %s will be heard: %s", uuid, error)

    def _hear(self, events: Any) -> Xids:
        """By GPU, what comes until the next reading is due, which an event makes now. Raises NVMLError."""
        heard: dict[str, list[Xid]] = {}
        event = self._wait(events)
        for _ in range(MOST_XIDS):
            if event is None:
                break
            # Whose GPU cannot say its name any more is told by the reading.
            uuid = _asked(pynvml.nvmlDeviceGetUUID, event.device, default=None)
            heard.setdefault(str(uuid), []).append(_xid(event))
            event = _next(events, 0)
        if heard:
            self._stop.wait(SETTLE_S)
        return heard

    def _wait(self, events: Any) -> Any | None:
        until_s = time.monotonic() + self._read_s
        while (left_s := until_s - time.monotonic()) > 0 and not self._stop.is_set():
            event = _next(events, min(WAIT_MS, math.ceil(left_s * 1e3)))
            if event is not None:
                return event
        return None


def read(uuid: str) -> Reading:
    """What NVML, which is initialised, says of a GPU now."""
    try:
        handle = _handle(uuid)
        with suppress(pynvml.NVMLError_NoPermission):  # of a GPU in MIG mode; it answered
            pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError as error:
        return _silent(error)
    is_cut = _asked(pynvml.nvmlDeviceGetMigMode, handle, default=(0, 0))[0] == 1
    # Rows are not told of a GPU with MIG instances; one that can be cut replaces them.
    rows = _asked(
        pynvml.nvmlDeviceGetRemappedRows, handle, default=(0, 0, 0, 0) if is_cut else None
    )
    retires = _asked(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle, default=0)
    return Reading(
        action=_asked(_action, handle, default=None),
        uncorrected=_asked(
            pynvml.nvmlDeviceGetTotalEccErrors,
            handle,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
            default=None,
        ),
        remap_failed=None if rows is None else bool(rows[3]),
        remap_pending=bool(retires or (rows is not None and rows[2])),
        slowdowns=_slowdowns(handle),
        slices=_asked(_slices, handle, default=None) if is_cut else None,
    )


def _handle(uuid: str) -> Any:
    """Raises NVMLError. Looking for a UUID fails when *any* GPU is lost (nvmlDeviceGetHandleByUUID_v2)."""
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError_GpuIsLost:
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                if pynvml.nvmlDeviceGetUUID(handle) == uuid:
                    return handle
        raise


def gpu_slowdowns() -> dict[str, frozenset[Slowdown]]:
    """Why clocks are held down now, by GPU; without those that do not answer, and none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        found = {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            with suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                found[str(pynvml.nvmlDeviceGetUUID(handle))] = _slowdowns(handle)
        return found
    finally:
        pynvml.nvmlShutdown()


def _slowdowns(handle: Any) -> frozenset[Slowdown]:
    mask = _asked(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle, default=0)
    return frozenset(name for bit, name in _SLOWDOWNS.items() if mask & bit)


def _action(handle: Any) -> Action | None:
    (found,) = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    if found.nvmlReturn != pynvml.NVML_SUCCESS:
        return None
    return _ACTIONS.get(found.value.uiVal, Action.OTHER)


def _slices(handle: Any) -> frozenset[str]:
    found = set()
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(pynvml.NVMLError_NotFound):  # there are fewer
            instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            found.add(str(pynvml.nvmlDeviceGetUUID(instance)))
    return frozenset(found)


def _asked(function: Callable[..., T], *arguments: Any, default: Any) -> Any:
    """What the GPU tells; ``default`` where it or its driver does not, or must not."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        log.debug("%s: %s", getattr(function, "__name__", function), error)
        return default


def _silent(error: Any) -> Reading:
    if error.value in _NO_DRIVER:
        return Reading(Answer.NO_DRIVER, str(error))
    return Reading(Answer.LOST if error.value in _LOST else Answer.ERROR, str(error))


def _next(events: Any, wait_ms: int) -> Any | None:
    try:
        return pynvml.nvmlEventSetWait_v2(events, wait_ms)
    except pynvml.NVMLError_Timeout:
        return None


def _xid(event: Any) -> Xid:
    instance = event.gpuInstanceId
    if event.eventType == pynvml.nvmlEventTypeDoubleBitEccError:
        code = _DOUBLE_BIT
    else:
        code = int(event.eventData)
    return Xid(code, None if instance == pynvml.NVML_GPU_INSTANCE_ID_ANY else instance)


@contextmanager
def _event_set() -> Iterator[Any]:
    events = pynvml.nvmlEventSetCreate()
    try:
        yield events
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlEventSetFree(events)
