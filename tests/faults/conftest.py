from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.clients import Crowd
from support.model_files import ModelFile
from support.server import Server, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the folder: every test leaves it serving, or the next one fails."""
    run_dir = tmp_path_factory.mktemp("faults") / "run"
    with running_server(run_dir, "--hang-timeout=2", "--load-timeout=5") as server:
        yield server


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
