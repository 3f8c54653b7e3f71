"""What is served changes under load, and no request fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.clients import Crowd, Load
from support.model_files import ModelFile, rows
from support.server import Server
from support.targets import member, service
from support.targets import server as target
from tessera_runtime.control import ControlError
from tessera_runtime.target import DeviceTarget

A_FEW = 40
"""Answers after which the load is known to have met the new state."""


def one(file: ModelFile, **settings: object):
    return target(service("m", member("a", file, **settings)))


@pytest.fixture
def file(tmp_path: Path) -> ModelFile:
    return ModelFile(tmp_path / "model.py", scale=2.0)


def test_instances_come_and_go(server: Server, file: ModelFile):
    server.apply(one(file))
    with Load(server.ports(), "test.m", file) as load:
        for count in (3, 1, 2, 1):
            load.wait_answers(A_FEW)
            server.apply(one(file, instances=count))
        load.wait_answers(A_FEW)
    load.check()
    server.wait_for(lambda r: len(r.workers) == 1, "one worker")


def test_batch_caps_change(server: Server, file: ModelFile):
    server.apply(one(file))
    with Load(server.ports(), "test.m", file) as load:
        for cap in (1, 8, 3, 2):
            load.wait_answers(A_FEW)
            server.apply(one(file, cap=cap))
            assert server.member("test.m").cap == cap
        load.wait_answers(A_FEW)
    load.check()


def test_a_device_takes_batches_of_its_own_cap(server: Server, crowd: Crowd, file: ModelFile):
    """Behind a held batch of one row wait six; the member's cap of 8 would make them one batch."""
    for cap, batches in ((3, 1 + 2), (2, 1 + 3)):
        server.apply(one(file, instances={"cpu-0": 1}, caps={"cpu-0": cap, "cpu-1": 1}))
        before = server.member("test.m").batches
        file.hold()
        asked = [crowd.ask("test.m", rows(1))]
        file.wait_held()
        asked += [crowd.ask("test.m", rows(i)) for i in range(2, 8)]
        server.wait_for(lambda r: r.services[0].members[0].queued_rows == 6, "six wait")
        file.let_go()
        for each in asked:
            each.result()
        assert server.member("test.m").batches - before == batches


def test_a_new_version_takes_over(server: Server, file: ModelFile, tmp_path: Path):
    new = ModelFile(tmp_path / "new.py", scale=-3.0)
    server.apply(one(file))
    with Load(server.ports(), "test.m", file, new) as load:
        load.wait_answers(A_FEW)
        server.apply(target(service("m", member("a", new), version="2")))
        load.wait_answers(A_FEW)
    load.check()
    with Load(server.ports(), "test.m", new) as load:
        load.wait_answers(A_FEW)
    load.check()
    server.wait_for(lambda r: len(r.workers) == 1, "the old version's worker ended")


def test_a_version_that_never_loads_leaves_the_old_one_serving(
    server: Server, file: ModelFile, tmp_path: Path
):
    broken = tmp_path / "broken.py"
    broken.write_text("def load(device, options): raise OSError('no weights')")
    server.apply(one(file))
    with Load(server.ports(), "test.m", file) as load:
        wanted = target(service("m", member("a", broken), version="2"))
        server.apply(wanted, wait=False)
        server.wait_for(
            lambda r: "no weights" in r.services[0].problem, "the new version's problem reported"
        )
        load.wait_answers(A_FEW)
        assert server.service("test.m").version == "1"
        server.apply(one(file))  # rolled back
        load.wait_answers(A_FEW)
    load.check()


def test_a_member_moves_to_another_device(server: Server, file: ModelFile):
    server.apply(one(file, instances={"cpu-0": 2}))
    with Load(server.ports(), "test.m", file) as load:
        for device in ("cpu-1", "cpu-0", "cpu-1"):
            load.wait_answers(A_FEW)
            server.apply(one(file, instances={device: 2}))
            server.wait_for(
                lambda r, device=device: r.services[0].members[0].device == device, "the move"
            )
        load.wait_answers(A_FEW)
    load.check()


def test_a_member_is_served_from_the_old_device_until_the_new_one_is_warm(
    server: Server, file: ModelFile
):
    server.apply(one(file, instances={"cpu-0": 2}))
    file.hold_loading()
    with Load(server.ports(), "test.m", file) as load:
        server.apply(one(file, instances={"cpu-1": 2}), wait=False)
        server.wait_for(lambda r: len(r.workers) == 4, "new workers beside the old ones")
        load.wait_answers(A_FEW)
        assert server.member("test.m").ready == 0
        file.let_load()
        server.wait_served()
        load.wait_answers(A_FEW)
    load.check()
    server.wait_for(lambda r: {w.device for w in r.workers} == {"cpu-1"}, "the old workers ended")


def test_a_move_that_is_taken_back_keeps_the_instances_that_serve(server: Server, file: ModelFile):
    server.apply(one(file, instances={"cpu-0": 2}))
    workers = server.worker_pids()
    file.hold_loading()
    server.apply(one(file, instances={"cpu-1": 2}), wait=False)
    server.wait_for(lambda r: len(r.workers) == 4, "new workers beside the old ones")
    server.apply(one(file, instances={"cpu-0": 2}))
    server.wait_for(lambda r: {w.pid for w in r.workers} == workers, "the first workers only")
    file.let_load()


def test_a_target_with_an_unknown_device_is_refused_and_changes_nothing(
    server: Server, file: ModelFile
):
    server.apply(one(file))
    wrong = target(
        service("first", member("a", file)), service("m", member("a", file, instances={"gpu-7": 1}))
    )
    with pytest.raises(ControlError, match="gpu-7"):
        server.apply(wrong)
    assert [(s.name, s.members[0].wanted) for s in server.report().services] == [("test.m", 1)]
    with Load(server.ports(), "test.m", file) as load:
        load.wait_answers(A_FEW)
    load.check()


def test_a_version_number_alone_is_taken_over_without_loading(server: Server, file: ModelFile):
    server.apply(one(file))
    workers = server.worker_pids()
    server.apply(target(service("m", member("a", file), version="7")))
    assert server.worker_pids() == workers
    assert server.grpc().get_model_metadata("test.m").versions == ["7"]


def test_services_come_and_go_beside_it(server: Server, file: ModelFile, tmp_path: Path):
    beside = ModelFile(tmp_path / "beside.py", offset=1.0)
    alone = service("m", member("a", file))
    server.apply(target(alone))
    with Load(server.ports(), "test.m", file) as load:
        for _ in range(2):
            load.wait_answers(A_FEW)
            server.apply(target(alone, service("n", member("b", beside))))
            load.wait_answers(A_FEW)
            server.apply(target(alone))
    load.check()


_OF_ENVIRONMENT = """
import os, time
import numpy as np
class Model:
    inputs = {"x": ("FP32", (4,))}
    outputs = {"y": ("FP32", (4,))}
    def __call__(self, batch):
        return {"y": batch["x"] * np.float32(os.environ["SCALE"])}
def load(device, options):
    while os.path.exists(GATE):
        time.sleep(0.002)
    return Model()
"""


def on(scale: str, path: Path, count: int = 1):
    """A model that answers with what its device's environment says."""
    device = DeviceTarget("d", "cpu", environment={"SCALE": scale})
    wanted = service("m", member("a", path, instances={"d": count}))
    return target(wanted, devices=(device,))


def test_a_device_that_is_another_under_the_same_id_has_workers_of_its_own(
    server: Server, tmp_path: Path
):
    gate = tmp_path / "gate"
    path = tmp_path / "scaled.py"
    path.write_text(_OF_ENVIRONMENT.replace("GATE", repr(str(gate))))
    server.apply(on("2", path, count=2))
    old = server.worker_pids()
    answers = [lambda x, scale=scale: x * scale for scale in (2, 3, 4, 5)]
    with Load(server.ports(), "test.m", *answers) as load:
        load.wait_answers(A_FEW)
        gate.touch()
        for scale in ("3", "4", "5", "5"):  # each before the one before it has loaded
            server.apply(on(scale, path, count=2), wait=False)
        server.wait_for(lambda r: r.instances[0].exist == 8, "all of them to be there")
        load.wait_answers(A_FEW)
        gate.unlink()
        server.wait_for(lambda r: r.instances[0].exist == 2 == len(r.workers), "the last two alone")
        load.wait_answers(A_FEW)
    load.check()
    assert old.isdisjoint(server.worker_pids())
    with Load(server.ports(), "test.m", lambda x: x * 5) as load:
        load.wait_answers(A_FEW)
    load.check()


def test_a_device_that_is_again_what_it_was_keeps_its_workers(server: Server, tmp_path: Path):
    gate = tmp_path / "gate"
    path = tmp_path / "scaled.py"
    path.write_text(_OF_ENVIRONMENT.replace("GATE", repr(str(gate))))
    server.apply(on("2", path))
    workers = server.worker_pids()
    gate.touch()
    server.apply(on("3", path), wait=False)
    server.apply(on("2", path))
    server.wait_for(lambda r: r.instances[0].exist == 1, "the one that was")
    assert server.worker_pids() == workers
    gate.unlink()
