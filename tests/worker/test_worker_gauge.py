"""What counts as the growth of a process: not what is loaded into it, but what it keeps of that afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.server import PATIENCE_S
from tessera_runtime.dispatch.waiting import eventually
from tessera_runtime.dispatch.worker_memory import Gauge, Size, outgrown
from tessera_runtime.dispatch.workers import LoadFailed, Place, Worker, WorkerPool
from tessera_runtime.worker import messages as m

MIB = 100
"""What the models here take."""

_MODEL = """
import numpy as np
KEPT_BY_THE_MODULE
class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __init__(self):
        self.weights = np.ones(MIB << 20, np.uint8)
        FAILS
    def __call__(self, batch):
        return {"y": batch["x"]}
    def close(self):
        CLOSES
def load(device, options):
    return Model()
"""

HOARDS = """
import sys
sys.hoard = getattr(sys, "hoard", []) + [np.ones(MIB << 20, np.uint8)]
"""


def model(path: Path, kept: str = "", fails: str = "", closes: str = "pass") -> m.Load:
    text = _MODEL.replace("KEPT_BY_THE_MODULE", kept).replace("FAILS", fails)
    text = text.replace("CLOSES", closes)
    path.write_text(text.replace("MIB", str(MIB)))
    return m.Load(str(path), str(path), "Python", True, (), ())


async def loaded(worker: Worker, load: m.Load) -> None:
    async with worker.turn(load.model):
        await worker.load(load)


@pytest.fixture
async def worker(pool: WorkerPool) -> AsyncIterator[Worker]:
    worker = await pool.start(Place("cpu-0", "cpu"))
    yield worker
    worker.kill()
    await worker.lost


def gauge(worker: Worker) -> Gauge:
    assert worker.gauge is not None
    return worker.gauge


@pytest.mark.parametrize(
    ("used", "allocated", "limit", "expected"),
    [
        pytest.param(149.0, 0.0, None, False, id="less than it may"),
        pytest.param(151.0, 0.0, None, True, id="more than it may"),
        pytest.param(100.0, 900.0, None, False, id="allocated without a limit"),
        pytest.param(100.0, 830.0, 1000.0, False, id="most of its limit left"),
        pytest.param(100.0, 860.0, 1000.0, True, id="little of its limit left"),
    ],
)
def test_growth(used: float, allocated: float, limit: float | None, expected: bool):
    assert outgrown(Size(100.0, 500.0), Size(used, allocated), 50.0, limit) is expected


async def test_what_is_loaded_is_no_growth(worker: Worker, tmp_path: Path):
    await loaded(worker, model(tmp_path / "a.py"))
    await loaded(worker, model(tmp_path / "b.py"))
    assert not gauge(worker).outgrown(MIB / 2)


async def test_what_is_unloaded_is_given_back(worker: Worker, tmp_path: Path):
    first, second = model(tmp_path / "a.py"), model(tmp_path / "b.py")
    await loaded(worker, first)
    worker.unload(first.model)
    await loaded(worker, second)
    assert not gauge(worker).outgrown(MIB / 2)
    worker.unload(second.model)
    grown = await eventually(lambda: not gauge(worker).outgrown(MIB / 2), PATIENCE_S)
    assert grown


async def test_what_stays_of_a_model_that_is_unloaded_is_growth(worker: Worker, tmp_path: Path):
    hoarding, other = model(tmp_path / "a.py", kept=HOARDS), model(tmp_path / "b.py")
    await loaded(worker, hoarding)
    assert not gauge(worker).outgrown(MIB / 2)
    worker.unload(hoarding.model)
    await loaded(worker, other)
    assert gauge(worker).outgrown(MIB / 2)


async def test_what_stays_of_a_model_that_fails_to_load_is_growth(worker: Worker, tmp_path: Path):
    clean = model(tmp_path / "a.py", fails="raise ValueError")
    hoarding = model(tmp_path / "b.py", kept=HOARDS, fails="raise ValueError")
    with pytest.raises(LoadFailed):
        await loaded(worker, clean)
    assert not gauge(worker).outgrown(MIB / 2)
    with pytest.raises(LoadFailed):
        await loaded(worker, hoarding)
    assert gauge(worker).outgrown(MIB / 2)


async def test_a_model_that_was_given_up_may_fail_to_load_afterwards(
    worker: Worker, tmp_path: Path
):
    failing, other = model(tmp_path / "a.py", fails="raise ValueError"), model(tmp_path / "b.py")
    given_up = worker._loads[failing.model] = worker.lost.get_loop().create_future()
    worker._send(failing)
    worker.unload(failing.model)  # on its way before the answer is
    await loaded(worker, other)
    assert not given_up.done()
    assert worker.alive


async def test_a_model_that_fails_to_close_ends_nobody(worker: Worker, tmp_path: Path):
    failing = model(tmp_path / "a.py", closes="raise SystemExit(3)")
    await loaded(worker, failing)
    worker.unload(failing.model)
    await loaded(worker, model(tmp_path / "b.py"))
    assert worker.alive
    assert not gauge(worker).outgrown(MIB / 2)
