"""The wall clock may jump, as when a machine is told the right time: nothing is decided by it."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

import tessera_core
import tessera_runtime
from support.fault_load import Counts, FaultLoad
from support.model_files import ModelFile
from support.server import running_server
from support.targets import member, service
from support.targets import server as target

_PATCH = """
import itertools, os, time
_real, _turn = time.time, itertools.count()

def _jumping():
    # Decades to and fro, each time that somebody looks.
    if os.path.exists({jumps!r}):
        return _real() + (-1) ** next(_turn) * 1e9
    return _real()

time.time = _jumping
time.time_ns = lambda: int(_jumping() * 1e9)
"""

WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}

SHOWN = {
    # Written for people, or as the time of a Kubernetes object, and never compared here.
    "tessera_runtime/agent/heartbeat.py",
    "tessera_runtime/agent/local.py",
    "tessera_runtime/agent/publishing.py",
    "tessera_runtime/dispatch/statistics.py",
}


def test_a_jump_of_the_wall_clock_costs_no_request(
    tmp_path: Path, monkeypatch, counted: Callable[[FaultLoad], Counts]
):
    jumps = tmp_path / "jumps"
    (tmp_path / "sitecustomize.py").write_text(_PATCH.format(jumps=str(jumps)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    file = ModelFile(tmp_path / "model.py", scale=3.0)
    with running_server(tmp_path / "run", "--hang-timeout=2", "--hold-timeout=5") as server:
        server.apply(target(service("m", member("a", file, instances=2))))
        with FaultLoad(server.ports(), "test.m", file) as load:
            load.wait_right(30)
            jumps.touch()
            load.wait_right(200)
            jumps.unlink()
            load.wait_right(30)
        assert counted(load).nothing_but_right
        assert server.member("test.m").restarts == 0


def test_the_wall_clock_is_only_shown():
    """Every look at it in the data plane is one of those that are known to be for people."""
    found = set()
    for package in (tessera_core, tessera_runtime):
        folder = Path(package.__path__[0])
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in WALL_CLOCK:
                    found.add(str(path.relative_to(folder.parent)))
    assert found <= SHOWN, found - SHOWN


def test_nothing_that_a_client_sent_is_unpickled():
    """Between processes travel MessagePack, JSON and offsets: formats that cannot name code."""
    code = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing"}
    for folder in ("protocol", "dispatch", "worker", "agent", "."):
        for path in (Path(tessera_runtime.__path__[0]) / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                assert not code & {name.partition(".")[0] for name in names}, path
