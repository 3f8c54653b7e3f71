"""Instances on a GPU that have processes of their own through MPS: which daemon they are clients of, and what becomes of them
when it or one of them ends. By a program in the place of NVIDIA's; nothing here touches a GPU.
"""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, infer_grpc
from support.model_files import rows, told
from support.mps_stand_in import MpsStandIn
from support.server import PATIENCE_S, Server, running_server, wait_until
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.dispatch.mps import MOST_FAILURES
from tessera_runtime.supervisor import control_path
from tessera_runtime.target import DeviceTarget, ProfileReport, ProfileRequest, ServiceTarget
from tessera_runtime.worker.confine import landlock_abi

FAULT, SLOW = 9001.0, 500.0
CLIENTS = 4
GPUS = tuple(
    DeviceTarget(
        f"gpu-{number}",
        "cuda",
        environment={"CUDA_VISIBLE_DEVICES": f"GPU-{number}"},
        mps_clients=CLIENTS,
    )
    for number in range(2)
)

_MODEL = """
import os, time
import numpy as np

PIPES = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "")

def opens(path):
    try:
        open(path).close()
        return "opens"
    except PermissionError:
        return "refused"

def end_with_the_others():
    if PIPES and os.path.getsize(PIPES + "/fault"):
        os._exit(70)

class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,)), "where": ("BYTES", (3,)), "fault": ("BYTES", (1,))}
    memory_mib = 10.0

    def __call__(self, batch):
        x = batch["x"]
        end_with_the_others()
        if FAULT in x[:, 0]:
            time.sleep(0.3)
            if PIPES:
                with open(PIPES + "/fault", "a") as file:
                    file.write("x")
            os._exit(70)
        if SLOW in x[:, 0]:
            time.sleep(0.6)
            end_with_the_others()
        where = [PIPES, os.environ.get("CUDA_VISIBLE_DEVICES", ""), str(os.getpid())]
        where = np.array([[each.encode() for each in where]] * len(x), dtype=object)
        fault = np.array([[opens(open("TOLD").read()).encode()]] * len(x), dtype=object)
        return {"y": x * np.float32(2), "where": where, "fault": fault}

def load(device, options):
    return Model()
"""


@pytest.fixture
def mps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MpsStandIn:
    stand_in = MpsStandIn(tmp_path / "mps")
    for name, value in stand_in.environment.items():
        monkeypatch.setenv(name, value)
    return stand_in


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    told = folder / "told"
    told.write_text("/dev/null")
    options = ("--hang-timeout=2", "--load-timeout=5", f"--readable={told}")
    with running_server(folder / "run", *options) as server:
        yield server


@pytest.fixture
def server(mps: MpsStandIn, tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    values = {"FAULT": FAULT, "SLOW": SLOW, "TOLD": tmp_path / "told"}
    source = _MODEL
    for name, value in values.items():
        source = source.replace(name, str(value))
    path.write_text(source)
    return path


def on(model: Path, name: str, instances: dict[str, int], namespace: str = "test") -> ServiceTarget:
    found = service(name, member("a", model, instances=instances, max_batch=1))
    return msgspec.structs.replace(found, name=f"{namespace}.{name}")


def apply(server: Server, *services: ServiceTarget) -> None:
    server.apply(target(*services, devices=GPUS))


def places(crowd: Crowd, name: str, instances: int) -> set[tuple[str, ...]]:
    """(pipes, visible devices, process) of each instance: they answer at once, so that each has one to answer."""
    asked = [crowd.submit(_where, crowd, name) for _ in range(2 * instances)]
    return {each.result() for each in asked}


def _where(crowd: Crowd, name: str) -> tuple[str, ...]:
    answer = infer_grpc(crowd.client, name, rows(SLOW), client_timeout=PATIENCE_S)
    return tuple(each.decode() for each in answer.as_numpy("where")[0])


def failures(server: Server) -> dict[str, float]:
    """``tessera_mps_failures_total`` and ``tessera_mps_running`` by labels."""
    url = f"http://127.0.0.1:{server.ports().metrics}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith("tessera_mps_"))
    return {name: float(value) for name, _, value in found}


OF_ONE = '{device="GPU-0",namespace="test"}'


def test_there_is_a_daemon_for_each_gpu_and_namespace_while_it_has_clients(
    server: Server, crowd: Crowd, mps: MpsStandIn, model: Path
):
    both = on(model, "m", {"gpu-0": 2, "gpu-1": 1})
    other = on(model, "n", {"gpu-0": 1}, "other")
    apply(server, both, other)
    daemons = mps.wait_living(3)
    assert sorted(each.visible for each in daemons) == ["GPU-0", "GPU-0", "GPU-1"]
    assert len({each.pipes for each in daemons}) == 3
    gpu_of = {str(each.pipes): each.visible for each in daemons}
    mine, theirs = places(crowd, "test.m", 3), places(crowd, "other.n", 1)
    assert {gpu_of[pipes] == visible for pipes, visible, _ in mine | theirs} == {True}
    assert {visible for _, visible, _ in mine} == {"GPU-0", "GPU-1"}
    assert len({process for *_, process in mine | theirs}) == 4, "a process for each instance"
    assert {pipes for pipes, *_ in mine}.isdisjoint(pipes for pipes, *_ in theirs)
    assert failures(server)["tessera_mps_running" + OF_ONE] == 1

    apply(server, on(model, "m", {"gpu-1": 1}), other)
    assert sorted(each.visible for each in mps.wait_living(2)) == ["GPU-0", "GPU-1"]
    apply(server)
    mps.wait_living(0)
    assert failures(server)["tessera_mps_running" + OF_ONE] == 0
    assert len(mps.starts) == 3


def test_instances_beyond_the_clients_of_a_place_share_processes(
    server: Server, crowd: Crowd, mps: MpsStandIn, model: Path
):
    apply(server, on(model, "m", {"gpu-0": CLIENTS}), on(model, "n", {"gpu-0": 2}))
    assert len(server.worker_pids()) == CLIENTS
    assert len(mps.wait_living(1)) == 1


@pytest.mark.skipif(not landlock_abi(), reason="this kernel has no Landlock")
def test_a_worker_reaches_the_daemon_of_its_own_namespace_only(
    server: Server, crowd: Crowd, mps: MpsStandIn, model: Path, tmp_path: Path
):
    apply(server, on(model, "m", {"gpu-0": 1}), on(model, "n", {"gpu-0": 1}, "other"))
    daemons = {str(each.pipes): each for each in mps.wait_living(2)}
    ((mine, *_),) = places(crowd, "test.m", 1)
    ((theirs, *_),) = places(crowd, "other.n", 1)
    assert daemons.keys() == {mine, theirs}
    opened = {}
    for whose in (mine, theirs):
        (tmp_path / "told").write_text(f"{whose}/fault")
        answer = infer_grpc(crowd.client, "test.m", rows(1))
        opened[whose] = answer.as_numpy("fault")[0, 0].decode()
    assert opened == {mine: "opens", theirs: "refused"}


def test_a_model_that_cannot_be_loaded_ends_nobody(
    server: Server, mps: MpsStandIn, model: Path, tmp_path: Path
):
    serves = on(model, "m", {"gpu-0": 2})
    apply(server, serves)
    before = server.worker_pids()
    bad = tmp_path / "bad.py"
    bad.write_text("def load(device, options):\n    raise ValueError('no weights')\n")
    server.apply(target(serves, on(bad, "n", {"gpu-0": 1}), devices=GPUS), wait=False)
    server.wait_for(
        lambda report: any("no weights" in m.problem for s in report.services for m in s.members),
        "the problem to be told",
    )
    server.apply(target(serves, devices=GPUS))
    assert server.worker_pids() >= before
    assert len(mps.starts) == 1


@pytest.mark.slow
def test_a_fault_ends_all_clients_and_fails_its_own_request_only(
    server: Server, crowd: Crowd, mps: MpsStandIn, model: Path
):
    """The others ran beside it, so that each of them may be to blame: they are tried again one by one."""
    apply(server, on(model, "m", {"gpu-0": 2}), on(model, "n", {"gpu-0": 2}))
    before, (faulted,) = server.worker_pids(), mps.wait_living(1)
    mates = [crowd.ask("test.n", rows(SLOW)) for _ in range(4)]
    fault = crowd.ask("test.m", told(FAULT))
    mates += [crowd.ask("test.m", rows(SLOW)) for _ in range(4)]
    for each in mates:
        np.testing.assert_array_equal(each.result(), rows(SLOW) * 2)
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*2 instances ended"):
        fault.result()
    server.wait_served()
    assert before.isdisjoint(server.worker_pids()), "also those that ran nothing"
    (now,) = mps.wait_living(1)
    assert now != faulted
    assert len(mps.starts) == 3, "one for each fault"
    assert failures(server)["tessera_mps_failures_total" + OF_ONE] == 0


@pytest.mark.slow
def test_the_end_of_a_daemon_blames_no_request(
    server: Server, crowd: Crowd, mps: MpsStandIn, model: Path
):
    apply(server, on(model, "m", {"gpu-0": 3}))
    for _ in range(MOST_FAILURES - 1):
        (daemon,) = mps.wait_living(1)
        asked = [crowd.ask("test.m", rows(SLOW)) for _ in range(6)]
        os.kill(daemon.pid, signal.SIGKILL)
        for each in asked:
            np.testing.assert_array_equal(each.result(), rows(SLOW) * 2)
        server.wait_served()
        assert mps.wait_living(1) != (daemon,)
        assert not daemon.directory.exists()
    assert failures(server)["tessera_mps_failures_total" + OF_ONE] == MOST_FAILURES - 1
    assert len({process for *_, process in places(crowd, "test.m", 3)}) == 3


@pytest.mark.slow
def test_without_a_daemon_the_instances_share_one_process(
    server: Server, crowd: Crowd, mps: MpsStandIn, model: Path
):
    mps.refuse()
    apply(server, on(model, "m", {"gpu-0": 3}))
    assert len(server.worker_pids()) == 1
    ((pipes, visible, _),) = places(crowd, "test.m", 3)
    assert (pipes, visible) == ("", "GPU-0")
    assert len(mps.starts) == MOST_FAILURES
    seen = failures(server)
    assert seen["tessera_mps_failures_total" + OF_ONE] == MOST_FAILURES
    assert seen["tessera_mps_running" + OF_ONE] == 0
    said = [
        line["message"] for line in server.log_lines() if "one process instead" in line["message"]
    ]
    assert len(said) == 1
    assert "status 3: no such device" in said[0]
    mps.refuse(False)
    apply(server, on(model, "m", {"gpu-0": 4}))
    assert len(server.worker_pids()) == 1, "no client of MPS beside one that is none"
    apply(server, on(model, "m", {"gpu-1": 2}))
    assert [each.visible for each in mps.wait_living(1)] == ["GPU-1"], "each place for itself"


def test_a_daemon_that_does_not_quit_is_killed(server: Server, mps: MpsStandIn, model: Path):
    apply(server, on(model, "m", {"gpu-0": 1}))
    mps.wait_living(1)
    mps.be_stubborn()
    apply(server)
    mps.wait_living(0)


@pytest.mark.slow
def test_a_dispatcher_that_is_killed_leaves_no_daemon(
    server: Server, crowd: Crowd, mps: MpsStandIn, model: Path
):
    apply(server, on(model, "m", {"gpu-0": 2}))
    (before,) = mps.wait_living(1)
    pid = server.dispatcher_pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.pid_of("tessera_runtime.dispatch.main") not in (None, pid), "another")
    wait_until(lambda: not before.processes(), "the end of what it left")
    server.reapply()
    (now,) = mps.wait_living(1)
    assert now != before


def test_a_server_that_ends_takes_its_daemons_along(mps: MpsStandIn, model: Path, tmp_path: Path):
    with serving(tmp_path) as server:
        apply(server, on(model, "m", {"gpu-0": 2}))
        (daemon,) = mps.wait_living(1)
        root = daemon.directory.parent
    assert not daemon.processes()
    assert not root.exists()


# Measuring


def measured(server: Server, model: Path) -> ProfileReport:
    path = member("a", model, instances={}, max_batch=2)
    request = ProfileRequest(GPUS[0], path, (), (), (1, 2), (1, 2), 0.01, 60_000.0, 10.0)

    async def ask() -> ProfileReport:
        control = ControlClient(str(control_path(server.run_dir)))
        try:
            return await control.profile(request, PATIENCE_S)
        finally:
            await control.close()

    return asyncio.run(ask())


def test_a_model_is_measured_as_it_is_served(server: Server, mps: MpsStandIn, model: Path):
    server.report()
    memory = {cell.instances: cell.memory_mib for cell in measured(server, model).cells}
    assert memory == {1: 10.0, 2: 20.0}, "a process for each instance has weights of its own"
    mps.wait_living(0)
    assert len(mps.starts) == 1
    assert mps.starts[0].visible == "GPU-0"


def test_what_cannot_be_measured_under_mps_is_not_measured_without(
    server: Server, mps: MpsStandIn, model: Path
):
    server.report()
    mps.refuse()
    for _ in range(MOST_FAILURES + 1):
        with pytest.raises(ControlError, match="no such device"):
            measured(server, model)
    assert len(mps.starts) == MOST_FAILURES
