"""What ails a GPU reaches the agent's verdict through the real bindings, and so does its return.

What only reads runs on a real GPU as well (marker ``gpu``); nothing can be broken there.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pynvml
import pytest

from support.nvml_stand_in import Ailment, StandIn, ail, enable_mig, event, outside, xid
from tessera_core.api import ClusterMeta, Device, RuntimeNode, RuntimeNodeSpec
from tessera_core.api.runtimenode import Health
from tessera_core.gpu.geometry import Placement
from tessera_core.gpu.tables import A100_80, H100_80_SXM
from tessera_runtime.agent import devices as agent_devices
from tessera_runtime.agent.devices import Devices
from tessera_runtime.devices import health
from tessera_runtime.devices.health import Action, Answer, Reading, Slowdown, Verdict
from tessera_runtime.devices.watch import Watch, gpu_slowdowns, read
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu

Machine = Callable[..., StandIn]
NO_FIELD = "nvmlDeviceGetFieldValues 1 1000000 fail 3"
"""A driver that knows no recovery action."""
NO_DRIVER = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
READ_S = 0.05
PATIENCE_S = 20.0


@pytest.fixture
def two(machine: Machine) -> Iterator[list[str]]:
    """UUIDs of two GPUs; NVML stays initialised."""
    yield from _started(machine)


@pytest.fixture
def two_of_an_old_driver(machine: Machine) -> Iterator[list[str]]:
    yield from _started(machine, faults=NO_FIELD)


def _started(machine: Machine, faults: str = "") -> Iterator[list[str]]:
    machine(A100_80, H100_80_SXM, faults=faults)
    pynvml.nvmlInit()
    yield [
        str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        for index in range(2)
    ]
    pynvml.nvmlShutdown()


class Agent:
    """The part of an agent that looks after GPUs."""

    def __init__(self, uuids: list[str], state: Path, node: RuntimeNode | None = None) -> None:
        self.devices = Devices(uuids, state, lambda: node, self._tell, READ_S)
        self._told = asyncio.Event()

    def _tell(self) -> None:
        self._told.set()

    async def until(self, uuid: str, holds: Callable[[Verdict], bool]) -> Verdict:
        """The first verdict of which ``holds``."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                verdict = self.devices.verdicts.get(uuid)
                if verdict is not None and holds(verdict):
                    return verdict
                self._told.clear()
                await self._told.wait()


@asynccontextmanager
async def looking_after(
    uuids: list[str], state: Path, node: RuntimeNode | None = None
) -> AsyncIterator[Agent]:
    agent = Agent(uuids, state, node)
    task = asyncio.create_task(agent.devices.run())
    try:
        await asyncio.wait_for(agent.devices.settled.wait(), PATIENCE_S)
        yield agent
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def is_well(verdict: Verdict) -> bool:
    return verdict.health is Health.HEALTHY


def is_unwell(verdict: Verdict) -> bool:
    return verdict.health is Health.UNHEALTHY


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs return as soon as they are well."""
    monkeypatch.setattr(health, "RETURN_S", 0.0)


def reset(index: int) -> None:
    ail(index, Ailment.LOST, 0)
    outside("stand_in_reset", pynvml.nvmlDeviceGetHandleByIndex(index))


@pytest.mark.parametrize(
    ("ailment", "value", "problem"),
    [
        (Ailment.LOST, 1, "is lost: GPU is lost"),
        (Ailment.RECOVERY_ACTION, pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET, str(Action.RESET)),
        (Ailment.RECOVERY_ACTION, pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT, str(Action.REBOOT)),
        (Ailment.RECOVERY_ACTION, 77, str(Action.OTHER)),
    ],
)
async def test_a_gpu_that_ails_is_unhealthy_until_it_was_reset_and_its_neighbour_stays(
    two: list[str], tmp_path: Path, at_once: None, ailment: Ailment, value: int, problem: str
) -> None:
    async with looking_after(two, tmp_path) as agent:
        await agent.until(two[0], is_well)
        ail(0, ailment, value)
        assert problem in (await agent.until(two[0], is_unwell)).problem
        assert is_well(agent.devices.verdicts[two[1]])
        reset(0)
        assert (await agent.until(two[0], is_well)).problem == ""


async def test_an_xid_takes_a_gpu_out_of_use_until_its_counters_begin_anew(
    two_of_an_old_driver: list[str], tmp_path: Path, at_once: None
) -> None:
    uuids = two_of_an_old_driver
    async with looking_after(uuids, tmp_path) as agent:
        ail(1, Ailment.UNCORRECTED, 4)
        xid(1, 95)
        verdict = await agent.until(uuids[1], lambda each: "Xid 95" in each.problem)
        assert is_unwell(verdict)
        assert is_well(agent.devices.verdicts[uuids[0]])
        reset(1)
        await agent.until(uuids[1], is_well)


async def test_xids_are_heard_beside_a_gpu_that_is_lost(
    two_of_an_old_driver: list[str], tmp_path: Path
) -> None:
    uuids = two_of_an_old_driver
    async with looking_after(uuids, tmp_path) as agent:
        ail(0, Ailment.LOST)
        await agent.until(uuids[0], is_unwell)
        xid(1, 119)
        assert "Xid 119" in (await agent.until(uuids[1], is_unwell)).problem


@pytest.mark.parametrize("function", ["nvmlEventSetWait_v2", "nvmlEventSetCreate"])
async def test_gpus_are_read_also_where_nothing_can_be_heard(
    machine: Machine, tmp_path: Path, function: str
) -> None:
    """Waiting fails for all GPUs when one of them is lost."""
    for uuids in _started(machine, faults=f"{function} 1 1000000 fail 15"):
        async with looking_after(uuids, tmp_path) as agent:
            await agent.until(uuids[1], is_well)
            ail(0, Ailment.LOST)
            await agent.until(uuids[0], is_unwell)
            assert is_well(agent.devices.verdicts[uuids[1]])


async def test_a_double_bit_error_is_heard_as_its_xid(
    two_of_an_old_driver: list[str], tmp_path: Path
) -> None:
    uuids = two_of_an_old_driver
    async with looking_after(uuids, tmp_path) as agent:
        event(0, pynvml.nvmlEventTypeDoubleBitEccError)
        assert "Xid 48" in (await agent.until(uuids[0], is_unwell)).problem


async def test_errors_of_applications_and_what_the_driver_cares_for_leave_a_gpu_in_use(
    two: list[str], tmp_path: Path
) -> None:
    async with looking_after(two, tmp_path) as agent:
        for code in (13, 31, 43, 45, 68, 109, 94, 95):
            xid(0, code)
        xid(0, 119)  # told after the others
        assert (await agent.until(two[0], is_unwell)).problem.startswith("Xid 119")


async def test_an_xid_of_a_mig_instance_names_it(
    two_of_an_old_driver: list[str], tmp_path: Path
) -> None:
    uuids = two_of_an_old_driver
    async with looking_after(uuids, tmp_path) as agent:
        xid(0, 95, gpu_instance=3)
        assert "of MIG instance 3" in (await agent.until(uuids[0], is_unwell)).problem


async def test_a_driver_that_goes_takes_all_gpus_with_it_and_brings_them_back(
    machine: Machine, tmp_path: Path, at_once: None
) -> None:
    """The first initialisations fail, as they do without a driver."""
    machine(A100_80, H100_80_SXM)
    pynvml.nvmlInit()
    uuids = [
        str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        for index in range(2)
    ]
    pynvml.nvmlShutdown()
    machine(A100_80, H100_80_SXM, faults=f"nvmlInitWithFlags 1 1 fail {NO_DRIVER}")
    async with looking_after(uuids, tmp_path) as agent:
        for uuid in uuids:
            assert is_unwell(await agent.until(uuid, is_unwell))
            assert "has no driver" in agent.devices.verdicts[uuid].problem
        machine(A100_80, H100_80_SXM)
        for uuid in uuids:
            await agent.until(uuid, is_well)


async def test_an_agent_that_is_restarted_remembers_what_only_an_event_told(
    two_of_an_old_driver: list[str], tmp_path: Path
) -> None:
    uuids = two_of_an_old_driver
    async with looking_after(uuids, tmp_path) as agent:
        xid(0, 119)
        await agent.until(uuids[0], is_unwell)
    told_before_it_is_read = Agent(uuids, tmp_path).devices.verdicts
    async with looking_after(uuids, tmp_path) as agent:
        assert agent.devices.verdicts == told_before_it_is_read
        assert "Xid 119" in agent.devices.verdicts[uuids[0]].problem


async def test_after_a_restart_of_the_machine_nothing_is_remembered(
    two_of_an_old_driver: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = two_of_an_old_driver
    async with looking_after(uuids, tmp_path) as agent:
        xid(0, 79)
        await agent.until(uuids[0], is_unwell)
    (tmp_path / "boot").write_text("another one\n")
    monkeypatch.setattr(agent_devices, "BOOT_ID", tmp_path / "boot")
    async with looking_after(uuids, tmp_path) as agent:
        assert agent.devices.verdicts[uuids[0]] == Verdict()


async def test_what_cannot_be_read_back_is_as_nothing(two: list[str], tmp_path: Path) -> None:
    (tmp_path / agent_devices.STATE_FILE).write_text("{")
    async with looking_after(two, tmp_path) as agent:
        assert agent.devices.verdicts[two[0]] == Verdict()


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_mig_instance_that_goes_is_missed_unless_a_cut_is_ordered(
    two: list[str], tmp_path: Path, ordered: bool
) -> None:
    enable_mig(pynvml.nvmlDeviceGetHandleByIndex(1))
    spec = RuntimeNodeSpec(0, devices=(Device(two[1], cut=ordered),))
    node = RuntimeNode(ClusterMeta("n"), spec)
    with MigGpu(two[1]) as gpu:
        cut(gpu, (Placement("3g.40gb", 0), Placement("3g.40gb", 4)), patience_s=PATIENCE_S)
        names = {each.placement.start: each.uuid for each in gpu.slices()}
        async with looking_after(two, tmp_path, node) as agent:
            cut(gpu, (Placement("3g.40gb", 0),), patience_s=PATIENCE_S)
            xid(0, 119)  # told with what there is by then
            await agent.until(two[0], lambda each: "Xid 119" in each.problem)
            verdict = agent.devices.verdicts[two[1]]
            assert is_well(verdict)
            assert verdict.gone == (frozenset() if ordered else {names[4]})


class Silent(Watch):
    """Never tells anything, as in a call that hangs."""

    def _run(self) -> None:
        self._stop.wait()


async def test_a_driver_that_hangs_is_one_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_devices, "Watch", Silent)
    monkeypatch.setattr(agent_devices, "STUCK_S", 0.05)
    monkeypatch.setattr(agent_devices, "LOOK_S", 0.01)
    async with looking_after(["GPU-a", "GPU-b"], tmp_path) as agent:
        for uuid in ("GPU-a", "GPU-b"):
            problem = (await agent.until(uuid, is_unwell)).problem
            assert problem == "does not answer: a call of NVML has not returned for 0.05 s"


class Ending(Watch):
    """Ends by itself."""

    def _run(self) -> None:
        pass


async def test_an_agent_does_not_go_on_without_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_devices, "Watch", Ending)
    with pytest.raises(RuntimeError, match="has ended"):
        await Agent(["GPU-a"], tmp_path).devices.run()


def test_everything_that_nvml_tells_is_read(two: list[str]) -> None:
    assert read(two[0]) == Reading(action=Action.NONE, uncorrected=0, remap_failed=False)
    hot = pynvml.nvmlClocksEventReasonHwThermalSlowdown | pynvml.nvmlClocksEventReasonGpuIdle
    for ailment, value, expected in (
        (Ailment.UNCORRECTED, 7, {"uncorrected": 7}),
        (Ailment.ROW_PENDING, 1, {"remap_pending": True}),
        (Ailment.PAGE_PENDING, 1, {"remap_pending": True}),
        (Ailment.ROW_FAILED, 1, {"remap_failed": True}),
        (Ailment.CLOCKS, hot, {"slowdowns": frozenset({Slowdown.HARDWARE_THERMAL})}),
        (
            Ailment.RECOVERY_ACTION,
            pynvml.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P,
            {"action": Action.PEERS},
        ),
    ):
        ail(0, ailment, value)
        told = read(two[0])
        assert {name: getattr(told, name) for name in expected} == expected
        ail(0, ailment, 0)
    assert read(two[0]) == Reading(action=Action.NONE, uncorrected=0, remap_failed=False)


def test_a_gpu_is_found_beside_one_that_is_lost(two: list[str]) -> None:
    ail(0, Ailment.LOST)
    assert read(two[0]) == Reading(Answer.LOST, "GPU is lost")
    assert read(two[1]).answer is Answer.YES


def test_why_clocks_are_held_down_is_told_also_beside_a_gpu_that_is_lost(two: list[str]) -> None:
    ail(1, Ailment.CLOCKS, pynvml.nvmlClocksEventReasonSwThermalSlowdown)
    warm = frozenset({Slowdown.SOFTWARE_THERMAL})
    assert gpu_slowdowns() == {two[0]: frozenset(), two[1]: warm}
    ail(0, Ailment.LOST)
    assert gpu_slowdowns() == {two[1]: warm}


def test_without_a_driver_no_clocks_are_held_down(machine: Machine) -> None:
    machine(A100_80, faults=f"nvmlInitWithFlags 1 9 fail {NO_DRIVER}")
    assert gpu_slowdowns() == {}


def test_an_old_driver_tells_less_and_that_is_no_fault(machine: Machine) -> None:
    silent = ";".join(
        f"{name} 1 1000 fail {pynvml.NVML_ERROR_NOT_SUPPORTED}"
        for name in (
            "nvmlDeviceGetFieldValues",
            "nvmlDeviceGetTotalEccErrors",
            "nvmlDeviceGetRemappedRows",
            "nvmlDeviceGetRetiredPagesPendingStatus",
            "nvmlDeviceGetCurrentClocksEventReasons",
        )
    )
    machine(A100_80, faults=silent)
    pynvml.nvmlInit()
    uuid = str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)))
    assert read(uuid) == Reading()
    pynvml.nvmlShutdown()


def test_a_gpu_in_mig_mode_answers_those_who_may_not_know_its_memory(machine: Machine) -> None:
    machine(
        A100_80, faults=f"nvmlDeviceGetMemoryInfo 1 1000 fail {pynvml.NVML_ERROR_NO_PERMISSION}"
    )
    pynvml.nvmlInit()
    uuid = str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)))
    assert read(uuid).answer is Answer.YES
    pynvml.nvmlShutdown()


@pytest.mark.parametrize(
    "error", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_TIMEOUT, pynvml.NVML_ERROR_IRQ_ISSUE]
)
def test_another_error_is_no_loss(machine: Machine, error: int) -> None:
    machine(A100_80, faults=f"nvmlDeviceGetMemoryInfo 1 1000 fail {error}")
    pynvml.nvmlInit()
    uuid = str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)))
    assert read(uuid).answer is Answer.ERROR
    pynvml.nvmlShutdown()


async def test_listening_ends_soon_after_it_was_told_to(two: list[str]) -> None:
    """Also between two readings that are an hour apart."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(*_: object) -> None:
        loop.call_soon_threadsafe(told.set)

    watch = Watch(two, tell, read_s=3600)
    watch.start()
    await asyncio.wait_for(told.wait(), PATIENCE_S)
    await asyncio.to_thread(watch.stop)
    assert "gpu-health" not in {each.name for each in threading.enumerate()}


@pytest.mark.gpu
async def test_a_real_gpu_is_read_listened_to_and_healthy(tmp_path: Path) -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    uuids = [
        str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
        for index in range(pynvml.nvmlDeviceGetCount())
    ]
    found = [read(uuid) for uuid in uuids]
    pynvml.nvmlShutdown()
    assert [each.answer for each in found] == [Answer.YES] * len(found)
    async with looking_after(uuids, tmp_path) as agent:
        assert {each.health for each in agent.devices.verdicts.values()} == {Health.HEALTHY}
