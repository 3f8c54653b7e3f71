"""The agent of a runtime pod: carries what the operator wants of this node to the server, and reports.

Several loops share one state, and each of them can fail without the others: following the RuntimeNode
(``following``), telling the server (``serving``), writing the status (``publishing``), renewing the Lease,
measuring (``measuring``), tuning (``tuning``, ``building``), looking at what GPUs are cut into (``slices``), and looking after them (``devices``). What
they decide is in pure functions: ``orders``, ``translate``, ``node_status``, ``profiling``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tessera_core.api import Condition, RuntimeNodeStatus
from tessera_core.api.measurements import ProfileResult
from tessera_runtime.agent.building import Building
from tessera_runtime.agent.devices import Devices
from tessera_runtime.agent.heartbeat import Identity, beat
from tessera_runtime.agent.keys import ServiceKeys
from tessera_runtime.agent.measuring import Measuring
from tessera_runtime.agent.models import Models
from tessera_runtime.agent.node_status import Facts, Phase, counters_s, node_status
from tessera_runtime.agent.observe import kind_of
from tessera_runtime.agent.profiling import results, still_asked
from tessera_runtime.agent.publishing import Publisher
from tessera_runtime.agent.serving import Serving
from tessera_runtime.agent.slices import Slices
from tessera_runtime.agent.steering import Steering
from tessera_runtime.agent.translate import Site
from tessera_runtime.agent.tuning import Tuning
from tessera_runtime.agent.variants import told
from tessera_runtime.control import ControlClient
from tessera_runtime.devices.inventory import Inventory
from tessera_runtime.following import Follower
from tessera_runtime.kube import Document, Kube, KubeError
from tessera_runtime.models.cache import ModelCache
from tessera_runtime.models.errors import Denied, NotFound, Unreachable
from tessera_runtime.supervisor import control_path
from tessera_runtime.waits import set_within

log = logging.getLogger(__name__)

SETTLE_S = 5.0
"""Most that the first status waits for each: until GPUs were read, and what was known before a restart is known again."""

DRAIN_S = 60.0
"""Most that the agent outlives the signal to stop, while the server finishes."""

DRAIN_LOOK_S = 0.25

NOTHING = Inventory((), 0, ())
"""Of an activator."""


class ClusterAgent:
    """Made and run on one event loop."""

    def __init__(
        self,
        who: Identity,
        seen: Inventory | None,
        kube: Kube,
        cache: ModelCache,
        run_dir: Path,
        state_dir: Path,
        *,
        allow_code: bool,
        keys_read_s: float,
        gpus_on_cores: bool = False,
        mps: int = 0,
    ) -> None:
        """``seen``: None for an activator, which has no devices. ``keys_read_s``: between two looks at a Secret of keys.
        ``gpus_on_cores``, ``mps``: as in :class:`Site`.
        """
        self._who = who
        self._slices = Slices(seen, self._cut) if seen is not None else None
        self._kube = kube
        self._socket = str(control_path(run_dir))
        self._control = ControlClient(self._socket)
        self._allow_code = allow_code
        self._gpus_on_cores = gpus_on_cores
        self._mps = mps
        self._stopping = False
        self._publisher = Publisher(
            kube, who.node, self._status, lambda: counters_s(self._serving.node)
        )
        self._models = Models(cache, self._secret, self._found_changed)
        self._keys = ServiceKeys(self._secret, self._found_changed, keys_read_s)
        self._serving = Serving(
            self._control,
            self._models,
            self._keys,
            self._site,
            state_dir,
            self._publisher.look,
            Steering(kind_of(seen)) if seen is not None else None,
        )
        self._devices = Devices(
            [gpu.uuid for gpu in seen.gpus] if seen is not None else [],
            state_dir,
            lambda: self._serving.node,
            self._publisher.look,
        )
        self._tuning = Tuning(
            self._socket, self._serving, self._models, self._site, self._publisher.look
        )
        self._follower = Follower(kube, who.node, self._hear)

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``, and then until the server has ended, or for a minute."""
        loops = [
            self._follower.run(),
            self._serving.run(),
            self._publish(),
            beat(self._kube, self._who, self._follower.read_again),
        ]
        if self._slices is not None:
            measuring = Measuring(
                self._socket,
                self._serving,
                self._models,
                self._site,
                self._publisher.look,
            )
            building = Building(self._socket, self._serving)
            loops += [measuring.run(), self._slices.run(), self._devices.run()]
            loops += [self._tuning.run(), building.run()]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(loop) for loop in loops]
                await stop.wait()
                await self._drain()
                for task in tasks:
                    task.cancel()
        finally:
            self._models.close()
            self._keys.close()
            await self._control.close()

    def _hear(self, document: Document | None) -> None:
        self._publisher.hear(document)
        if self._slices is not None:
            self._slices.hear(document)
        self._serving.hear(document)

    @property
    def _seen(self) -> Inventory | None:
        return self._slices.seen if self._slices is not None else None

    def _site(self) -> Site:
        return Site(self._seen or NOTHING, self._allow_code, self._gpus_on_cores, self._mps)

    def _cut(self) -> None:
        self._serving.wake()
        self._publisher.look()

    def _found_changed(self) -> None:
        self._serving.wake()

    async def _publish(self) -> None:
        # A GPU that was in use by the pod before may be one that must not be used.
        await set_within(self._devices.settled, SETTLE_S)
        await set_within(self._serving.settled, SETTLE_S)
        await self._publisher.run()

    def _status(self, before: Sequence[Condition], now: str) -> RuntimeNodeStatus:
        serving = self._serving
        order = serving.order
        accepted = None if order is None else (order.reason, order.message)
        if serving.refusal and order is not None and order.node is not None:
            accepted = ("RefusedByServer", serving.refusal)
        facts = Facts(
            pod=self._who.pod,
            address=self._who.address,
            seen=self._seen,
            phase=self._phase(),
            accepted=accepted,
            node=serving.node,
            generation=serving.kept.generation,
            report=serving.report,
            problems=serving.problems,
            profiles=self._profiles(),
            tuning=self._tuning.results() if self._slices is not None else (),
            fallbacks=told(serving.kept.fallbacks),
            verdicts=self._devices.verdicts,
            corrections=serving.corrections(),
            gpus_on_cores=self._gpus_on_cores,
        )
        return node_status(facts, before, now)

    def _phase(self) -> Phase:
        report = self._serving.report
        if self._stopping or (self._serving.answers and report is not None and report.draining):
            return Phase.DRAINING
        if self._serving.answers:
            return Phase.SERVING
        return Phase.STARTING if self._serving.report is None else Phase.SERVER_UNREACHABLE

    def _profiles(self) -> tuple[ProfileResult, ...]:
        node = self._serving.node
        if node is None or self._slices is None:
            return ()
        measured = still_asked(node, self._serving.kept.measured)
        models = self._models
        return results(node, measured, models.found, models.problem, self._site())

    async def _secret(self, namespace: str, name: str) -> Mapping[str, str]:
        label = f"Secret {namespace}/{name}"
        try:
            return await self._kube.secret(namespace, name)
        except KubeError as error:
            if error.status == 403:
                raise Denied(
                    f"{label}: the namespace has not opted in to its Secrets being read; "
                    "it does so by a RoleBinding of ClusterRole tessera-model-credentials "
                    "to the agents' ServiceAccount"
                ) from error
            if error.status == 404:
                raise NotFound(f"{label}: there is none, create it") from error
            raise Unreachable(f"{label}: {error}") from error

    async def _drain(self) -> None:
        """Say at once that the pod is being stopped; then stay until the server has ended."""
        self._stopping = True
        log.info("draining")
        try:
            await self._publisher.write()
        except KubeError as error:
            log.warning("writing the status: %s", error)
        give_up = time.monotonic() + DRAIN_S
        while _listens(self._socket):
            if time.monotonic() > give_up:
                log.warning("the server has not ended within %.0f s", DRAIN_S)
                return
            await asyncio.sleep(DRAIN_LOOK_S)


def _listens(path: str) -> bool:
    """Whether some process of the server still holds its control socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            pass  # it is busy, but there
        return True
