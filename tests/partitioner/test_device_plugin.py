"""The partitioner as a device plugin, beside a kubelet that it meets over gRPC on Unix sockets."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path

import grpc
import pytest
from grpc_tools import protoc

from support.capability_files import load_driver, need_mknod
from support.kubelet_player import Kubelet, kubelet
from support.node_api import NodeServer
from tessera_core.api.runtimepool import CAPABILITIES_RESOURCE
from tessera_runtime.partitioner import device_plugin, main
from tessera_runtime.partitioner.capability_nodes import Machine, make_nodes
from tessera_runtime.partitioner.device_plugin import DevicePlugin

UNUSED = 240
"""A major for local use, which no driver has: https://docs.kernel.org/admin-guide/devices.html."""
LOOK_S = 0.02
LONG_S = 600.0
HEALTHY = [("0", "Healthy"), ("1", "Healthy")]
UNHEALTHY = [("0", "Unhealthy"), ("1", "Unhealthy")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Paths of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="plugins-") as found:
        yield Path(found)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    need_mknod(tmp_path)
    made = Machine(tmp_path / "proc", tmp_path / "dev")
    made.dev.mkdir()
    load_driver(made.proc)
    return made


@asynccontextmanager
async def plugin(
    machine: Machine, folder: Path, *, unwatched_s: float = LONG_S
) -> AsyncIterator[None]:
    made = DevicePlugin(machine, folder, look_s=LOOK_S, nodes_s=LOOK_S, unwatched_s=unwatched_s)
    task = asyncio.create_task(made.run())
    try:
        yield
    finally:
        task.cancel()
        [ended] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)


@asynccontextmanager
async def both(machine: Machine, folder: Path) -> AsyncIterator[Kubelet]:
    async with kubelet(folder) as found, plugin(machine, folder):
        yield found


async def test_it_registers_one_resource_for_the_containers_of_a_runtime_pod(
    machine: Machine, folder: Path
) -> None:
    async with both(machine, folder) as found:
        request = await found.registered(1)
        assert (request.version, request.resource_name) == ("v1beta1", CAPABILITIES_RESOURCE)
        assert await found.heard(1) == HEALTHY


async def test_each_container_is_given_the_nodes_of_all_instances_and_no_privilege(
    machine: Machine, folder: Path
) -> None:
    async with both(machine, folder) as found:
        await found.heard(1)
        server, agent = await found.allocate(["0"], ["1"])
        nodes = [(each.container_path, each.host_path, each.permissions) for each in server.devices]
        assert nodes == [
            (f"/dev/nvidia-caps/nvidia-cap{minor}", f"{machine.nodes}/nvidia-cap{minor}", "r")
            for minor in (3, 5, 7)
        ]
        assert agent == server
        assert {field.name for field, _ in server.ListFields()} == {"devices"}
        for _, host_path, _ in nodes:
            os.close(os.open(host_path, os.O_RDONLY))


async def test_all_nodes_of_eight_gpus_fit_into_one_answer(machine: Machine, folder: Path) -> None:
    rights = [
        f"gpu{gpu}/gi{instance}/{part}access"
        for gpu in range(8)
        for instance in range(15)
        for part in ("", *(f"ci{compute}/" for compute in range(8)))
    ]
    load_driver(
        machine.proc,
        major=UNUSED,
        gpus={f"0000:{gpu:02x}:00.0": gpu for gpu in range(8)},
        minors={name: minor for minor, name in enumerate(rights, start=3)},
    )
    async with both(machine, folder) as found:
        await found.heard(1)
        [given] = await found.allocate(["0"])
        assert len(given.devices) == len(rights) == 8 * 15 * 9


async def test_nodes_that_somebody_removed_are_there_when_a_container_is_made(
    machine: Machine, folder: Path
) -> None:
    async with both(machine, folder) as found:
        await found.heard(1)
        for path in machine.nodes.iterdir():
            path.unlink()
        [given] = await found.allocate(["0"])
        for each in given.devices:
            os.close(os.open(each.host_path, os.O_RDONLY))


async def test_it_registers_again_when_the_kubelet_has_started_anew(
    machine: Machine, folder: Path
) -> None:
    async with plugin(machine, folder):
        for _ in range(3):
            async with kubelet(folder) as found:
                assert await found.heard(1) == HEALTHY
                assert len(await found.allocate(["1"])) == 1


async def test_it_registers_again_when_somebody_removes_its_socket(
    machine: Machine, folder: Path
) -> None:
    async with both(machine, folder) as found:
        await found.heard(1)
        (folder / device_plugin.SOCKET).unlink()
        await found.registered(2)
        assert await found.heard(2) == HEALTHY


async def test_it_registers_again_when_nobody_listens_any_more(
    machine: Machine, folder: Path
) -> None:
    async with kubelet(folder) as found, plugin(machine, folder, unwatched_s=3 * LOOK_S):
        await found.heard(1)
        await found.lose_plugin()
        await found.registered(2)
        assert await found.heard(2) == HEALTHY


async def test_a_registration_that_is_refused_is_tried_again(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_plugin, "FIRST_PAUSE_S", LOOK_S)
    async with kubelet(folder) as found:
        found.refuses = True
        async with plugin(machine, folder):
            await found.registered(3)
            found.refuses = False
            assert await found.heard(1) == HEALTHY


async def test_without_a_driver_there_is_no_resource_and_with_one_there_is(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_driver(machine.proc, major=None)
    told = asyncio.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "expected NVIDIA's driver" in record.getMessage():
                told.set()

    monkeypatch.setattr(device_plugin.log, "handlers", [Heard()])
    async with both(machine, folder) as found:
        async with asyncio.timeout(20):
            await told.wait()
        assert found.registrations == []
        load_driver(machine.proc)
        assert await found.heard(1) == HEALTHY


async def test_a_driver_that_goes_makes_it_unhealthy_and_one_that_comes_back_healthy(
    machine: Machine, folder: Path
) -> None:
    async with both(machine, folder) as found:
        assert await found.heard(1) == HEALTHY
        load_driver(machine.proc, major=None)
        assert await found.heard(2) == UNHEALTHY
        with pytest.raises(grpc.aio.AioRpcError, match="expected NVIDIA's driver") as refused:
            await found.allocate(["0"])
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        load_driver(machine.proc)
        assert await found.heard(3) == HEALTHY
        assert len(found.registrations) == 1


async def test_it_goes_on_after_what_nobody_has_thought_of(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Machine) -> tuple[str, ...]:
        monkeypatch.setattr(device_plugin, "make_nodes", make_nodes)
        raise ZeroDivisionError

    monkeypatch.setattr(device_plugin, "MOST_PAUSE_S", LOOK_S)
    monkeypatch.setattr(device_plugin, "make_nodes", fail)
    async with both(machine, folder) as found:
        assert await found.heard(1) == HEALTHY


async def test_a_driver_that_hangs_holds_up_no_pod_for_long(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_plugin, "ALLOCATE_S", 0.05)
    minors = machine.proc / "driver/nvidia-caps/mig-minors"
    async with both(machine, folder) as found:
        await found.heard(1)
        said = minors.read_bytes()
        os.mkfifo(f"{minors}.hangs")
        os.replace(f"{minors}.hangs", minors)  # who opens it waits for somebody who writes
        try:
            with pytest.raises(grpc.aio.AioRpcError, match="does not answer") as refused:
                await found.allocate(["0"])
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            hung = minors.with_name("hung")
            os.link(minors, hung)
            minors.unlink()
            minors.write_bytes(said)
            with hung.open("wb") as writer:
                writer.write(said)
        async with asyncio.timeout(20):
            while True:
                try:
                    await found.allocate(["0"])
                    break
                except grpc.aio.AioRpcError:
                    pass


async def test_a_partitioner_is_a_device_plugin_until_it_ends(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "Machine", lambda: machine)
    monkeypatch.setattr(main, "DevicePlugin", partial(DevicePlugin, folder=folder))
    async with NodeServer("n").running() as server, kubelet(folder) as found:
        arguments = main.parser().parse_args([f"--api-server={server.url}"])
        task = asyncio.create_task(main.run(arguments, "n"))
        assert await found.heard(1) == HEALTHY
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(20):
            await task


def test_the_shipped_descriptors_are_those_of_the_proto_file(tmp_path: Path) -> None:
    folder = files("tessera_runtime.partitioner")
    target = tmp_path / "device_plugin.binpb"
    words = ["protoc", f"-I{folder}", f"--descriptor_set_out={target}", "device_plugin.proto"]
    assert protoc.main(words) == 0
    assert target.read_bytes() == folder.joinpath("device_plugin.binpb").read_bytes()
