"""Rows of different lengths, as clients meet them: who shares a batch, and that everybody is answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.clients import Crowd, infer_grpc, infer_http
from support.model_files import ModelFile, rows
from support.server import Server
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.target import ServerTarget, ServiceTime, TensorTarget

MODEL = "test.m"
SHORT, LONG = 10, 300  # frames of 0.1 s: clips of 1 s and 30 s
BUCKETS = ((SHORT,), (150,), (LONG,))
PADDING_COSTS = ServiceTime(alpha_ms=30.0, tau0_ms=0.1)
"""A batch of one of 30 s takes as long as one of 30 of 1 s."""
BATCHES_COST = ServiceTime(alpha_ms=0.1, tau0_ms=30.0)
"""A batch takes 30 ms, whatever is in it."""

CLIPS = """
import os, time
import numpy as np

class Model:
    inputs = {{"x": ("FP32", (-1,))}}
    outputs = {{"sum": ("FP32", (1,)), "batch": ("INT64", (2,)){echo}}}

    def __call__(self, batch):
        x = batch["x"]
        while os.path.exists({gate!r} + ".closed"):
            os.utime({gate!r} + ".entered")
            time.sleep(0.002)
        shape = np.broadcast_to(np.array(x.shape, "i8"), (len(x), 2)).copy()
        answer = {{"sum": x.sum(axis=1, keepdims=True), "batch": shape, "echo": x.copy()}}
        return {{name: answer[name] for name in self.outputs}}

def load(device, options):
    return Model()
"""


@pytest.fixture
def clips(tmp_path: Path) -> Iterator[ModelFile]:
    file = ModelFile(tmp_path / "model.py", scale=2.0)
    file.path.write_text(CLIPS.format(gate=str(file.path), echo=""))
    yield file
    file.let_go()


def served(
    file: ModelFile, law: ServiceTime, *, mixed: bool = True, **settings: object
) -> ServerTarget:
    inputs = (TensorTarget("x", "FP32", (-1,), BUCKETS, mixed),)
    only = member("a", file, service_time=law, **settings)
    return target(service("m", only, inputs=inputs, slo_ms=10_000.0))


def batches_of(server: Server, crowd: Crowd, file: ModelFile, widths: list[int]) -> list[list[int]]:
    """(rows, padded length) of the batch that each of ``widths`` was in, after all have waited together."""
    file.hold()
    crowd.ask(MODEL, np.ones((1, LONG), np.float32))
    file.wait_held()
    asked = [
        crowd.submit(infer_grpc, crowd.client, MODEL, np.full((1, width), width, np.float32))
        for width in widths
    ]
    server.wait_for(
        lambda r: r.services[0].members[0].queued_rows == len(widths), "all of them wait"
    )
    file.let_go()
    found = [answer.result() for answer in asked]
    for width, answer in zip(widths, found, strict=True):
        assert answer.as_numpy("sum").item() == width * width
    return [answer.as_numpy("batch")[0].tolist() for answer in found]


MIX = [SHORT, LONG, SHORT, LONG, 7, LONG, 8]
APART = [[4, SHORT], [3, LONG], [4, SHORT], [3, LONG], [4, SHORT], [3, LONG], [4, SHORT]]


def test_short_clips_are_not_padded_to_long_ones_where_both_fill_batches(
    server: Server, crowd: Crowd, clips: ModelFile
) -> None:
    server.apply(served(clips, PADDING_COSTS))
    assert batches_of(server, crowd, clips, MIX) == APART


def test_where_a_batch_costs_more_than_padding_all_share_one(
    server: Server, crowd: Crowd, clips: ModelFile
) -> None:
    server.apply(served(clips, BATCHES_COST))
    assert batches_of(server, crowd, clips, MIX) == [[7, LONG]] * 7
    assert batches_of(server, crowd, clips, [7, 8, 11]) == [[3, 150]] * 3


def test_lengths_stay_apart_where_the_service_says_so(
    server: Server, crowd: Crowd, clips: ModelFile
) -> None:
    server.apply(served(clips, BATCHES_COST, mixed=False))
    assert batches_of(server, crowd, clips, MIX) == APART


def test_lengths_stay_apart_where_answers_are_as_long_as_the_batch(
    server: Server, crowd: Crowd, clips: ModelFile
) -> None:
    clips.path.write_text(CLIPS.format(gate=str(clips.path), echo=', "echo": ("FP32", (-1,))'))
    server.apply(served(clips, BATCHES_COST))
    assert batches_of(server, crowd, clips, MIX) == APART


def test_without_a_profile_lengths_stay_apart(
    server: Server, crowd: Crowd, clips: ModelFile
) -> None:
    inputs = (TensorTarget("x", "FP32", (-1,), BUCKETS),)
    server.apply(target(service("m", member("a", clips), inputs=inputs)))
    assert batches_of(server, crowd, clips, MIX) == APART


def test_a_cap_is_work_not_rows(server: Server, crowd: Crowd, clips: ModelFile) -> None:
    server.apply(served(clips, PADDING_COSTS, max_batch=8, cap=2))
    found = batches_of(server, crowd, clips, [SHORT] * 6 + [LONG] * 4)
    assert found == [[6, SHORT]] * 6 + [[2, LONG]] * 4


def test_a_long_clip_is_answered_amid_a_stream_of_short_ones(
    server: Server, crowd: Crowd, clips: ModelFile
) -> None:
    server.apply(served(clips, PADDING_COSTS, instances=2))
    widths = [LONG if number % 40 == 20 else 1 + number % SHORT for number in range(400)]
    asked = [
        crowd.submit(infer_grpc, crowd.client, MODEL, np.full((1, width), width, np.float32))
        for width in widths
    ]
    found = [answer.result().as_numpy("sum").item() for answer in asked]
    assert found == [width * width for width in widths]
    assert server.member(MODEL).lost == 0


# Several instances


def apart_by(tau0_s: float, file: ModelFile) -> ServerTarget:
    law = ServiceTime(alpha_ms=1.0, tau0_ms=1e3 * tau0_s)
    only = member("a", file, service_time=law, instances=2, max_batch=3)
    return target(service("m", only, slo_ms=1e7))


def test_what_follows_a_batch_waits_for_its_turn_or_a_full_one(
    server: Server, crowd: Crowd, tmp_path: Path
) -> None:
    file = ModelFile(tmp_path / "scaled.py", scale=2.0)
    server.apply(apart_by(60.0, file))
    infer_grpc(crowd.client, MODEL, rows(0))
    asked = []
    for number in (1, 2, 3):  # both instances are idle
        asked.append(crowd.submit(infer_grpc, crowd.client, MODEL, rows(number)))
        waiting = number % 3
        server.wait_for(
            lambda r, waiting=waiting: r.services[0].members[0].queued_rows == waiting,
            f"{waiting} rows wait",
        )
    for number, answer in enumerate(asked, 1):
        np.testing.assert_array_equal(answer.result().as_numpy("y"), file(rows(number)))
    assert [batch.rows for batch in server.member(MODEL).recent] == [1, 3]


def test_who_would_be_late_for_it_does_not_wait(
    server: Server, crowd: Crowd, tmp_path: Path
) -> None:
    file = ModelFile(tmp_path / "scaled.py", scale=2.0)
    server.apply(apart_by(60.0, file))
    for number in (0, 1):
        x = rows(number)
        answer = crowd.submit(lambda x=x: infer_http(server.http(), MODEL, x, timeout=80_000_000))
        np.testing.assert_array_equal(answer.result().as_numpy("y"), file(x))
    assert [batch.rows for batch in server.member(MODEL).recent] == [1, 1]


def test_a_turn_comes_by_itself(server: Server, crowd: Crowd, tmp_path: Path) -> None:
    file = ModelFile(tmp_path / "scaled.py", scale=2.0)
    server.apply(apart_by(0.2, file))
    for number in range(4):
        np.testing.assert_array_equal(crowd.ask(MODEL, rows(number)).result(), file(rows(number)))
