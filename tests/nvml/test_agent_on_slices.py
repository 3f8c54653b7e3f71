"""An agent and its server serve, measure and move on slices of a GPU, as the RuntimeNode says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
import pytest
import tritonclient.http

from support.node_api import NodeApi, node_api
from support.nvml_stand_in import UNPRIVILEGED, StandIn, enable_mig
from support.server import PATIENCE_S, Server, running_server, wait_until
from tessera_core.gpu.geometry import Placement
from tessera_core.gpu.tables import H100_80_SXM
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu

PRODUCT = "NVIDIA-H100-80GB-HBM3"
SERVICE = "vision.where"
WHERE = """
import os
import numpy as np
class Model:
    inputs = {"x": ("FP32", (1,))}
    outputs = {"y": ("FP32", (1,))}
    def __call__(self, batch):
        number = int(os.environ["CUDA_VISIBLE_DEVICES"][-12:], 16)
        return {"y": np.full_like(batch["x"], number)}
def load(device, options):
    return Model()
"""
"""Answers with the number at the end of the UUID of its slice."""


class Pod:
    """A runtime pod on an emulated H100 in MIG mode, and its partitioner."""

    def __init__(self, api: NodeApi, server: Server, gpu: str) -> None:
        self.api, self.server, self.gpu = api, server, gpu
        api.files["/where.py"] = WHERE

    # In the place of partitioner and operator

    def cut(self, *wanted: tuple[str, int]) -> dict[str, str]:
        """Leave exactly ``wanted``; the UUIDs by name."""
        with MigGpu(self.gpu) as gpu:
            slices = cut(gpu, [Placement(*each) for each in wanted], patience_s=PATIENCE_S)
        return {str(each.placement): str(each.uuid) for each in slices}

    def tell(self, cut_as: dict[str, str]) -> None:
        """What the partitioner writes then."""
        pieces = [
            {"uuid": uuid, "profile": name.split("@")[0], "start": int(name.split("@")[1])}
            for name, uuid in cut_as.items()
        ]
        self.api.tell_cuts({"uuid": self.gpu, "slices": pieces})

    def order(self, piece: str) -> None:
        """One instance on this slice."""
        instance = {"service": SERVICE, "member": "m", "slice": piece, "batch": 1}
        devices = [{"uuid": self.gpu, "instances": [instance]}]
        self.api.order(devices=devices, services=[self.served()])

    def served(self) -> dict[str, object]:
        model = {"uri": f"{self.api.url}/where.py", "format": "Python"}
        member = {"name": "m", "model": model, "batch": {"max": 1}}
        objective = {"target": "10s", "percent": "99"}
        spec = {"members": [member], "slo": {"objectives": [objective]}}
        return {"name": SERVICE, "generation": 1, "spec": spec}

    # What is seen

    def device(self) -> dict[str, Any]:
        found = (each for each in self.api.status().get("devices", ()) if each["uuid"] == self.gpu)
        return next(found, {})

    def slices(self) -> dict[str, str]:
        return {
            f"{each['profile']}@{each['start']}": each["uuid"]
            for each in self.device().get("slices", ())
        }

    def ready(self) -> list[str]:
        """The slices with a ready instance."""
        return [e["slice"] for e in self.device().get("instances", ()) if e["ready"] == e["count"]]

    def problem(self) -> str:
        found = (e for e in self.api.status().get("services", ()) if e["name"] == SERVICE)
        return str(next(found, {}).get("problem", ""))

    def answer(self, client: tritonclient.http.InferenceServerClient) -> float:
        x = tritonclient.http.InferInput("x", [1, 1], "FP32")
        x.set_data_from_numpy(np.zeros((1, 1), np.float32))
        return float(client.infer(SERVICE, [x]).as_numpy("y")[0, 0])

    def until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, lambda: f"{what}; status {self.api.status()}")


def number(uuid: str) -> float:
    return float(int(uuid[-12:], 16))


@pytest.fixture
def pod(machine: Callable[..., StandIn], tmp_path: Path) -> Iterator[Pod]:
    made = machine(H100_80_SXM)
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    enable_mig(handle)
    gpu = str(pynvml.nvmlDeviceGetUUID(handle))
    pynvml.nvmlShutdown()
    with (
        node_api("n") as api,
        agent(api, tmp_path, made),
        running_server(tmp_path / "run") as server,
    ):
        yield Pod(api, server, gpu)


@contextmanager
def agent(api: NodeApi, folder: Path, machine: StandIn) -> Iterator[None]:
    """The agent as in a pod, without any privilege. It ends when its server has."""
    paths = [f"--{name}={folder / kind}" for name, kind in _FOLDERS]
    options = ["--allow-code", "--allow-loopback-stores", "--gpus-on-cores"]
    who = {"NODE_NAME": "n", "POD_NAME": "p", "POD_IP": "10.0.0.9", "POD_NAMESPACE": "default"}
    command = [sys.executable, "-m", "tessera_runtime.agent.main", *paths, *options]
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--api-server={api.url}"],
            env={**os.environ, **machine.environment(UNPRIVILEGED), **who, "TESSERA_CORES": "2"},
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        status = process.wait(PATIENCE_S)
    assert status == 0, (folder / "agent.log").read_text()


_FOLDERS = (("run-dir", "run"), ("models", "models"), ("state", "state"))


def test_an_instance_follows_its_slice_when_that_is_cut_anew(pod: Pod) -> None:
    first = pod.cut(("1g.10gb", 0), ("1g.10gb", 1))
    pod.tell(first)
    pod.order("1g.10gb@1")
    pod.until(lambda: pod.ready() == ["1g.10gb@1"], "an instance on the slice")
    assert pod.slices() == first
    assert pod.device()["migMode"] == "Enabled"
    assert "Emulated" in {each["type"] for each in pod.api.status()["conditions"]}
    client = pod.server.http()
    assert pod.answer(client) == number(first["1g.10gb@1"])
    workers = pod.server.worker_pids()

    pod.cut(("1g.10gb", 0))
    second = pod.cut(("1g.10gb", 0), ("1g.10gb", 1))
    assert second["1g.10gb@0"] == first["1g.10gb@0"]
    pod.tell(second)
    known = {number(first["1g.10gb@1"]), number(second["1g.10gb@1"])}
    answers: list[float] = []

    def moved() -> bool:
        answers.append(pod.answer(client))
        return answers[-1] == number(second["1g.10gb@1"])

    pod.until(moved, "an answer from the new slice")
    assert set(answers) <= known
    pod.until(lambda: pod.slices() == second, "the new slice to be told")
    pod.until(lambda: workers.isdisjoint(pod.server.worker_pids()), "the old worker to end")
    assert pod.ready() == ["1g.10gb@1"]


def test_an_instance_on_a_slice_that_is_not_there_yet_waits_for_it(pod: Pod) -> None:
    pod.tell(pod.cut(("1g.10gb", 0)))
    pod.order("1g.10gb@0")
    pod.until(lambda: pod.ready() == ["1g.10gb@0"], "an instance")
    client = pod.server.http()
    pod.order("3g.40gb@4")
    pod.until(lambda: "3g.40gb@4" in pod.problem(), "the problem to be told")
    assert "not cut yet; it has 1g.10gb@0" in pod.problem()
    assert pod.answer(client) == number(pod.slices()["1g.10gb@0"]), "as before"
    wider = pod.cut(("1g.10gb", 0), ("3g.40gb", 4))
    pod.tell(wider)
    pod.until(lambda: pod.ready() == ["3g.40gb@4"], "an instance on the new slice")
    assert pod.problem() == ""
    assert pod.answer(client) == number(wider["3g.40gb@4"])


def test_without_a_partitioner_slices_have_names_all_the_same(pod: Pod) -> None:
    real = pod.cut(("1g.10gb", 6), ("3g.40gb", 0))
    pod.order("1g.10gb@0")  # where nobody tells places, the first legal ones are the names
    pod.api.tell_cuts()
    pod.until(pod.slices, "the slices")
    assert pod.slices() == {"1g.10gb@0": real["1g.10gb@6"], "3g.40gb@4": real["3g.40gb@0"]}
    pod.until(lambda: pod.ready() == ["1g.10gb@0"], "an instance")
    assert pod.answer(pod.server.http()) == number(real["1g.10gb@6"])


def test_a_model_is_measured_on_a_slice(pod: Pod) -> None:
    pod.tell(pod.cut(("1g.20gb", 2)))
    task = {"service": SERVICE, "member": "m", "device": pod.gpu, "slice": "1g.20gb@2"}
    pod.api.order(profiling=[task], candidates=[pod.served()])

    def measured() -> list[dict[str, Any]]:
        found = pod.api.status().get("profiles", ())
        return [each for each in found if each.get("rows") or each.get("problem")]

    pod.until(measured, "a profile")
    [profile] = measured()
    assert profile.get("problem", "") == ""
    assert profile["deviceClass"] == {
        "product": PRODUCT,
        "slice": "1g.20gb",
        "smCount": 26,
        "memoryMiB": 20096,
    }
    assert {row["instances"] for row in profile["rows"]} == {1, 2, 4}
    assert profile["driver"] == "none: GPUs emulated on cores"
