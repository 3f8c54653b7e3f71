"""What a model's code may do in a real server: little, unless whoever runs the server says otherwise."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc_client

from support.certificates import Authority
from support.clients import infer_grpc
from support.model_files import ModelFile
from support.server import PATIENCE_S, Server, running_server, started, wait_until
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.secret import secret_path
from tessera_runtime.supervisor import confinement, control_path
from tessera_runtime.target import DeviceTarget
from tessera_runtime.worker.confine import CAP_DAC_OVERRIDE, landlock_abi

ABI = landlock_abi()

_TRIES = """
import os, signal, socket, subprocess, tempfile
from pathlib import Path
import numpy as np

class Model:
    inputs = outputs = {"x": ("BYTES", (1,))}

    def __call__(self, batch):
        return {"x": np.array([[tried(code)] for [code] in batch["x"]], dtype=object)}

def tried(code):
    try:
        return repr(eval(code or b"0", globals())).encode()
    except Exception as error:
        return type(error).__name__.encode()

def said(path, line):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(line)
        return sock.recv(100)

def load(device, options):
    return Model()
"""


class Tried:
    """A server with TLS that runs the model above, and another one."""

    def __init__(self, server: Server, folder: Path, authority: Authority, key: Path) -> None:
        self.server, self.folder, self.key = server, folder, key
        self.other = ModelFile(folder / "other.py")
        self.path = folder / "tries.py"
        self.path.write_text(_TRIES)
        credentials = grpc_client.grpc.ssl_channel_credentials(authority.file.read_bytes())
        server.apply(
            target(service("m", member("a", self.path)), service("n", member("a", self.other)))
        )
        self._client = grpc_client.InferenceServerClient(
            f"127.0.0.1:{server.ports().grpc}", creds=credentials
        )

    def __call__(self, code: str, model: str = "test.m") -> str:
        """What comes of ``code`` in the worker: its value, or the name of what it raised."""
        x = np.array([[code.encode()]], dtype=object)
        result = infer_grpc(self._client, model, x, client_timeout=PATIENCE_S)
        [[found]] = result.as_numpy("x")
        return found.decode()

    def close(self) -> None:
        self._client.close()


def trying(folder: Path, *options: str) -> Iterator[Tried]:
    authority = Authority(folder)
    pair = authority.issue("server")
    tls = f"--tls-cert={pair.certificate}", f"--tls-key={pair.key}"
    with running_server(folder / "run", *tls, *options) as server:
        tried = Tried(server, folder, authority, pair.key)
        try:
            yield tried
        finally:
            tried.close()


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    if not ABI:
        pytest.skip("this kernel has no Landlock")
    yield from trying(tmp_path_factory.mktemp("confined"))


def test_nothing_of_others_is_read(tried: Tried):
    own = tried.path
    assert tried(f"open({str(own)!r}).read() != ''") == "True"
    closed = [
        tried.other.path,
        tried.key,
        secret_path(tried.server.run_dir),
        tried.server.log_path,
        "/etc/shadow",
        Path("pyproject.toml").absolute(),
    ]
    assert all(Path(path).is_file() for path in closed)
    for path in closed:
        assert tried(f"open({str(path)!r})") == "PermissionError", path
    for folder in (tried.folder, tried.server.run_dir, "/tmp", "/home", "/"):
        assert tried(f"os.listdir({str(folder)!r})") == "PermissionError", folder


def test_programs_that_a_model_starts_are_confined_too(tried: Tried):
    python = repr(sys.executable)
    assert tried(f"subprocess.run([{python}, '-c', 'print(1)'], capture_output=True).stdout") == (
        r"b'1\n'"
    )
    read = f"subprocess.run([{python}, '-c', 'open({str(tried.key)!r})'], capture_output=True)"
    assert "PermissionError" in tried(read.replace("'open(", '"open(').replace(")']", ')"]'))


def test_nothing_of_others_is_written(tried: Tried):
    for path in (tried.path, tried.folder / "new", "/tmp/tessera-new", "/dev/shm/tessera-new"):
        assert tried(f"open({str(path)!r}, 'a')") == "PermissionError", path
    assert tried(f"os.unlink({str(tried.other.path)!r})") == "PermissionError"
    assert tried(f"os.rename({str(tried.path)!r}, {str(tried.folder / 'new')!r})") in (
        "PermissionError",
        "OSError",
    )


def test_a_directory_of_its_own_is_written(tried: Tried):
    assert tried("tempfile.gettempdir() == os.environ['HOME'] == str(Path.home())") == "True"
    assert tried("Path.home().joinpath('kept').write_bytes(b'mine')") == "4"
    assert tried("Path.home().joinpath('kept').read_bytes()") == "b'mine'"
    assert tried("open('/dev/null', 'w').write('x')") == "1"


def test_processes_of_the_server_are_out_of_reach(tried: Tried):
    dispatcher = tried.server.dispatcher_pid
    for name in ("environ", "mem", "maps"):
        assert tried(f"open('/proc/{dispatcher}/{name}', 'rb')") == "PermissionError"
    assert tried("os.listdir('/proc/self/fd') != []") == "True"


def test_a_server_of_root_has_workers_without_its_powers(tried: Tried):
    status = "dict(line.split(':') for line in open('/proc/self/status'))"
    held = (
        f"[int({status}[name], 16) & ~CAP_DAC_OVERRIDE for name in ('CapPrm', 'CapEff', 'CapInh')]"
    )
    assert tried(held.replace("CAP_DAC_OVERRIDE", str(CAP_DAC_OVERRIDE))) == "[0, 0, 0]"
    regained = "subprocess.run(['grep', 'CapPrm', '/proc/self/status'], capture_output=True).stdout"
    assert int(tried(f"int({regained}.split()[1], 16)")) & ~CAP_DAC_OVERRIDE == 0


@pytest.mark.skipif(ABI < 6, reason="this kernel's Landlock knows no signals")
def test_processes_of_the_server_get_no_signals(tried: Tried):
    pids = {tried.server.process.pid, tried.server.dispatcher_pid, tried.server.zygote_pid}
    for pid in pids | tried.server.worker_pids():
        own = f"os.getpid() == {pid} or os.kill({pid}, 0)"
        assert tried(own) in ("PermissionError", "True")


def test_nobody_is_called_and_nobody_listened_to(tried: Tried):
    for port in (tried.server.ports().http, tried.server.ports().metrics):
        assert tried(f"socket.create_connection(('127.0.0.1', {port}))") == "PermissionError"
    assert tried("socket.create_server(('127.0.0.1', 0))") == "PermissionError"
    assert tried("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)") == "PermissionError"
    path = str(control_path(tried.server.run_dir))
    assert tried(f"said({path!r}, b'')") == "PermissionError"
    assert tried("[sock.close() for sock in socket.socketpair()]") == "[None, None]"


def test_a_model_that_comes_later_into_a_shared_process_is_served(tried: Tried, tmp_path: Path):
    """As on a GPU, where the instances of a namespace share a process; nothing here touches a device."""
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text(_TRIES)
    other.write_text(_TRIES)
    gpu = (DeviceTarget("gpu-0", "cuda"),)
    first = service("one", member("a", one, instances={"gpu-0": 1}))
    with running_server(tmp_path / "run") as server:
        server.apply(target(first, devices=gpu))
        second = service("other", member("a", other, instances={"gpu-0": 1}))
        server.apply(target(first, second, devices=gpu))
        with grpc_client.InferenceServerClient(f"127.0.0.1:{server.ports().grpc}") as client:
            report = b'{"type":"Report"}\n'
            answers = {
                f"open({str(other)!r})": (b"PermissionError",),
                "socket.create_connection(('127.0.0.1', 1))": (b"PermissionError",),
                # It may connect, but not give orders.
                f"said({str(control_path(server.run_dir))!r}, {report!r})": (
                    b"b''",
                    b"ConnectionResetError",
                ),
            }
            for name in ("test.one", "test.other"):
                for code, expected in answers.items():
                    x = np.array([[code.encode()]], dtype=object)
                    [[found]] = infer_grpc(client, name, x).as_numpy("x")
                    assert found in expected, code
        assert len(server.worker_pids()) == 1


def test_it_is_said_once_that_workers_are_confined(tried: Tried):
    said = [line for line in tried.server.log_lines() if "confined" in line["message"]]
    assert [line["message"] for line in said] == [f"workers are confined: Landlock {ABI}"]


def test_a_server_without_landlock_says_what_that_means():
    level, said = confinement(True, abi=0)
    assert (level, "not confined: no Landlock" in said) == (logging.WARNING, True)
    level, said = confinement(False, abi=ABI)
    assert (level, "not confined: --workers-unconfined" in said) == (logging.WARNING, True)


def test_what_workers_of_a_killed_server_left_goes_when_it_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    killed = Server(tmp_path / "run", ())
    killed.report()
    left = set(temporary.iterdir())
    for scratch in left:
        (scratch / "left").mkdir()
    dispatcher = killed.dispatcher_pid
    killed.process.kill()
    killed.process.wait(PATIENCE_S)
    killed.hang_up()
    wait_until(lambda: not started(dispatcher), "the dispatcher of the server that was killed gone")
    with running_server(tmp_path / "run") as server:
        server.report()
        made = set(temporary.iterdir())
        assert left.isdisjoint(made)
        assert len(made) == len(left)
    assert not list(temporary.iterdir())


@pytest.mark.skipif(not ABI, reason="this kernel has no Landlock")
def test_nothing_of_the_workers_is_left_when_the_server_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    for tried in trying(tmp_path):
        tried("Path(tempfile.gettempdir(), 'kept').write_bytes(b'mine')")
        assert len(list(temporary.rglob("kept"))) == 1
    assert not list(temporary.iterdir())


def test_what_the_server_was_given_is_readable(tmp_path: Path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "w").write_text("1")
    for tried in trying(tmp_path, f"--readable={weights}"):
        assert tried(f"open({str(weights / 'w')!r}).read()") == "'1'"
        if ABI:
            assert tried(f"open({str(weights / 'w')!r}, 'w')") == "PermissionError"
            assert tried(f"open({str(tried.key)!r})") == "PermissionError"


def test_confinement_can_be_switched_off_and_this_is_said(tmp_path: Path):
    """Also how workers are where the kernel has no Landlock: as the server itself."""
    for tried in trying(tmp_path, "--workers-unconfined"):
        assert tried(f"open({str(tried.other.path)!r}).read() != ''") == "True"
        assert tried("os.environ['HOME']") == repr(str(Path.home()))
        said = [line for line in tried.server.log_lines() if "confined" in line["message"]]
        assert [line["level"] for line in said] == ["warning"]
