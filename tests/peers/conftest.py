"""Servers that know each other: each test applies targets of its own to two or three on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.model_files import ModelFile
from support.server import Server, running_server


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("one") / "run") as server:
        yield server


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("two") / "run") as server:
        yield server


@pytest.fixture
def a(tmp_path: Path) -> Iterator[ModelFile]:
    file = ModelFile(tmp_path / "a.py", scale=2.0)
    yield file
    file.let_go()
    file.let_load()


@pytest.fixture
def b(tmp_path: Path) -> Iterator[ModelFile]:
    file = ModelFile(tmp_path / "b.py", scale=4.0)
    yield file
    file.let_go()
    file.let_load()
