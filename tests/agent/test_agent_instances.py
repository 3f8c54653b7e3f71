"""What a real server reports of its instances, by the place where they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.model_files import ModelFile
from support.server import Server, running_server
from support.targets import member, service
from support.targets import server as target


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_server(tmp_path / "run") as server:
        yield server


def places(server: Server) -> dict[str, tuple[int, int, int, int]]:
    """(wanted, exist, ready, cap) by device."""
    return {
        each.device: (each.wanted, each.exist, each.ready, each.cap)
        for each in server.report().instances
    }


def test_instances_are_reported_by_place_until_their_processes_have_gone(
    server: Server, tmp_path: Path
) -> None:
    file = ModelFile(tmp_path / "model.py")
    server.apply(target(service("m", member("a", file, instances={"cpu-0": 2}, caps={"cpu-0": 4}))))
    assert places(server) == {"cpu-0": (2, 2, 2, 4)}
    file.hold_loading()
    server.apply(target(service("m", member("a", file, instances={"cpu-1": 1}))), wait=False)
    assert places(server) == {"cpu-0": (0, 2, 2, 8), "cpu-1": (1, 1, 0, 8)}
    file.let_load()
    server.wait_for(lambda _: places(server) == {"cpu-1": (1, 1, 1, 8)}, "the move")


def test_while_a_version_is_loaded_the_one_that_serves_is_counted_as_ready(
    server: Server, tmp_path: Path
) -> None:
    old, new = ModelFile(tmp_path / "old.py"), ModelFile(tmp_path / "new.py")
    server.apply(target(service("m", member("a", old))))
    new.hold_loading()
    server.apply(target(service("m", member("a", new), version="2")), wait=False)
    server.wait_for(lambda _: places(server)["cpu-0"][:3] == (1, 2, 1), "both versions")
    new.let_load()
    server.wait_for(lambda _: places(server)["cpu-0"][:3] == (1, 1, 1), "the new version alone")
    assert server.service("test.m").version == "2"
