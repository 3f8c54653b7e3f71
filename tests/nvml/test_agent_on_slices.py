"""An agent and its server serve, measure and move on slices of a GPU, as the RuntimeNode says: of a stand-in, whose place
cores take, and of a GPU where there is one for it.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
import pytest
import tritonclient.http

from support.agent_process import agent, running
from support.mps_stand_in import Daemon, MpsStandIn
from support.node_api import NodeApi, node_api
from support.nvml_stand_in import UNPRIVILEGED, outside, run_on
from support.server import PATIENCE_S, Server, running_server, wait_until
from tessera_core.gpu.geometry import Placement
from tessera_core.gpu.mig import find_profile, match_profile
from tessera_core.gpu.mps import under_mps
from tessera_core.gpu.tables import H100_80_SXM
from tessera_runtime.devices.mig import mig_devices
from tessera_runtime.mps import control
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu

pytestmark = pytest.mark.parametrize(
    "mig_gpu",
    [H100_80_SXM, pytest.param(None, id="real", marks=pytest.mark.gpu_mig)],
    ids=lambda model: model.name,
    indirect=True,
)

CALLS = {"NVML_STAND_IN_FAULTS": UNPRIVILEGED}
SERVICE = "vision.where"
WHERE = """
import os
import numpy as np
class Model:
    inputs = {"x": ("FP32", (1,))}
    outputs = {"y": ("FP32", (1,))}
    def __call__(self, batch):
        number = int(os.environ["CUDA_VISIBLE_DEVICES"][-6:], 16)
        return {"y": np.full_like(batch["x"], number)}
def load(device, options):
    return Model()
"""
"""Answers with the number at the end of the UUID of its slice."""


class Pod:
    """A runtime pod on a GPU in MIG mode, and its partitioner."""

    def __init__(self, api: NodeApi, server: Server, gpu: MigGpu, *, emulated: bool) -> None:
        self.api, self.server, self.gpu, self.emulated = api, server, gpu, emulated
        api.files["/where.py"] = WHERE

    # In the place of partitioner and operator

    def slice(self, slices: int, memory_slices: int, start: int) -> Placement:
        profile = match_profile(self.gpu.model, slices, memory_slices)
        assert profile is not None
        return Placement(profile.name, start)

    def cut(self, *wanted: Placement) -> dict[str, str]:
        """Leave exactly ``wanted``; the UUIDs by name."""
        slices = cut(self.gpu, wanted, patience_s=PATIENCE_S)
        return {str(each.placement): str(each.uuid) for each in slices}

    def tell(self, cut_as: dict[str, str]) -> None:
        """What the partitioner writes then."""
        pieces = [
            {"uuid": uuid, "profile": name.split("@")[0], "start": int(name.split("@")[1])}
            for name, uuid in cut_as.items()
        ]
        self.api.tell_cuts({"uuid": self.gpu.uuid, "slices": pieces})

    def order(self, piece: Placement, *cut_as: Placement) -> None:
        """One instance on this slice. ``cut_as``: what the partitioner is to cut the GPU into; nothing: nobody cuts it."""
        instance = {"service": SERVICE, "member": "m", "slice": str(piece), "batch": 1}
        geometry = [{"profile": each.profile, "start": each.start} for each in cut_as]
        device = {"uuid": self.gpu.uuid, "geometry": geometry, "cut": bool(cut_as)}
        devices = [{**device, "instances": [instance]}]
        self.api.order(devices=devices, services=[self.served()])

    def served(self) -> dict[str, object]:
        model = {"uri": f"{self.api.url}/where.py", "format": "Python"}
        member = {"name": "m", "model": model, "batch": {"max": 1}}
        objective = {"target": "10s", "percent": "99"}
        spec = {"members": [member], "slo": {"objectives": [objective]}}
        return {"name": SERVICE, "generation": 1, "spec": spec}

    # What is seen

    def device(self) -> dict[str, Any]:
        devices = self.api.status().get("devices", ())
        return next((each for each in devices if each["uuid"] == self.gpu.uuid), {})

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

    def metrics(self) -> str:
        url = f"http://127.0.0.1:{self.server.ports().metrics}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())

    def until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, lambda: f"{what}; status {self.api.status()}")


def number(uuid: str) -> float:
    return float(int(uuid[-6:], 16))


@pytest.fixture
def pod(mig_gpu: MigGpu, tmp_path: Path) -> Iterator[Pod]:
    emulated = "NVML_STAND_IN_STATE" in os.environ
    with (
        node_api("n") as api,
        agent(api, tmp_path, *(["--gpus-on-cores"] if emulated else []), **CALLS),
        running_server(tmp_path / "run") as server,
    ):
        yield Pod(api, server, mig_gpu, emulated=emulated)


@pytest.fixture
def pod_under_mps(
    mig_gpu: MigGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pod]:
    """NVIDIA's daemon is a stand-in too where the GPU is one."""
    emulated = "NVML_STAND_IN_STATE" in os.environ
    if emulated:
        for name, value in MpsStandIn(tmp_path / "mps").environment.items():
            monkeypatch.setenv(name, value)
    elif not control():
        pytest.skip("nvidia-cuda-mps-control is not installed")
    with (
        node_api("n") as api,
        agent(api, tmp_path, "--mps", *(["--gpus-on-cores"] if emulated else []), **CALLS),
        running_server(tmp_path / "run") as server,
    ):
        yield Pod(api, server, mig_gpu, emulated=emulated)


def test_an_instance_follows_its_slice_when_that_is_cut_anew(pod: Pod) -> None:
    stays, moves = pod.slice(1, 1, 0), pod.slice(1, 1, 1)
    first = pod.cut(stays, moves)
    pod.tell(first)
    pod.order(moves)
    pod.until(lambda: pod.ready() == [str(moves)], "an instance on the slice")
    assert pod.slices() == first
    assert pod.device()["migMode"] == "Enabled"
    conditions = {each["type"] for each in pod.api.status()["conditions"]}
    assert ("Emulated" in conditions) == pod.emulated
    client = pod.server.http()
    assert pod.answer(client) == number(first[str(moves)])
    for uuid in first.values():
        assert f'tessera_gpu_memory_used_bytes{{uuid="{uuid}"}}' in pod.metrics()
    workers = pod.server.worker_pids()

    pod.cut(stays)
    second = pod.cut(stays, moves)
    assert second[str(stays)] == first[str(stays)]
    pod.tell(second)
    answers: list[float] = []

    def moved() -> bool:
        answers.append(pod.answer(client))
        return answers[-1] == number(second[str(moves)])

    pod.until(moved, "an answer from the new slice")
    assert set(answers) <= {number(first[str(moves)]), number(second[str(moves)])}
    pod.until(lambda: pod.slices() == second, "the new slice to be told")
    pod.until(lambda: workers.isdisjoint(pod.server.worker_pids()), "the old worker to end")
    assert pod.ready() == [str(moves)]


def test_an_instance_on_a_slice_that_is_not_there_yet_waits_for_it(pod: Pod) -> None:
    small, half = pod.slice(1, 1, 0), pod.slice(3, 4, 4)
    pod.tell(pod.cut(small))
    pod.order(small)
    pod.until(lambda: pod.ready() == [str(small)], "an instance")
    client = pod.server.http()
    pod.order(half)
    pod.until(lambda: str(half) in pod.problem(), "the problem to be told")
    assert f"not cut yet; it has {small}" in pod.problem()
    assert pod.answer(client) == number(pod.slices()[str(small)]), "as before"
    wider = pod.cut(small, half)
    pod.tell(wider)
    pod.until(lambda: pod.ready() == [str(half)], "an instance on the new slice")
    assert pod.problem() == ""
    assert pod.answer(client) == number(wider[str(half)])


def test_without_a_partitioner_slices_have_names_all_the_same(pod: Pod) -> None:
    small, half = pod.slice(1, 1, 6), pod.slice(3, 4, 0)
    real = pod.cut(small, half)
    names = pod.slice(1, 1, 0), pod.slice(3, 4, 4)  # where nobody tells, the first legal places
    pod.order(names[0])
    pod.api.tell_cuts()
    pod.until(pod.slices, "the slices")
    assert pod.slices() == {
        str(names[0]): real[str(small)],
        str(names[1]): real[str(half)],
    }
    pod.until(lambda: pod.ready() == [str(names[0])], "an instance")
    assert pod.answer(pod.server.http()) == number(real[str(small)])


def measured_on(piece: Placement, pod: Pod) -> dict[str, Any]:
    """The profile of the model on a slice of that kind, which is cut for it."""
    pod.tell(pod.cut(piece))
    task = {"service": SERVICE, "member": "m", "device": pod.gpu.uuid, "slice": str(piece)}
    pod.api.order(profiling=[task], candidates=[pod.served()])

    def measured() -> list[dict[str, Any]]:
        found = pod.api.status().get("profiles", ())
        return [each for each in found if each.get("rows") or each.get("problem")]

    pod.until(measured, "a profile")
    [profile] = measured()
    assert profile.get("problem", "") == ""
    return profile


def test_a_model_is_measured_on_a_slice(pod: Pod) -> None:
    piece = pod.slice(1, 2, 2)
    profile = measured_on(piece, pod)
    table = find_profile(pod.gpu.model, piece.profile)
    assert table is not None
    place = profile["deviceClass"]
    assert place["product"] in pod.gpu.model.products
    assert (place["slice"], place["smCount"]) == (piece.profile, table.sm_count)
    assert place["memoryMiB"] == pytest.approx(table.memory_mib, rel=0.1)
    assert {row["instances"] for row in profile["rows"]} == {1, 2, 4}
    assert ("emulated" in profile["driver"]) == pod.emulated


def test_the_partitioner_cuts_and_the_agent_serves_on_what_it_cut(pod: Pod, tmp_path: Path) -> None:
    small, half = pod.slice(1, 1, 0), pod.slice(3, 4, 4)
    api = f"--api-server={pod.api.url}"
    with running(tmp_path / "partitioner.log", "tessera_runtime.partitioner", api):
        pod.order(small, small)
        pod.until(lambda: pod.ready() == [str(small)], "an instance on what was cut for it")
        client = pod.server.http()
        first = pod.slices()
        assert pod.answer(client) == number(first[str(small)])
        pod.order(half, small, half)
        pod.until(lambda: pod.ready() == [str(half)], "an instance on the new slice")
        assert pod.answer(client) == number(pod.slices()[str(half)])
        assert pod.slices()[str(small)] == first[str(small)], "what was there was not touched"


# Under MPS


def daemons(server: Server) -> dict[str, Daemon]:
    """Those that run, by the UUID of their slice."""
    found = [Daemon.of(pipes) for pipes in (server.run_dir / "mps").resolve().glob("*/pipes")]
    return {each.visible: each for each in found if each is not None and each.processes()}


def test_a_slice_has_a_daemon_until_it_is_drained_and_is_cut_then(
    pod_under_mps: Pod, tmp_path: Path
) -> None:
    pod = pod_under_mps
    small, half = pod.slice(1, 1, 0), pod.slice(3, 4, 4)
    api = f"--api-server={pod.api.url}"
    with running(tmp_path / "partitioner.log", "tessera_runtime.partitioner", api):
        pod.order(small, small, half)
        pod.until(lambda: pod.ready() == [str(small)], "an instance on what was cut for it")
        first = pod.slices()
        assert pod.device()["product"].endswith("-MPS")
        client = pod.server.http()
        assert pod.answer(client) == number(first[str(small)])
        ((visible, daemon),) = daemons(pod.server).items()
        assert visible == first[str(small)]
        if pod.emulated:  # a GPU knows by itself who is on it
            gpu = pynvml.nvmlDeviceGetHandleByUUID(pod.gpu.uuid)
            (on,) = (e for e in mig_devices(gpu) if pynvml.nvmlDeviceGetUUID(e) == visible)
            run_on(on, daemon.pid, listed=False)

        pod.order(half, half)

        def cut() -> bool:
            if pod.emulated and not daemon.processes():
                outside("stand_in_end", daemon.pid)
            return pod.slices().keys() == {str(half)}

        pod.until(cut, "the slice to go")
        assert pod.slices()[str(half)] == first[str(half)], "what was there was not touched"
        pod.until(lambda: pod.ready() == [str(half)], "the instance on the other slice")
        assert pod.answer(client) == number(first[str(half)])
        assert daemons(pod.server).keys() == {first[str(half)]}


def test_what_is_measured_under_mps_is_of_a_product_of_its_own(pod_under_mps: Pod) -> None:
    pod = pod_under_mps
    piece = pod.slice(1, 2, 2)
    profile = measured_on(piece, pod)
    assert profile["deviceClass"]["product"] in map(under_mps, pod.gpu.model.products)
    assert profile["deviceClass"]["slice"] == piece.profile
    pod.until(lambda: not daemons(pod.server), "the end of its daemon")
