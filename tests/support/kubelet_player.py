"""The kubelet as a device plugin meets it: a real gRPC server and client on Unix sockets, with the messages of Kubernetes.

As the real one, it takes all sockets out of the folder when it starts, connects to a plugin while that registers, and never
again by itself.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

PROTO = Path(__file__).with_name("device_plugin_v1beta1.proto")
PATIENCE_S = 20.0


def _messages() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "descriptors"
        words = ["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={target}", PROTO.name]
        assert protoc.main(words) == 0
        described = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in described.file:
        pool.Add(file)
    return pool


_POOL = _messages()


def message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"v1beta1.{name}"))


Empty = message("Empty")
AllocateRequest = message("AllocateRequest")


def _bytes(any_message: Any) -> bytes:
    found: bytes = any_message.SerializeToString()
    return found


class Kubelet:
    """Made by :func:`kubelet`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.registrations: list[Any] = []
        self.refuses = False
        """Whether registrations fail."""
        self.lists: list[list[tuple[str, str]]] = []
        """What each message of a plugin listed: (ID, health)."""
        self._news = asyncio.Condition()
        self._server = grpc.aio.server()
        self._channel: Any = None
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for path in self._folder.iterdir():
            path.unlink()
        method = grpc.unary_unary_rpc_method_handler(
            self._register, message("RegisterRequest").FromString, _bytes
        )
        handler = grpc.method_handlers_generic_handler("v1beta1.Registration", {"Register": method})
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{self._folder}/kubelet.sock")
        await self._server.start()

    async def stop(self) -> None:
        await self.lose_plugin()
        await self._server.stop(None)

    async def lose_plugin(self) -> None:
        """The connection ends, and the kubelet goes on."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
            await self._channel.close()
            self._following = None

    async def _register(self, request: Any, context: Any) -> Any:
        async with self._news:
            self.registrations.append(request)
            self._news.notify_all()
        if self.refuses:
            await context.abort(grpc.StatusCode.UNKNOWN, "refused")
        await self.lose_plugin()
        self._channel = grpc.aio.insecure_channel(f"unix:{self._folder}/{request.endpoint}")
        async with asyncio.timeout(PATIENCE_S):
            await self._channel.channel_ready()
        options = self._channel.unary_unary(
            "/v1beta1.DevicePlugin/GetDevicePluginOptions",
            _bytes,
            message("DevicePluginOptions").FromString,
        )
        answer = await options(Empty(), timeout=PATIENCE_S)
        assert not answer.pre_start_required
        assert not answer.get_preferred_allocation_available
        self._following = asyncio.create_task(self._follow())
        return Empty()

    async def _follow(self) -> None:
        watch = self._channel.unary_stream(
            "/v1beta1.DevicePlugin/ListAndWatch",
            _bytes,
            message("ListAndWatchResponse").FromString,
        )
        try:
            async for answer in watch(Empty()):
                async with self._news:
                    self.lists.append([(each.ID, each.health) for each in answer.devices])
                    self._news.notify_all()
        except grpc.aio.AioRpcError:
            pass  # the plugin has ended

    async def heard(self, count: int) -> list[tuple[str, str]]:
        """The list of number ``count``, counted from 1, once it came."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: len(self.lists) >= count)
        return self.lists[count - 1]

    async def registered(self, count: int) -> Any:
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: len(self.registrations) >= count)
        return self.registrations[count - 1]

    async def allocate(self, *containers: list[str]) -> Any:
        """What each container is given. Raises grpc.RpcError."""
        call = self._channel.unary_unary(
            "/v1beta1.DevicePlugin/Allocate", _bytes, message("AllocateResponse").FromString
        )
        request = AllocateRequest(container_requests=[{"devices_ids": ids} for ids in containers])
        answer = await call(request, timeout=PATIENCE_S)
        return list(answer.container_responses)


@asynccontextmanager
async def kubelet(folder: Path) -> AsyncIterator[Kubelet]:
    """One that serves on ``folder``, whose path is short, as paths of sockets are."""
    made = Kubelet(folder)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
