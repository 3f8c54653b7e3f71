from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.clients import Crowd
from support.fault_load import Counts, FaultLoad
from support.model_files import ModelFile
from support.server import Server, running_server
from support.targets import server as target

_COUNTED: dict[str, Counts] = {}
"""What became of the requests of each test with an open loop."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts, also of tests that passed: they are what these tests are for."""
    if _COUNTED:
        terminalreporter.section("requests under faults")
    for name, counts in _COUNTED.items():
        terminalreporter.line(f"{name.removeprefix('test_')}\n    {counts}")


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[[FaultLoad], Counts]:
    """The counts of a load that has ended: no answer wrong, none missing. They are printed after the run."""

    def count(load: FaultLoad) -> Counts:
        counts = _COUNTED[request.node.name] = load.counts()
        assert (counts.wrong, counts.hung) == (0, 0), counts
        return counts

    return count


OPTIONS = ("--hang-timeout=2", "--load-timeout=5", "--worker-growth-mib=48")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the folder: every test leaves it serving, or the next one fails."""
    run_dir = tmp_path_factory.mktemp("faults") / "run"
    with running_server(run_dir, *OPTIONS) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Server:
    """It, without the processes of the test before, which end a moment after what runs in them."""
    shared.apply(target())
    shared.wait_for(lambda report: not report.workers, "the processes of the test before to end")
    return shared


@pytest.fixture
def crowd(server: Server) -> Iterator[Crowd]:
    crowd = Crowd(server.ports().grpc)
    yield crowd
    crowd.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ModelFile]:
    file = ModelFile(tmp_path / "model.py", scale=2.0)
    yield file
    file.let_go()
    file.let_load()
