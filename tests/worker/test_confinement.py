"""What a worker process gives up before the first model is read, and what it keeps."""

from __future__ import annotations

import os
import platform
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from support.model_files import ModelFile
from support.server import children, wait_until
from tessera_runtime.dispatch.workers import LoadFailed, Place, Worker, WorkerPool
from tessera_runtime.worker import confine as c
from tessera_runtime.worker import messages as m
from tessera_runtime.worker.sockets import program

ABI = c.landlock_abi()
CPU = Place("cpu-0", "cpu")

needs_landlock = pytest.mark.skipif(not ABI, reason="this kernel has no Landlock")


@pytest.mark.parametrize(
    ("abi", "files", "tcp", "scopes"),
    [
        (1, 0x1FFF, 0, 0),
        (2, 0x3FFF, 0, 0),
        (3, 0x7FFF, 0, 0),
        (4, 0x7FFF, 3, 0),
        (5, 0xFFFF, 3, 0),
        (6, 0xFFFF, 3, 3),
        (99, 0xFFFF, 3, 3),
    ],
)
def test_a_kernel_is_asked_for_no_more_than_it_knows(abi: int, files: int, tcp: int, scopes: int):
    assert c.handled(abi) == c.Handled(files, tcp, scopes)


def test_a_kernel_without_the_system_calls_has_version_0(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(c, "_CREATE_RULESET", 9999)  # ENOSYS, from the kernel itself
    assert c.landlock_abi() == 0
    with pytest.raises(OSError, match="not implemented"):
        c.prepare(c.Limits(1, ""), "", "cpu")


def rights(kind: str, pipes: str = "") -> dict[str, int]:
    granted = (
        *c.grants("/scratch/1", kind, ["/weights"], pipes),
        *c.grants_inside(kind, "/models/m.onnx"),
    )
    return {grant.path: grant.rights for grant in granted}


def test_only_its_directory_and_devices_are_writable():
    found = rights("cpu")
    assert found["/models/m.onnx"] == found["/weights"] == c.READ
    writable = {path for path, each in found.items() if each & ~c.RUN}
    assert writable == {"/scratch/1", *c._DEVICES}
    assert all(stat.S_ISCHR(os.stat(path).st_mode) for path in c._DEVICES)


NVIDIA = (
    *("nvidia0", "nvidia1", "nvidiactl", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools"),
    *("nvidia-caps", "nvidia-caps-imex-channels", "nvidia-nvswitch0", "nvidia-nvswitchctl"),
)
"""Names below ``/dev`` that NVIDIA's driver documents; MIG's and IMEX's are directories."""


def test_a_gpu_adds_its_devices_and_the_names_of_threads(monkeypatch: pytest.MonkeyPatch):
    present = [Path("/dev") / name for name in NVIDIA]
    others = [Path("/dev/dri"), Path("/dev/vda")]
    monkeypatch.setattr(
        Path,
        "glob",
        lambda path, pattern: (p for p in present + others if p.match(f"{path}/{pattern}")),
    )
    more = rights("cuda").items() - rights("cpu").items()
    devices = {(str(path), c.USE) for path in present}
    assert more == {*devices, ("/proc/self", c.READ | c.WRITE_FILE | c.TRUNCATE)}


def test_a_gpu_has_what_the_driver_reads_and_a_cache_for_what_it_compiles():
    found = rights("cuda")
    read = {path for path, each in found.items() if each & c.READ == c.READ}
    assert {
        "/proc",
        "/sys",
        "/usr",
        "/etc/ld.so.cache",
    } <= read  # /proc/driver/nvidia, PCI, libcuda
    assert found["/scratch/1"] == c.OWN  # its HOME, below which .nv/ComputeCache is made


def test_a_gpus_worker_reaches_its_mps_server():
    more = dict(rights("cuda", "/mps/1/pipes").items() - rights("cuda").items())
    assert more == {"/mps/1/pipes": c.TALK, "/dev/shm": c.SHARE}
    assert not c.SHARE & (c.EXECUTE | c.MAKE_SOCK | c.MAKE_CHAR)
    assert not rights("cpu", "/mps/1/pipes").keys() & more.keys()


_ALONE = """
import sys
from tessera_runtime.parent import gain_no_privileges
from tessera_runtime.worker.confine import Limits, confine, prepare
gain_no_privileges()
own, secret, abi, kind = sys.argv[1:]
confine(prepare(Limits(int(abi), ""), own, kind), secret + "-is-not-this")
open(own + "/new", "w").write("mine")
assert open(own + "/new").read() == "mine"
try:
    open(secret)
except PermissionError:
    print("refused")
if kind == "cuda":
    import threading
    open("/proc/self/comm", "w").write("renamed")
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    open(f"/proc/self/task/{thread.native_id}/comm", "w").write("cuda-thread")
    stop.set()
"""


@needs_landlock
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("abi", range(1, ABI + 1))
def test_every_version_of_the_interface_confines(tmp_path: Path, abi: int, kind: str):
    own, secret = tmp_path / "own", tmp_path / "secret"
    own.mkdir()
    secret.touch()
    ran = subprocess.run(
        [sys.executable, "-c", _ALONE, own, secret, str(abi), kind],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("refused\n", "")


_FILTERED = """
import ctypes, os, socket, sys
from tessera_runtime.parent import gain_no_privileges
from tessera_runtime.worker.sockets import refuse_sockets, socket_filter
gain_no_privileges()
refuse_sockets(socket_filter(sys.argv[1]))
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_UNIX):
    try:
        socket.socket(family, socket.SOCK_DGRAM).close()
        print(family.name)
    except PermissionError:
        pass
with socket.socketpair()[0], open("/dev/null"):
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(425, 1, None) == -1
    assert ctypes.get_errno() == 13, "no io_uring"
"""


@pytest.mark.skipif(not program(platform.machine(), ()), reason="for other processors")
@pytest.mark.parametrize(("kind", "made"), [("cpu", ""), ("cuda", "AF_UNIX\n")])
def test_only_sockets_that_the_device_needs_are_made(kind: str, made: str):
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FILTERED, kind],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == (made, "")


def test_a_filter_has_a_way_out_of_every_instruction():
    for families in ((), (1,), (1, 2, 3)):
        code = program("aarch64", families)
        for at, (_, true, false, _) in enumerate(code[:-2]):
            assert at + 1 + max(true, false) < len(code)
    assert program("vax", ()) == ()


# Workers of a zygote

_READER = """
import os

class Model:
    inputs = outputs = {"x": ("FP32", (1,))}
    def __call__(self, batch):
        return {"x": batch["x"]}

def load(device, options):
    SOURCE
    return Model()
"""


async def loads(worker: Worker, folder: Path, name: str, code: str) -> None:
    """Load a Python model that does ``code`` meanwhile. Raises LoadFailed with what that has raised."""
    path = folder / f"{name}.py"
    path.write_text(_READER.replace("SOURCE", code))
    await worker.load(m.Load(name, str(path), "Python", True, (), ()))


async def ended(*workers: Worker) -> None:
    for worker in workers:
        worker.kill()
        await worker.lost


@needs_landlock
async def test_a_model_reads_its_own_file_and_no_other(pool: WorkerPool, tmp_path: Path):
    one, other = await pool.start(CPU), await pool.start(CPU)
    await loads(one, tmp_path, "mine", f"open({str(tmp_path / 'mine.py')!r}).read()")
    theirs = str(tmp_path / "mine.py")
    with pytest.raises(LoadFailed, match="PermissionError"):
        await loads(other, tmp_path, "curious", f"open({theirs!r})")
    with pytest.raises(LoadFailed, match="PermissionError"):
        await loads(other, tmp_path, "listing", f"os.listdir({str(tmp_path)!r})")
    await ended(one, other)


@needs_landlock
async def test_models_that_share_a_process_are_all_loaded(pool: WorkerPool, tmp_path: Path):
    """Rights cannot be had later: the second one's file is closed to the process, and comes by a descriptor."""
    worker = await pool.start(CPU)
    await loads(worker, tmp_path, "first", "pass")
    await loads(worker, tmp_path, "second", "pass")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "third.onnx"
    onnx.save(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path
    )
    loaded = await worker.load(m.Load("third", str(path), "ONNX", False, (), ()))
    assert [t.name for t in loaded.outputs] == ["y"]
    with pytest.raises(LoadFailed, match="PermissionError"):
        await loads(worker, tmp_path, "fourth", f"open({str(path)!r})")
    with pytest.raises(LoadFailed, match="No such file"):
        await worker.load(m.Load("fifth", str(tmp_path / "nowhere"), "ONNX", False, (), ()))
    await ended(worker)


@needs_landlock
async def test_a_later_model_without_room_for_its_copy_fails_alone(
    pool: WorkerPool, tmp_path: Path
):
    worker = await pool.start(CPU)
    await loads(worker, tmp_path, "first", "pass")
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
    with pytest.raises(LoadFailed, match="File too large"):
        await loads(worker, tmp_path, "second", "pass")
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    await loads(worker, tmp_path, "second", "pass")
    assert worker.alive
    await ended(worker)


@needs_landlock
async def test_models_that_are_told_beforehand_are_read_where_they_are(
    pool: WorkerPool, tmp_path: Path
):
    worker = await pool.start(CPU)
    first, second, third = (ModelFile(tmp_path / f"{name}.py") for name in ("a", "b", "c"))
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
    load = m.Load("a", str(first.path), "Python", True, (), (), (str(second.path),))
    await worker.load(load)
    await worker.load(m.Load("b", str(second.path), "Python", True, (), ()))
    with pytest.raises(LoadFailed, match="File too large"):
        await worker.load(m.Load("c", str(third.path), "Python", True, (), ()))
    await ended(worker)


@needs_landlock
async def test_a_later_torch_model_is_loaded(pool: WorkerPool, tmp_path: Path):
    import torch

    from support.torch_nets import Mlp, export, script

    worker = await pool.start(CPU)
    await loads(worker, tmp_path, "first", "pass")
    net, example = Mlp().eval(), (torch.zeros(2, 6),)
    exported = export(net, tmp_path / "mlp.pt2", example)
    await worker.load(m.Load("second", str(exported), "TorchExport", False, (), ()))
    scripted = script(net, tmp_path / "mlp.pt", example)
    inputs = (m.Tensor("x", "FP32", (6,)),)
    await worker.load(m.Load("third", str(scripted), "TorchScript", True, inputs, ()))
    await ended(worker)


_WRITES = """
    import tempfile
    from pathlib import Path
    (Path.home() / ".cache").mkdir()
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"mine")
    os.rename(file.name, Path.home() / ".cache" / "renamed")
    with tempfile.TemporaryFile() as file:
        file.write(b"mine")
"""


def written(scratch: Path) -> list[Path]:
    return list(scratch.glob("*/.cache/renamed"))


@needs_landlock
async def test_a_worker_writes_in_its_own_directory_which_goes_with_it(
    pool: WorkerPool, tmp_path: Path, scratch: Path, zygote
):
    one, other = await pool.start(CPU), await pool.start(CPU)
    await loads(one, tmp_path, "writing", _WRITES.strip())
    [left] = written(scratch)
    with pytest.raises(LoadFailed, match="PermissionError"):
        await loads(other, tmp_path, "curious", f"open({str(left)!r})")
    with pytest.raises(LoadFailed, match="PermissionError"):
        await loads(other, tmp_path, "elsewhere", f"open({str(tmp_path / 'new')!r}, 'w')")
    await ended(one, other)
    wait_until(lambda: not list(scratch.iterdir()), "the directories of workers that ended gone")
    wait_until(lambda: not children(zygote.process.pid), "what has removed them gone")


@needs_landlock
async def test_what_killed_workers_left_goes_when_the_dispatcher_hangs_up(
    pool: WorkerPool, tmp_path: Path, scratch: Path
):
    worker = await pool.start(CPU)
    await loads(worker, tmp_path, "writing", _WRITES.strip())
    pool.close()
    await worker.lost
    wait_until(lambda: not list(scratch.iterdir()), "the directory gone")


# Its sockets


def test_who_does_not_know_the_secret_is_no_dispatcher(zygote):
    for said in (b"", b"x", b"0" * 64, b"0" * 100_000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.connect(zygote.path)
            if said:
                stranger.send(said)
            assert stranger.recv(1) == b""


async def test_a_stranger_does_not_keep_a_dispatcher_out(pool: WorkerPool, zygote):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(zygote.path)
        await ended(await pool.start(CPU))


@needs_landlock
async def test_the_secret_is_not_in_a_workers_memory(pool: WorkerPool, zygote, tmp_path: Path):
    worker = await pool.start(CPU)
    await loads(worker, tmp_path, "any", "pass")
    os.kill(worker.pid, signal.SIGSTOP)
    secret = (tmp_path / "secret").read_bytes()
    held = holders(worker.pid, secret)
    assert not held
    await ended(worker)


def holders(pid: int, secret: bytes) -> list[str]:
    """Writable maps of a process with ``secret`` in them."""
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            first, last = (int(part, 16) for part in span.split("-"))
            if rights.startswith("rw"):
                memory.seek(first)
                if secret in memory.read(last - first):
                    found.append(line)
    return found
