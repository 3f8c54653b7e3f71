"""A lane gathers its batches right, answers Failed for what a model does wrong, and stays usable."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from support.model_files import (
    NO_OUTPUT,
    RAISE,
    WRONG_DATATYPE,
    WRONG_ROWS,
    ModelFile,
    rows,
    told,
)
from tessera_runtime.datatypes import DATATYPES, decode_bytes, encode_bytes
from tessera_runtime.dispatch.arena import InputArena
from tessera_runtime.dispatch.workers import LoadFailed, OpenedLane, Place, Worker, WorkerPool
from tessera_runtime.memory import map_readonly
from tessera_runtime.worker import messages as m


class Dispatcher:
    """The dispatcher's side of one lane, one batch after the other."""

    def __init__(self, arena: InputArena, worker: Worker, opened: OpenedLane) -> None:
        self.regions = 0
        self._arena = arena
        self._worker = worker
        self._sock: socket.socket = opened.sock
        self._region = opened.region
        self._batch = 0
        self._sock.settimeout(30)

    async def run(
        self, *requests: np.ndarray, name: str = "x", padded: tuple[int, ...] | None = None
    ) -> m.Ran | m.Failed:
        """One batch of these requests; the rows of each are padded up to ``padded``."""
        self._batch += 1
        data = [encode_bytes(x) if x.dtype.kind == "O" else x.tobytes() for x in requests]
        slots = [self._arena.allocate(len(d)) for d in data]
        for slot, d in zip(slots, data, strict=True):
            slot.view[:] = d
        row_shape = requests[0].shape[1:] if padded is None else padded
        given = m.Input(
            name,
            row_shape,
            tuple(slot.offset for slot in slots),
            tuple(len(d) for d in data),
            () if padded is None else tuple(x.shape[1:] for x in requests),
        )
        m.send(self._sock, m.Run(self._batch, tuple(len(x) for x in requests), (given,)))
        answer = await self._answer()
        for slot in slots:
            slot.release()
        assert (answer.incarnation, answer.batch) == (self._worker.incarnation, self._batch)
        return answer

    async def _answer(self) -> m.Ran | m.Failed:
        while True:
            data, fds = await asyncio.to_thread(m.Inbox().receive, self._sock)
            message = m.decode_from_lane(data)
            if not isinstance(message, m.Region):
                return message
            self._region = memoryview(map_readonly(fds[0], message.region_size))
            self.regions += 1

    async def outputs(self, *requests: np.ndarray, **options) -> dict[str, np.ndarray]:
        ran = await self.run(*requests, **options)
        assert isinstance(ran, m.Ran), ran
        found = {}
        for output in ran.outputs:
            assert output.offset % 64 == 0
            data = self._region[output.offset : output.offset + output.nbytes]
            if output.datatype == "BYTES":
                values = decode_bytes(data, int(np.prod(output.shape)))
            else:
                values = np.frombuffer(data, DATATYPES[output.datatype]).copy()
            found[output.name] = values.reshape(output.shape)
        return found

    def close(self) -> None:
        self._sock.close()


Open = Callable[..., "asyncio.Future[Dispatcher]"]


@pytest.fixture
async def worker(pool: WorkerPool) -> AsyncIterator[Worker]:
    worker = await pool.start(Place("cpu-0", "cpu"))
    yield worker
    worker.kill()
    await worker.lost


@pytest.fixture
async def opened(worker: Worker, arena: InputArena) -> AsyncIterator[Open]:
    lanes: list[Dispatcher] = []

    async def open_(path: Path, largest: int = 8) -> Dispatcher:
        key = str(path)
        await worker.load(m.Load(key, str(path), "Python", True, (), ()))
        lane = await worker.open_lane((key,), largest, (1, largest), {})
        lanes.append(Dispatcher(arena, worker, lane))
        return lanes[-1]

    yield open_
    for lane in lanes:
        lane.close()


SHAPES = """
import numpy as np
class Model:
    inputs = {"x": ("%s", %s)}
    outputs = {"y": ("%s", %s)}
    def __call__(self, batch):
        x = batch["x"]
        return {"y": %s}
def load(device, options): return Model()
"""


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., Path]:
    def write(datatype: str, shape: str, out_datatype: str, out_shape: str, answer: str) -> Path:
        path = tmp_path / "source.py"
        path.write_text(SHAPES % (datatype, shape, out_datatype, out_shape, answer))
        return path

    return write


@pytest.mark.parametrize(
    ("magic", "reason"),
    [
        (RAISE, "told to raise"),
        (WRONG_ROWS, "shape"),
        (WRONG_DATATYPE, "float64"),
        (NO_OUTPUT, "missing"),
    ],
)
async def test_a_bad_answer_fails_its_batch_and_the_lane_stays_usable(
    opened: Open, tmp_path: Path, magic: float, reason: str
):
    file = ModelFile(tmp_path / "model.py", scale=3.0)
    lane = await opened(file.path)
    failed = await lane.run(rows(1), told(magic))
    assert isinstance(failed, m.Failed)
    assert reason in failed.reason
    np.testing.assert_array_equal((await lane.outputs(rows(2)))["y"], file(rows(2)))


async def test_requests_of_several_rows_are_gathered_in_order(opened: Open, tmp_path: Path):
    file = ModelFile(tmp_path / "model.py", offset=1.0)
    lane = await opened(file.path)
    requests = [rows(1, 3), rows(2), rows(3, 4)]
    found = (await lane.outputs(*requests))["y"]
    np.testing.assert_array_equal(found, np.concatenate([file(x) for x in requests]))


async def test_every_batch_of_a_size_is_gathered_and_answered_anew(opened: Open, tmp_path: Path):
    file = ModelFile(tmp_path / "model.py", scale=2.0)
    lane = await opened(file.path)
    for batch in range(4):
        for count in (2, 3):
            found = (await lane.outputs(rows(batch), rows(10 + batch, count - 1)))["y"]
            np.testing.assert_array_equal(
                found, np.concatenate([file(rows(batch)), file(rows(10 + batch, count - 1))])
            )
        failed = await lane.run(rows(1), told(WRONG_ROWS))
        assert isinstance(failed, m.Failed)
    assert lane.regions == 0


async def test_rows_that_lack_bytes_fail_their_batch(opened: Open, tmp_path: Path):
    file = ModelFile(tmp_path / "model.py")
    lane = await opened(file.path)
    lacking = rows(2)[:, :2]
    for _ in range(2):  # the first batch of its size, and one of a size that is known
        failed = await lane.run(rows(1), lacking)
        assert isinstance(failed, m.Failed)
        assert "24 bytes for a batch of 32" in failed.reason
        await lane.outputs(rows(1), rows(2))


async def test_several_lanes_of_a_worker_keep_their_answers_apart(opened: Open, tmp_path: Path):
    file = ModelFile(tmp_path / "model.py", scale=2.0)
    lanes = [await opened(file.path) for _ in range(3)]
    found = await asyncio.gather(*(lane.outputs(rows(i)) for i, lane in enumerate(lanes)))
    for i, answer in enumerate(found):
        np.testing.assert_array_equal(answer["y"], file(rows(i)))


async def test_the_output_region_grows_and_stays_grown(opened: Open, source):
    path = source("INT64", "(1,)", "FP32", "(-1,)", "np.full((len(x), x.max()), 5, 'f4')")
    lane = await opened(path)
    assert (await lane.outputs(np.array([[3]])))["y"].tolist() == [[5.0] * 3]
    assert lane.regions == 0
    for width, regions in ((100_000, 1), (90_000, 1), (1_000_000, 2), (1, 2)):
        found = (await lane.outputs(np.array([[width]])))["y"]
        assert found.shape == (1, width)
        assert (found == 5).all()
        assert lane.regions == regions


async def test_bytes_are_gathered_and_answered(opened: Open, source):
    answer = "np.array([[e[::-1] * 2 for e in row] for row in x], dtype=object)"
    lane = await opened(source("BYTES", "(2,)", "BYTES", "(2,)", answer))
    first = np.array([[b"ab", b""]], dtype=object)
    second = np.array([[b"x" * 999, b"\0\1"], ["straße".encode(), b"4"]], dtype=object)
    found = (await lane.outputs(first, second))["y"]
    expected = [[e[::-1] * 2 for e in row] for row in np.concatenate([first, second])]
    assert found.tolist() == expected


async def test_malformed_bytes_fail_their_batch(opened: Open, source):
    lane = await opened(source("BYTES", "(1,)", "BYTES", "(1,)", "x.copy()"))
    lying = np.frombuffer(b"\xff\0\0\0abc", np.uint8).reshape(1, 7)  # 255 bytes announced, 3 there
    failed = await lane.run(lying, padded=(1,))
    assert isinstance(failed, m.Failed)
    assert "255" in failed.reason
    honest = np.array([[b"abc"]], dtype=object)
    assert (await lane.outputs(honest))["y"].tolist() == [[b"abc"]]


async def test_smaller_rows_are_padded_with_zeros_whatever_the_buffer_held(opened: Open, source):
    lane = await opened(source("FP32", "(-1, -1)", "FP32", "(-1, -1)", "x.copy()"))
    dirty = np.full((3, 4, 5), 9.0, np.float32)
    await lane.outputs(dirty)
    small, exact = np.ones((1, 2, 3), np.float32), 2 * np.ones((2, 4, 5), np.float32)
    found = (await lane.outputs(small, exact, padded=(4, 5)))["y"]
    expected = np.zeros((3, 4, 5), np.float32)
    expected[0, :2, :3] = 1
    expected[1:] = 2
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
async def test_every_datatype_passes_unchanged(opened: Open, source, datatype: str):
    lane = await opened(source(datatype, "(3,)", datatype, "(3,)", "x.copy()"))
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(DATATYPES[datatype])
    np.testing.assert_array_equal((await lane.outputs(x))["y"], x)


async def test_rows_without_elements_pass(opened: Open, source):
    lane = await opened(source("FP32", "(-1,)", "FP32", "(-1,)", "x.copy()"))
    assert (await lane.outputs(np.zeros((2, 0), np.float32)))["y"].shape == (2, 0)


async def test_a_model_that_fails_while_warming_is_not_opened(
    worker: Worker, opened: Open, source, tmp_path: Path
):
    with pytest.raises(LoadFailed, match=r"warming failed.*ZeroDivisionError"):
        await opened(source("FP32", "(1,)", "FP32", "(1,)", "1 / 0"))
    file = ModelFile(tmp_path / "model.py")
    lane = await opened(file.path)
    np.testing.assert_array_equal((await lane.outputs(rows(1)))["y"], rows(1))
    assert worker.alive


async def test_the_input_arena_cannot_be_written_by_a_model(opened: Open, tmp_path: Path):
    path = tmp_path / "writes.py"
    path.write_text(
        """
import sys
class Model:
    inputs = outputs = {"x": ("FP32", (4,))}
    def __call__(self, batch):
        frame = sys._getframe()
        while not hasattr(frame.f_locals.get("self"), "_arena"):
            frame = frame.f_back
        if batch["x"].any():
            frame.f_locals["self"]._arena[:4] = b"evil"
        return {"x": batch["x"].copy()}
def load(device, options): return Model()
"""
    )
    lane = await opened(path)
    failed = await lane.run(rows(1))
    assert isinstance(failed, m.Failed)
    assert "read-only" in failed.reason
