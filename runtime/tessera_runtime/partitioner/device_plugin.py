"""The device plugin of a node: gives containers the device nodes of all MIG instances that there can be.

Problem: a container of a runtime pod has to use instances that are cut long after it was made, and only what the kubelet
hands to the container runtime gets past the container's device cgroup. Approach: one resource of the node stands for the
right to all of them (:mod:`~tessera_runtime.partitioner.capability_nodes`), and who asks for it is given the nodes when the
container is made. It is registered once there is a driver that has such nodes.

The kubelet forgets its plugins, and removes their sockets, when it starts: its own socket is looked at each second.
https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tessera_core.api.runtimepool import CAPABILITIES_RESOURCE
from tessera_core.gpu.capabilities import DRIVER
from tessera_runtime.partitioner.capability_nodes import Machine, NoCapabilities, make_nodes
from tessera_runtime.waits import pause_s

log = logging.getLogger(__name__)

FOLDER = Path("/var/lib/kubelet/device-plugins")
"""Of the sockets of the kubelet and of plugins, which only root may enter; the same on every Linux node."""
KUBELET = "kubelet.sock"
SOCKET = "tessera-mig-capabilities.sock"

COUNT = 2
"""For the containers of one runtime pod, its server and its agent: there is one such pod on a node, and with it nothing is
left for others."""

LOOK_S = 1.0
"""Between two looks at whether the kubelet is another one."""
NODES_S = 10.0
"""Between two looks at the driver."""
CALL_S = 15.0
"""For the kubelet to take a registration: it connects to the plugin meanwhile, for which it gives itself 10 s."""
ALLOCATE_S = 10.0
"""For the driver to answer while a pod waits."""
UNWATCHED_S = 30.0
"""After which the kubelet, which should follow without end, is asked anew."""
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 30.0
"""Between two registrations that failed."""
_MOST_CALLS = 16
"""At the same time; the kubelet makes one or two."""

_POOL: Any = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    files("tessera_runtime.partitioner").joinpath("device_plugin.binpb").read_bytes()
).file:
    _POOL.Add(_file)


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"v1beta1.{name}"))


_Empty = _message("Empty")
_RegisterRequest = _message("RegisterRequest")
_DevicePluginOptions = _message("DevicePluginOptions")
_ListAndWatchResponse = _message("ListAndWatchResponse")
_AllocateRequest = _message("AllocateRequest")
_AllocateResponse = _message("AllocateResponse")


class DevicePlugin:
    """Made and run on one event loop, which it never holds up."""

    def __init__(
        self,
        machine: Machine,
        folder: Path = FOLDER,
        *,
        look_s: float = LOOK_S,
        nodes_s: float = NODES_S,
        unwatched_s: float = UNWATCHED_S,
    ) -> None:
        self._machine, self._folder = machine, folder
        self._look_s, self._nodes_s, self._unwatched_s = look_s, nodes_s, unwatched_s
        # The driver may hang. Then so does this one thread, and none of those that cut.
        self._thread = ThreadPoolExecutor(1, "capability-nodes")
        self._healthy: bool | None = None
        """None before anything could be given."""
        self._missing = ""
        """Why nothing can be given, as it was told last."""
        self._changed = asyncio.Condition()
        self._watchers = 0

    async def run(self) -> None:
        """For ever. What fails is told and tried again: cutting GPUs does not depend on it."""
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._look_after_nodes())
                    group.create_task(self._stay_registered())
            except* Exception:
                log.exception("the device plugin failed")
            await asyncio.sleep(MOST_PAUSE_S)

    # --- the driver ----------------------------------------------------------------------------------

    async def _look_after_nodes(self) -> None:
        while True:
            try:
                await self._nodes()
            except NoCapabilities as error:
                if self._missing != str(error):
                    log.warning("no %s to give: %s", CAPABILITIES_RESOURCE, error)
                self._missing = str(error)
                await self._is_now(healthy=False)
            else:
                self._missing = ""
                await self._is_now(healthy=True)
            await asyncio.sleep(self._nodes_s)

    async def _nodes(self) -> tuple[str, ...]:
        """Raises NoCapabilities."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, make_nodes, self._machine)

    async def _is_now(self, *, healthy: bool) -> None:
        if self._healthy is None and not healthy:
            return
        async with self._changed:
            self._healthy = healthy
            self._changed.notify_all()

    async def _differs(self, told: bool | None) -> bool:
        """Whether all is well, once that is not as ``told``."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._healthy != told)
            return bool(self._healthy)

    # --- the kubelet ---------------------------------------------------------------------------------

    async def _stay_registered(self) -> None:
        await self._differs(None)
        failures = 0
        while True:
            try:
                await self._serve()
                failures = 0
            except (OSError, RuntimeError, grpc.RpcError, grpc.aio.BaseError) as error:
                failures += 1
                log.warning("not registered with the kubelet: %s", _said(error))
                await asyncio.sleep(pause_s(failures, FIRST_PAUSE_S, MOST_PAUSE_S))

    async def _serve(self) -> None:
        """Register, and answer until the kubelet has forgotten it. Raises what sockets and gRPC do."""
        kubelet, own = self._folder / KUBELET, self._folder / SOCKET
        if (registered_with := _identity(kubelet)) is None:
            await asyncio.sleep(self._look_s)  # it starts
            return
        own.unlink(missing_ok=True)
        server = grpc.aio.server(maximum_concurrent_rpcs=_MOST_CALLS)
        server.add_generic_rpc_handlers((self._handler(),))
        server.add_insecure_port(f"unix:{own}")
        await server.start()
        try:
            await _register(kubelet)
            log.info("registered %s with the kubelet", CAPABILITIES_RESOURCE)
            listens_on, unwatched_s = _identity(own), 0.0
            while (
                _identity(kubelet) == registered_with
                and _identity(own) == listens_on
                and unwatched_s < self._unwatched_s
            ):
                await asyncio.sleep(self._look_s)
                unwatched_s = 0.0 if self._watchers else unwatched_s + self._look_s
        finally:
            await server.stop(None)

    def _handler(self) -> Any:
        methods = {
            "GetDevicePluginOptions": (grpc.unary_unary_rpc_method_handler, _Empty, self._options),
            "ListAndWatch": (grpc.unary_stream_rpc_method_handler, _Empty, self._watch),
            "Allocate": (grpc.unary_unary_rpc_method_handler, _AllocateRequest, self._allocate),
        }
        return grpc.method_handlers_generic_handler(
            "v1beta1.DevicePlugin",
            {
                name: kind(method, request.FromString, _bytes)
                for name, (kind, request, method) in methods.items()
            },
        )

    async def _options(self, request: Any, context: Any) -> Any:
        return _DevicePluginOptions()

    async def _watch(self, request: Any, context: Any) -> None:
        """Tell what there is to give, and again when that changes, until the kubelet goes."""
        self._watchers += 1
        try:
            told = None
            while True:
                told = await self._differs(told)
                health = "Healthy" if told else "Unhealthy"
                devices = [{"ID": str(number), "health": health} for number in range(COUNT)]
                await context.write(_ListAndWatchResponse(devices=devices))
        finally:
            self._watchers -= 1

    async def _allocate(self, request: Any, context: Any) -> Any:
        """All nodes to each container, for reading alone: to open them is all that the driver asks for."""
        try:
            async with asyncio.timeout(ALLOCATE_S):
                names = await self._nodes()
        except TimeoutError:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "NVIDIA's driver does not answer")
        except NoCapabilities as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        devices = [
            {
                "container_path": f"/dev/{DRIVER}/{name}",
                "host_path": str(self._machine.nodes / name),
                "permissions": "r",
            }
            for name in names
        ]
        containers = [{"devices": devices} for _ in request.container_requests]
        return _AllocateResponse(container_responses=containers)


async def _register(kubelet: Path) -> None:
    """Raises grpc.RpcError."""
    request = _RegisterRequest(
        version="v1beta1", endpoint=SOCKET, resource_name=CAPABILITIES_RESOURCE
    )
    async with grpc.aio.insecure_channel(f"unix:{kubelet}") as channel:
        call = channel.unary_unary("/v1beta1.Registration/Register", _bytes, _Empty.FromString)
        await call(request, timeout=CALL_S)


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Tells one socket from another of the same name; None where there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _bytes(message: Any) -> bytes:
    serialized: bytes = message.SerializeToString()
    return serialized


def _said(error: Exception) -> str:
    return str(error.details()) if isinstance(error, grpc.aio.AioRpcError) else str(error)
