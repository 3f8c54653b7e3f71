"""Looks after the GPUs of the node: what NVML tells, remembered over restarts of the agent, as verdicts.

What is remembered lies in the pod's state directory and counts for one boot: a machine that was restarted has reset its GPUs,
and who wants to reset one by hand has to take the pod from it, because the pod holds it open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from tessera_core.api import RuntimeNode
from tessera_core.api.runtimenode import Health
from tessera_runtime.devices.health import Answer, Reading, Record, Verdict, look, remembered
from tessera_runtime.devices.watch import READ_S, Readings, Watch, Xids

log = logging.getLogger(__name__)

STATE_FILE = "gpus.json"
LOOK_S = 1.0
"""Between two looks at whether readings still come."""
STUCK_S = 60.0
"""Without a reading, and the driver hangs: GPUs that hold it up for some seconds go on afterwards."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Remembered(msgspec.Struct, frozen=True):
    """The file."""

    boot: str
    gpus: dict[str, Record]
    """By UUID."""


class Devices:
    """The verdicts of one node's GPUs. Made and run on one event loop."""

    def __init__(
        self,
        uuids: Sequence[str],
        state_dir: Path,
        node: Callable[[], RuntimeNode | None],
        changed: Callable[[], None],
        read_s: float = READ_S,
    ) -> None:
        """``node``: what is carried out, as of now; ``changed``: called when a verdict is another one."""
        self._uuids, self._path = tuple(uuids), state_dir / STATE_FILE
        self._node, self._changed, self._read_s = node, changed, read_s
        self._boot = BOOT_ID.read_text().strip()
        self._records = self._read()
        self._taken_s = 0.0
        """When the last readings came."""
        self.verdicts: Mapping[str, Verdict] = {
            uuid: remembered(self._records.get(uuid, Record())) for uuid in self._uuids
        }
        """By UUID."""
        self.settled = asyncio.Event()
        """Whether all GPUs were read, so that what nothing remembers is known too."""
        if not self._uuids:
            self.settled.set()

    async def run(self) -> None:
        """Until it is cancelled; without GPUs it ends at once. Raises RuntimeError when nothing is read any more."""
        if not self._uuids:
            return
        loop = asyncio.get_running_loop()

        def tell(readings: Readings, xids: Xids) -> None:
            loop.call_soon_threadsafe(self.take, readings, xids, time.monotonic())

        watch = Watch(self._uuids, tell, self._read_s)
        watch.start()
        self._taken_s = time.monotonic()
        try:
            while watch.is_alive:
                await asyncio.sleep(LOOK_S)
                self._look_after_driver()
            raise RuntimeError("the thread that reads GPUs has ended")
        finally:
            await asyncio.shield(asyncio.to_thread(watch.stop))

    def _look_after_driver(self) -> None:
        """A call that never returns says nothing of which GPU it hangs on, and nothing of the others is heard meanwhile."""
        now_s = time.monotonic()
        if now_s - self._taken_s >= STUCK_S:
            silent = Reading(Answer.ERROR, f"a call of NVML has not returned for {STUCK_S:g} s")
            self.take(dict.fromkeys(self._uuids, silent), {}, now_s)

    def take(self, readings: Readings, xids: Xids, now_s: float) -> None:
        """Judge what was read and heard."""
        self._taken_s = now_s
        self.settled.set()
        node = self._node()
        cut = {each.uuid for each in node.spec.devices if each.cut} if node is not None else set()
        records, verdicts = {}, {}
        for uuid, reading in readings.items():
            records[uuid], verdicts[uuid] = look(
                self._records.get(uuid, Record()),
                reading,
                xids.get(uuid, ()),
                now_s,
                cut_ordered=uuid in cut,
            )
            for xid in xids.get(uuid, ()):
                log.warning("Xid %d", xid.code, extra={"gpu": uuid, "instance": xid.gpu_instance})
        if verdicts != self.verdicts:
            for uuid, verdict in verdicts.items():
                if verdict != self.verdicts[uuid]:
                    level = logging.INFO if verdict.health is Health.HEALTHY else logging.WARNING
                    log.log(level, "GPU %s is %s: %s", uuid, verdict.health.value, verdict.problem)
            self.verdicts = verdicts
            self._changed()
        if records != self._records:
            self._records = records
            self._write()

    def _read(self) -> dict[str, Record]:
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=Remembered)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s is not used: %s", self._path, error)
            return {}
        return found.gpus if found.boot == self._boot else {}

    def _write(self) -> None:
        """Atomically. One that fails costs what is remembered when the agent restarts, and nothing now."""
        partial = self._path.with_suffix(".partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.encode(Remembered(self._boot, self._records)))
            os.replace(partial, self._path)
        except OSError as error:
            log.warning("%s: %s", self._path, error)
