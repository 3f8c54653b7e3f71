"""Models that leak or ask for more memory than there is, and memory that is full or not as it was written."""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, infer_http
from support.fault_load import Counts, FaultLoad
from support.model_files import ModelFile, rows, told
from support.raw_http import RawClient, request
from support.server import Server, wait_until
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.target import DeviceTarget

Counted = Callable[[FaultLoad], Counts]

HUNGRY = 8500.0
"""First element of a row for which the model below asks for much memory."""

_MODEL = """
import numpy as np
kept = []
class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        x = batch["x"]
        if (x[:, 0] == HUNGRY).any():
            np.ones(400 << 20, np.uint8)
        kept.append(np.ones(LEAK << 10, np.uint8))
        return {"y": x * np.float32(2)}
def load(device, options):
    LOADING
    return Model()
"""


def double(x: np.ndarray) -> np.ndarray:
    return x * np.float32(2)


def model(path: Path, leak_kib: int = 0, loading: str = "pass") -> Path:
    text = _MODEL.replace("HUNGRY", str(HUNGRY)).replace("LEAK", str(leak_kib))
    path.write_text(text.replace("LOADING", loading))
    return path


def test_a_leaking_instance_is_replaced_and_costs_no_request(
    server: Server, tmp_path: Path, counted: Counted
):
    leaking = model(tmp_path / "leaking.py", leak_kib=1024)
    server.apply(target(service("m", member("a", leaking))))
    first = server.worker_pids()
    with FaultLoad(server.ports(), "test.m", double) as load:
        server.wait_for(lambda r: r.services[0].members[0].restarts >= 2, "two replacements")
        load.wait_right(30)
    assert counted(load).nothing_but_right
    assert not first & server.worker_pids()
    server.apply(target())
    wait_until(lambda: not server.worker_pids(), "no process left")


def test_a_leak_is_ended_before_the_limit_of_its_device(
    server: Server, tmp_path: Path, counted: Counted
):
    """Less than what any instance may grow by: at the limit its requests would fail."""
    leaking = model(tmp_path / "leaking.py", leak_kib=64)
    small = (DeviceTarget("cpu-0", "cpu", memory_mib=40),)
    server.apply(target(service("m", member("a", leaking)), devices=small))
    with FaultLoad(server.ports(), "test.m", double) as load:
        server.wait_for(lambda r: r.services[0].members[0].restarts >= 1, "the replacement")
        load.wait_right(30)
    assert counted(load).nothing_but_right


LIMITED = (DeviceTarget("cpu-0", "cpu"), DeviceTarget("cpu-1", "cpu", memory_mib=128))


def test_a_model_that_does_not_fit_is_reported_and_the_others_serve_on(
    server: Server, file: ModelFile, tmp_path: Path, counted: Counted
):
    large = model(tmp_path / "large.py", loading="kept.append(np.ones(400 << 20, np.uint8))")
    good = service("good", member("a", file))
    server.apply(target(good, devices=LIMITED))
    with FaultLoad(server.ports(), "test.good", file) as load:
        too_large = service("large", member("a", large, instances={"cpu-1": 1}))
        server.apply(target(good, too_large, devices=LIMITED), wait=False)
        server.wait_for(
            lambda r: any(m.problem for s in r.services for m in s.members), "the reason reported"
        )
        load.wait_right(30)
    assert counted(load).nothing_but_right
    assert "MemoryError" in server.member("test.large").problem
    with pytest.raises(InferenceServerException, match=r"503|ready"):
        infer_http(server.http(), "test.large", rows(1))


def test_a_request_that_needs_too_much_memory_fails_alone(
    server: Server, crowd: Crowd, tmp_path: Path, counted: Counted
):
    hungry = model(tmp_path / "hungry.py")
    wanted = service("m", member("a", hungry, instances={"cpu-1": 2}))
    server.apply(target(wanted, devices=LIMITED))
    with FaultLoad(server.ports(), "test.m", double) as load:
        for _ in range(3):
            with pytest.raises(InferenceServerException, match=r"INTERNAL.*MemoryError"):
                crowd.ask("test.m", told(HUNGRY)).result()
            load.wait_right(20)
    assert counted(load).nothing_but_right
    assert server.member("test.m").restarts == 0


def test_the_kernel_ends_workers_first(server: Server, file: ModelFile):
    """When there is no memory left at all: what runs a model is started again, and nobody else has to die."""
    server.apply(target(service("m", member("a", file))))

    def eagerness(pid: int) -> int:
        return int((Path("/proc") / str(pid) / "oom_score_adj").read_text())

    [worker] = server.worker_pids()
    others = server.dispatcher_pid, server.zygote_pid, server.process.pid
    assert all(eagerness(worker) > eagerness(other) for other in others)


def test_a_full_arena_refuses_what_does_not_fit_and_takes_it_later(
    server: Server, file: ModelFile, counted: Counted
):
    """Filled by clients that announce much and send little: what is small finds its place all the same."""
    most = 4 << 20  # of one request; the arena of the tests has 16 MiB
    server.apply(target(service("m", member("a", file))))
    head = "Inference-Header-Content-Length: 100\r\n"
    begun = request("POST", "/v2/models/test.m/infer", b" " * most, head)[: most // 2]
    with FaultLoad(server.ports(), "test.m", file) as load:
        load.wait_right(20)
        with ExitStack() as connected:
            clients = [connected.enter_context(RawClient(server.ports().http)) for _ in range(5)]
            for client in clients:
                client.send(begun)
            answered, _, _ = select.select([client.socket for client in clients], [], [], 20)
            refused = [client for client in clients if client.socket in answered]
            assert refused
            assert all(client.read().status == 429 for client in refused)
            load.wait_right(30)
        server.wait_for(lambda r: r.arena_used < most, "the memory of clients that left")
        with RawClient(server.ports().http) as late:
            late.send(begun)
            assert not select.select([late.socket], [], [], 0.2)[0], "it is being received"
        load.wait_right(30)
    assert counted(load).nothing_but_right
    server.wait_for(lambda r: r.arena_used == 0, "the arena empty again")


_VANDAL = """
import sys, threading, time
import numpy as np

class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("BYTES", (2,)), "z": ("FP32", (2,))}
    spoils = False

    def __call__(self, batch):
        x = batch["x"]
        if not hasattr(self, "region"):
            self.region = None
            frame = sys._getframe()
            while frame is not None and "self" not in frame.f_locals or not hasattr(
                frame.f_locals["self"], "_region"
            ):
                frame = frame.f_back
            self.lane = frame.f_locals["self"]
            write = self.lane._write
            self.lane._write = lambda packed: (write(packed), self.spoil())[0]
            threading.Thread(target=self.spoil_on, daemon=True).start()
        self.spoils = (x[:, 0] == SPOILT).any()
        text = np.array([[b"a" * 9, b"b" * 200]] * len(x), dtype=object)
        return {"y": text, "z": x[:, :2].copy()}

    def spoil(self):
        region = self.lane._region
        if self.spoils and region is not None:
            region[:] = bytes([255]) * len(region)

    def spoil_on(self):
        while True:
            self.spoil()
            time.sleep(0)

def load(device, options):
    return Model()
"""

SPOILT = 8600.0


def test_a_region_that_changes_under_the_dispatcher_harms_only_its_own_member(
    server: Server, crowd: Crowd, file: ModelFile, tmp_path: Path, counted: Counted
):
    """The model overwrites its answers when they are announced, and goes on while they are taken."""
    vandal = tmp_path / "vandal.py"
    vandal.write_text(_VANDAL.replace("SPOILT", str(SPOILT)))
    before = server.dispatcher_pid
    server.apply(target(service("m", member("v", vandal)), service("good", member("a", file))))
    with FaultLoad(server.ports(), "test.good", file) as load:
        for _ in range(3):
            asked = crowd.ask("test.m", told(SPOILT))
            with pytest.raises(InferenceServerException, match=r"INTERNAL.*2 instances ended"):
                asked.result()
        load.wait_right(30)
    assert counted(load).nothing_but_right
    assert server.dispatcher_pid == before
    server.apply(target(service("good", member("a", file))))


_TRESPASSER = """
import mmap, os
import numpy as np

def tried():
    # The arena is mapped, its descriptor is closed: the file behind the mapping is what is left to try.
    done = []
    for line in open("/proc/self/maps"):
        if "memfd:tessera-inputs" not in line:
            continue
        span = line.split()[0]
        assert "w" not in line.split()[1]
        try:
            fd = os.open(f"/proc/self/map_files/{span}", os.O_RDWR)
        except OSError:
            continue
        for attempt in (
            lambda: mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            lambda: os.pwrite(fd, b"spoilt", 0),
            lambda: os.ftruncate(fd, 0),
            lambda: os.posix_fallocate(fd, 0, 1 << 30),
        ):
            try:
                attempt()
                done.append(True)
            except OSError:
                pass
        os.close(fd)
    return len(done)

class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        return {"y": batch["x"] + np.float32(tried())}
def load(device, options):
    return Model()
"""


def test_a_worker_cannot_change_what_clients_have_sent(
    server: Server, crowd: Crowd, tmp_path: Path
):
    trespasser = tmp_path / "trespasser.py"
    trespasser.write_text(_TRESPASSER)
    server.apply(target(service("m", member("a", trespasser))))
    np.testing.assert_array_equal(crowd.ask("test.m", rows(5)).result(), rows(5))
