"""Keeping the wanted model files on a node."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from support.server import wait_until
from tessera_runtime.agent import models as models_module
from tessera_runtime.agent.models import Models
from tessera_runtime.agent.translate import ModelSource
from tessera_runtime.models.cache import ModelCache
from tessera_runtime.models.errors import Denied, NoSpace


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(models_module, "MOST_PAUSE_S", 0.05)


class Site:
    """A folder of models and what becomes of them."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.cache = ModelCache(tmp_path / "cache", 1000, pause=lambda _: None)
        self.changed = asyncio.Event()
        self.asked: list[tuple[str, str]] = []
        self.secret: Mapping[str, str] | Exception = {}
        self.models = Models(self.cache, self.secrets, self.changed.set)

    async def secrets(self, namespace: str, name: str) -> Mapping[str, str]:
        self.asked.append((namespace, name))
        if isinstance(self.secret, Exception):
            raise self.secret
        return self.secret

    def source(self, name: str, **fields: str) -> ModelSource:
        values = {"secret": None, "digest": None, "namespace": "vision"} | fields
        return ModelSource(uri=f"file://{self.folder / name}", **values)  # type: ignore[arg-type]

    async def until(self, condition) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


async def test_a_wanted_file_comes_and_one_that_is_not_wanted_may_go(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"a" * 900)
    a = site.source("a.onnx")
    site.models.want([a])
    await site.until(lambda: site.models.found(a))
    found = site.models.found(a)
    assert found is not None
    assert await asyncio.to_thread(Path(found.path).read_bytes) == b"a" * 900
    with pytest.raises(NoSpace):
        site.cache.evict(500)
    site.models.want([])
    assert site.models.found(a) is None
    site.cache.evict(500)


async def test_a_file_that_the_server_was_told_of_stays(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"a" * 900)
    a = site.source("a.onnx")
    site.models.want([a])
    await site.until(lambda: site.models.found(a))
    path = Path(site.models.found(a).path)  # type: ignore[union-attr]
    site.models.hold([path, tmp_path / "not of the cache"])
    site.models.want([])
    with pytest.raises(NoSpace):
        site.cache.evict(500)
    site.models.close()
    site.cache.evict(500)


async def test_a_failed_fetch_is_said_and_tried_again_while_others_go_on(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"a")
    late, a = site.source("late.onnx"), site.source("a.onnx")
    site.models.want([late, a])
    await site.until(lambda: site.models.problem(late) and site.models.found(a))
    assert "late.onnx: no such file" in site.models.problem(late)
    assert site.models.problem(a) == ""
    (tmp_path / "late.onnx").write_bytes(b"late")
    await site.until(lambda: site.models.found(late))
    assert site.models.problem(late) == ""
    site.models.close()


async def test_credentials_are_read_anew_for_every_attempt(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.secret = Denied("the namespace has not opted in")
    a = site.source("a.onnx", secret="store")
    site.models.want([a])
    await site.until(lambda: "opted in" in site.models.problem(a))
    site.secret = {"hunter": "2"}
    await site.until(lambda: "takes no credentials" in site.models.problem(a))
    assert site.asked[:2] == [("vision", "store")] * 2
    site.models.close()


async def test_a_library_that_fails_in_its_own_way_costs_that_model_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("https://user:hunter2@store")

    monkeypatch.setattr(site.cache, "fetch", fail)
    a = site.source("a.onnx")
    site.models.want([a])
    await site.until(lambda: site.models.problem(a))
    assert "hunter2" not in site.models.problem(a)
    site.models.close()


async def test_a_fetch_that_is_not_wanted_any_more_ends(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"a")
    a = site.source("a.onnx")
    for _ in range(20):
        site.models.want([a])
        await asyncio.sleep(0)
        site.models.want([])
    site.models.want([a])
    await site.until(lambda: site.models.found(a))
    site.models.close()
    late = "threads that came too late to let go of the file too"
    await asyncio.to_thread(wait_until, lambda: evicts(site.cache, 1000), late)


def evicts(cache: ModelCache, size: int) -> bool:
    try:
        cache.evict(size)
    except NoSpace:
        return False
    return True
