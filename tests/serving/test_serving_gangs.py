"""Members that are placed alike on a single core run as one: same answers, one process, one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, Load, infer_http
from support.model_files import DIE, RAISE, ModelFile, rows, told
from support.peers import counted
from support.server import Server
from support.targets import member, service
from support.targets import server as target
from tessera_core.api.modelservice import Combine, OnTimeout
from tessera_core.ensemble.combine import combine

MODEL = "test.m"
A_FEW = 40
"""Answers after which the load is known to have met the new state."""

NAMED = """
import numpy as np
class Model:
    inputs = {%s}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        return {"y": %s}
def load(device, options): return Model()
"""


def plain(path: Path, inputs: str, answer: str) -> Path:
    """A model that does nothing it is told to: ``inputs`` by name, ``answer`` an expression over ``batch``."""
    named = ", ".join(f'"{name}": ("FP32", (4,))' for name in inputs.split())
    path.write_text(NAMED % (named, answer))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Iterator[ModelFile]:
    file = ModelFile(tmp_path / "a.py", 1.5, 0.25)
    yield file
    file.let_go()


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    return plain(tmp_path / "twice.py", "pixels", 'batch["pixels"] * np.float32(2)')


def pair(file: ModelFile, twice: Path, counts: tuple[int, int] = (1, 1), **settings: object):
    members = (
        member("a", file, instances=counts[0], **settings),
        member("b", twice, instances=counts[1], **settings),
    )
    return target(service("m", *members))


@pytest.fixture
def right(file: ModelFile) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: combine(Combine.MEAN, [file(x), x * np.float32(2)])


def ask_behind_a_held_batch(
    server: Server, crowd: Crowd, file: ModelFile, *batch: np.ndarray
) -> list:
    """Requests that wait together while another batch runs, so that they share the next one."""
    file.hold()
    first = crowd.ask(MODEL, rows(1))
    file.wait_held()
    asked = [crowd.ask(MODEL, x) for x in batch]
    server.wait_for(
        lambda r: [m.queued_rows for m in r.services[0].members] == [len(batch)] * 2, "they wait"
    )
    return [first, *asked]


def test_they_share_a_process_and_batches(
    server: Server, crowd: Crowd, file: ModelFile, twice: Path, right
):
    server.apply(pair(file, twice))
    server.wait_joined(MODEL, 1)
    batch = [rows(i, 1 + i % 2) for i in (2, 3, 4)]
    file.hold()
    asked = [crowd.ask(MODEL, rows(1))]
    file.wait_held()
    asked += [crowd.ask(MODEL, x) for x in batch]
    server.wait_for(
        lambda r: [m.queued_rows for m in r.services[0].members] == [4, 4], "the others wait"
    )
    file.let_go()
    for x, answer in zip([rows(1), *batch], asked, strict=True):
        np.testing.assert_array_equal(answer.result(), right(x))
    report = server.report()
    [served] = report.services
    assert [(m.batches, m.rows) for m in served.members] == [(2, 5), (2, 5)]
    assert [m.ready for m in served.members] == [1, 1]
    assert len(report.workers) == 1
    assert counted(server, "tessera_joined_instances", service=MODEL) == 1
    assert counted(server, "tessera_queued_rows", service=MODEL) == 0
    statistics = server.http().get_inference_statistics(MODEL)["model_stats"][0]
    assert statistics["inference_stats"]["queue"]["count"] == 4


def test_an_answer_says_that_all_members_gave_theirs(server: Server, file: ModelFile, twice: Path):
    server.apply(pair(file, twice))
    server.wait_joined(MODEL, 1)
    response = infer_http(server.http(), MODEL, rows(1)).get_response()
    assert response["parameters"] == {"members_answered": "a,b", "partial": False}


def test_a_members_error_names_it_and_spares_the_requests_batch_mates(
    server: Server, crowd: Crowd, file: ModelFile, twice: Path, right
):
    server.apply(pair(file, twice))
    server.wait_joined(MODEL, 1)
    first, before, bad, after = ask_behind_a_held_batch(
        server, crowd, file, rows(2), told(RAISE), rows(3)
    )
    file.let_go()
    with pytest.raises(InferenceServerException, match=r"member a: .*told to raise"):
        bad.result()
    for x, answer in ((rows(1), first), (rows(2), before), (rows(3), after)):
        np.testing.assert_array_equal(answer.result(), right(x))


def test_a_request_that_ends_processes_is_given_two_and_its_batch_mates_are_answered(
    server: Server, crowd: Crowd, file: ModelFile, twice: Path, right
):
    server.apply(pair(file, twice))
    server.wait_joined(MODEL, 1)
    first, before, bad, after = ask_behind_a_held_batch(
        server, crowd, file, rows(2), told(DIE), rows(3)
    )
    file.let_go()
    with pytest.raises(InferenceServerException, match="2 instances ended while running this"):
        bad.result()
    for x, answer in ((rows(1), first), (rows(2), before), (rows(3), after)):
        np.testing.assert_array_equal(answer.result(), right(x))
    server.wait_joined(MODEL, 1)
    np.testing.assert_array_equal(crowd.ask(MODEL, rows(4)).result(), right(rows(4)))


def test_they_part_and_join_under_load(server: Server, file: ModelFile, twice: Path, right):
    server.apply(pair(file, twice))
    with Load(server.ports(), MODEL, right) as load:
        for counts, joined in (((1, 1), 1), ((1, 2), 0), ((1, 1), 1), ((2, 2), 2), ((1, 1), 1)):
            server.apply(pair(file, twice, counts))
            server.wait_joined(MODEL, joined)
            load.wait_answers(A_FEW)
    load.check()
    server.wait_for(lambda r: len(r.workers) == 1, "one worker")


def test_what_comes_while_they_part_goes_to_the_members(
    server: Server, crowd: Crowd, file: ModelFile, twice: Path, right
):
    server.apply(pair(file, twice))
    server.wait_joined(MODEL, 1)
    asked = ask_behind_a_held_batch(server, crowd, file, rows(2))
    server.apply(pair(file, twice, (1, 2)), wait=False)
    asked.append(crowd.ask(MODEL, rows(3)))
    server.wait_for(lambda r: r.services[0].members[1].rows == 1, "member b alone, for the last")
    file.let_go()
    for x, answer in zip((rows(1), rows(2), rows(3)), asked, strict=True):
        np.testing.assert_array_equal(answer.result(), right(x))
    server.wait_joined(MODEL, 0)


def test_caps_change_under_load(server: Server, file: ModelFile, twice: Path, right):
    server.apply(pair(file, twice))
    server.wait_joined(MODEL, 1)
    with Load(server.ports(), MODEL, right) as load:
        for cap in (3, 8):
            server.apply(pair(file, twice, cap=cap))
            load.wait_answers(A_FEW)
    load.check()
    assert server.service(MODEL).joined == 1


def test_a_new_version_takes_over_under_load(
    server: Server, file: ModelFile, twice: Path, right, tmp_path: Path
):
    server.apply(pair(file, twice))
    server.wait_joined(MODEL, 1)
    other = ModelFile(tmp_path / "other.py", -1.0)
    later = target(service("m", member("a", other), member("b", twice), version="2"))

    def right_later(x: np.ndarray) -> np.ndarray:
        return combine(Combine.MEAN, [other(x), x * np.float32(2)])

    with Load(server.ports(), MODEL, right, right_later) as load:
        load.wait_answers(A_FEW)
        server.apply(later)
        server.wait_joined(MODEL, 1)
        load.wait_answers(A_FEW)
    load.check()
    np.testing.assert_array_equal(
        infer_http(server.http(), MODEL, rows(1)).as_numpy("y"), right_later(rows(1))
    )
    server.wait_for(lambda r: len(r.workers) == 1, "one worker")


@pytest.mark.parametrize(
    "settings",
    [
        {"required": False},
        {"cap": 2},
        {"instances": {"cpu-1": 1}},
        {"instances": 2},
    ],
    ids=["optional", "a cap of its own", "elsewhere", "more instances"],
)
def test_a_member_unlike_the_others_is_not_joined(
    server: Server, file: ModelFile, twice: Path, right, settings: dict[str, object]
):
    members = member("a", file), member("b", twice, **settings)
    server.apply(target(service("m", *members, min_members=1, on_timeout=OnTimeout.PARTIAL)))
    np.testing.assert_array_equal(
        infer_http(server.http(), MODEL, rows(1)).as_numpy("y"), right(rows(1))
    )
    assert server.service(MODEL).joined == 0


def test_members_that_take_the_inputs_in_different_orders_are_not_joined(
    server: Server, tmp_path: Path
):
    less = plain(tmp_path / "less.py", "x mask", 'batch["x"] - batch["mask"]')
    more = plain(tmp_path / "more.py", "mask x", 'batch["x"] * batch["mask"]')
    server.apply(target(service("m", member("a", less), member("b", more))))
    x, mask = rows(1.0, 2), rows(3.0, 2)
    inputs = []
    for name, array in (("x", x), ("mask", mask)):
        inputs.append(http_client.InferInput(name, array.shape, "FP32"))
        inputs[-1].set_data_from_numpy(array)
    result = server.http().infer(MODEL, inputs)
    np.testing.assert_array_equal(result.as_numpy("y"), combine(Combine.MEAN, [x - mask, x * mask]))
    assert server.service(MODEL).joined == 0
