from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.clients import Crowd
from support.server import Server, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the folder; each test applies a target of its own."""
    with running_server(tmp_path_factory.mktemp("serving") / "run") as server:
        yield server


@pytest.fixture
def crowd(server: Server) -> Iterator[Crowd]:
    crowd = Crowd(server.ports().grpc)
    yield crowd
    crowd.close()
