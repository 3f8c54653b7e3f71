"""Workers that are killed, stopped, hang, die of a request or lie: no request is lost, hung or answered wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, Load
from support.model_files import DIE, HANG, ModelFile, rows, told
from support.server import Server, fds, memfds, started, wait_until
from support.targets import member, service
from support.targets import server as target

MODEL = "test.m"


def one(file: ModelFile | Path, **settings: object):
    return target(service("m", member("a", file, **settings)))


def right(file: ModelFile, asked) -> None:
    """Every answer is the answer to its own request."""
    for x, answer in asked:
        np.testing.assert_array_equal(answer.result(), file(x))


def resume(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        pass  # on a machine this slow it was taken for hung already


def queue_behind_a_held_batch(server: Server, crowd: Crowd, file: ModelFile, *batch: np.ndarray):
    """Requests that wait together while another batch runs, so that they share the next one."""
    file.hold()
    first = crowd.ask(MODEL, rows(1))
    file.wait_held()
    asked = [(x, crowd.ask(MODEL, x)) for x in batch]
    server.wait_for(
        lambda r: r.services[0].members[0].queued_rows == len(batch), "the batch queued"
    )
    return [(rows(1), first), *asked]


def test_a_killed_workers_requests_are_answered_by_another_instance(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(one(file, instances=2, cap=2))
    file.hold()
    asked = [(x := rows(i), crowd.ask(MODEL, x)) for i in range(8)]
    server.wait_for(
        lambda r: 0 < r.services[0].members[0].queued_rows < 8,
        "both instances busy, the rest waiting",
    )
    file.wait_held()
    os.kill(min(server.worker_pids()), signal.SIGKILL)
    server.wait_for(lambda r: r.services[0].members[0].restarts == 1, "the loss noticed")
    file.let_go()
    right(file, asked)
    server.wait_served()


def test_the_only_worker_is_killed_and_its_requests_wait_for_its_successor(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(one(file))
    asked = queue_behind_a_held_batch(server, crowd, file, *(rows(i) for i in range(2, 6)))
    [pid] = server.worker_pids()
    file.let_go()
    file.hold_loading()
    os.kill(pid, signal.SIGKILL)
    server.wait_for(lambda r: r.services[0].members[0].restarts == 1, "the loss noticed")
    file.let_load()
    right(file, asked)


def test_without_a_successor_requests_fail_at_their_deadline(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(one(file))
    file.hold()
    asked = [crowd.ask(MODEL, rows(i), timeout=2_000_000) for i in range(4)]
    file.wait_held()
    file.path.write_text("raise RuntimeError('gone')")
    os.kill(min(server.worker_pids()), signal.SIGKILL)
    for answer in asked:
        with pytest.raises(InferenceServerException, match=r"DEADLINE_EXCEEDED|UNAVAILABLE"):
            answer.result()
    server.wait_for(lambda r: "gone" in r.services[0].members[0].problem, "the reason reported")


def test_a_request_that_kills_its_worker_fails_alone(server: Server, crowd: Crowd, file: ModelFile):
    server.apply(one(file))
    mates = [rows(i) for i in range(2, 6)]
    *asked, (_, poison) = queue_behind_a_held_batch(server, crowd, file, *mates, told(DIE))
    file.let_go()
    right(file, asked)
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*2 instances ended"):
        poison.result()
    assert server.member(MODEL).restarts == 2
    server.wait_served()
    right(file, [(rows(9), crowd.ask(MODEL, rows(9)))])


@pytest.mark.slow
def test_a_request_that_hangs_its_worker_fails_alone(server: Server, crowd: Crowd, file: ModelFile):
    server.apply(one(file))
    mates = [rows(i) for i in range(2, 6)]
    *asked, (_, poison) = queue_behind_a_held_batch(server, crowd, file, *mates, told(HANG))
    file.let_go()
    right(file, asked)
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*2 instances ended"):
        poison.result()
    server.wait_served()
    right(file, [(rows(9), crowd.ask(MODEL, rows(9)))])


@pytest.mark.slow
def test_a_stopped_worker_is_found_and_its_batch_retried(
    server: Server, crowd: Crowd, file: ModelFile
):
    server.apply(one(file))
    file.hold()
    asked = [(rows(1), crowd.ask(MODEL, rows(1)))]
    file.wait_held()
    [pid] = server.worker_pids()
    os.kill(pid, signal.SIGSTOP)
    file.let_go()
    right(file, asked)
    assert server.member(MODEL).restarts == 1
    assert pid not in server.worker_pids()


@pytest.mark.slow
def test_workers_stopped_and_resumed_under_load_change_no_answer(server: Server, file: ModelFile):
    server.apply(one(file, instances=2, cap=2))
    with Load(server.ports(), MODEL, file) as load:
        for _ in range(2):
            pid = min(server.worker_pids())
            os.kill(pid, signal.SIGSTOP)
            load.wait_answers(2)  # by the other instance, while this one may hold a batch
            resume(pid)
            load.wait_answers(20)
        pid = min(server.worker_pids())
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not started(pid), "the stopped worker ended, never to be resumed")
        server.wait_served()
        load.wait_answers(20)
    load.check()


@pytest.mark.slow
def test_a_model_that_never_loads_is_given_up(server: Server, file: ModelFile):
    file.hold_loading()
    server.apply(target())
    server.apply(one(file), wait=False)
    server.wait_for(
        lambda r: "loading and warming took over" in r.services[0].members[0].problem,
        "the hanging load reported",
    )
    file.let_load()
    server.wait_served()


LIAR = """
import sys
import numpy as np
from tessera_runtime.worker import messages as m

class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}

    def __call__(self, batch):
        x = batch["x"]
        if x[0, 0] > 9000:
            frame = sys._getframe()
            while "run" not in frame.f_locals or not isinstance(frame.f_locals["run"], m.Run):
                frame = frame.f_back
            lane, run = frame.f_locals["self"], frame.f_locals["run"]
            FORGE(lane, run, x)
        return {"y": x * 2}

def load(device, options):
    return Model()
"""

FORGERIES = {
    "no outputs": "lane._sock.send(m.encode(m.Ran(lane._incarnation, run.batch, (), 1, (1,), 1)))",
    "too few rows": (
        "lane._sock.send(m.encode(m.Ran(lane._incarnation, run.batch, "
        "(m.Output('y', 'FP32', (0, 4), 0, 0),), 1, (1,), 1)))"
    ),
    "an output beyond its memory": (
        "lane._sock.send(m.encode(m.Ran(lane._incarnation, run.batch, "
        "(m.Output('y', 'FP32', (1, 4), 1 << 40, 16),), 1, (1,), 1)))"
    ),
    "another incarnation": (
        "lane._sock.send(m.encode(m.Failed(lane._incarnation + 1, run.batch, 'not mine')))"
    ),
    "another batch": "lane._sock.send(m.encode(m.Failed(lane._incarnation, run.batch + 1, '')))",
    "nonsense": "lane._sock.send(b'nonsense')",
    "a region without memory": "lane._sock.send(m.encode(m.Region(lane._incarnation, 4096)))",
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_a_worker_that_lies_is_ended_and_its_request_answered_with_an_error(
    server: Server, crowd: Crowd, tmp_path: Path, forgery: str
):
    liar, honest = tmp_path / "liar.py", ModelFile(tmp_path / "honest.py")
    liar.write_text(LIAR.replace("FORGE(lane, run, x)", forgery))
    server.apply(target(service("m", member("a", liar)), service("n", member("a", honest))))
    lie = crowd.ask(MODEL, told(9_100.0))
    with pytest.raises(InferenceServerException, match=r"INTERNAL.*2 instances ended"):
        lie.result()
    right(honest, [(rows(3), crowd.ask("test.n", rows(3)))])
    np.testing.assert_array_equal(crowd.ask(MODEL, rows(4)).result(), rows(4) * 2)


@pytest.mark.slow
def test_thirty_kills_leave_nothing_behind(server: Server, crowd: Crowd, file: ModelFile):
    server.apply(one(file, instances=10))
    right(file, [(rows(i), crowd.ask(MODEL, rows(i))) for i in range(20)])
    dispatcher, supervisor = server.dispatcher_pid, server.process.pid

    def held() -> tuple[int, int, int]:
        return len(fds(dispatcher)), len(fds(supervisor)), len(fds(server.zygote_pid))

    before, regions = held(), len(memfds(dispatcher))
    for round_ in range(1, 4):
        for pid in server.worker_pids():
            os.kill(pid, signal.SIGKILL)
        server.wait_for(
            lambda r, n=10 * round_: r.services[0].members[0].restarts == n, "the kills noticed"
        )
        server.wait_served()
        right(file, [(rows(i), crowd.ask(MODEL, rows(i))) for i in range(20)])
    wait_until(
        lambda: held() <= before and len(memfds(dispatcher)) <= regions,
        lambda: f"descriptors as before ({before}, {regions}): {held()}, {memfds(dispatcher)}",
    )
    assert len(server.worker_pids()) == 10
