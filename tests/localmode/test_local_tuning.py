"""`tessera tune` and the `tessera serve` that follows it, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.http

from support.clients import infer_http
from support.local import serving, tessera
from support.torch_nets import Mlp, export
from tessera_core.api.modelservice import Precision, Tuning, TuningMode
from tessera_core.gpu.devices import cpu_class
from tessera_core.tuning.variants import Backend
from tessera_runtime.agent.choices import Choice, Choices, engine_of
from tessera_runtime.agent.tune_local import places
from tessera_runtime.devices.inventory import inventory

SERVICE = """
apiVersion: tessera.dev/v1alpha1
kind: ModelService
metadata: {name: digits, namespace: vision}
spec:
  members:
  - {name: mlp, model: {uri: "file://./mlp.pt2", format: TorchExport}, batch: {max: 8}}
  slo: {objectives: [{target: 500ms, percent: "99"}]}
  traffic: {requestsPerSecond: 5}
  tuning: {mode: Auto}
"""

AUTO = Tuning(TuningMode.AUTO, (Precision.FP32, Precision.BF16), 1e-1)
PLACE = cpu_class(1, 1024)


@pytest.fixture
def service(tmp_path: Path) -> Path:
    export(Mlp(), tmp_path / "mlp.pt2", (torch.zeros(2, 6),))
    path = tmp_path / "service.yaml"
    path.write_text(SERVICE)
    return path


def test_what_was_tuned_is_kept_and_said_and_served(service: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    told = tessera(
        "tune", str(service), "--no-compile", "--seconds=0.05", "--state-dir", str(state), "-o", "json"
    )  # fmt: skip
    (found,) = json.loads(told.stdout)
    assert {each["variant"] for each in found["tried"]} >= {
        "openvino/fp32",
        "torch/fp32/channels-last",
    }
    assert not [each for each in found["tried"] if each["variant"].startswith("inductor")]
    for each in found["tried"]:
        assert each["promote"] == (each["reason"] == "Faster")
        assert {cell["share"] for cell in each["cells"]} >= {1.0} or not each["cells"]
    promoted = {each["variant"] for each in found["tried"] if each["promote"]}
    assert found["variant"] in (promoted or {""})


def test_a_choice_is_served_and_measured_as_such(service: Path, tmp_path: Path) -> None:
    seen = inventory()
    state = tmp_path / "state"
    rows = np.random.default_rng(0).standard_normal((3, 6), dtype=np.float32)
    with serving(service) as (status, _):
        client = tritonclient.http.InferenceServerClient(status["http"].removeprefix("http://"))
        untuned = infer_http(client, "digits", rows, "x").as_numpy("output_0")
        client.close()
    digest = next((state / "models" / "sha256").iterdir()).name
    choice = Choice(
        f"sha256:{digest}", "cpu-1", "openvino/fp32", engine_of(Backend.OPENVINO), 1e-7, ""
    )
    Choices(state / "variants", seen.processor).keep(choice, cpu_class(1, seen.memory_mib))
    with serving(service) as (status, _):
        client = tritonclient.http.InferenceServerClient(status["http"].removeprefix("http://"))
        tuned = infer_http(client, "digits", rows, "x").as_numpy("output_0")
        client.close()
        engines = {
            json.loads(path.read_text())["spec"]["engine"]
            for path in (state / "profiles").glob("*.json")
        }
        assert f"{engine_of(Backend.OPENVINO)} openvino/fp32" in engines
    np.testing.assert_allclose(tuned, untuned, atol=1e-4)


@pytest.mark.parametrize(
    ("tuning", "variant"),
    [
        (AUTO, "torch/bf16"),
        (Tuning(), ""),
        (Tuning(TuningMode.AUTO, (Precision.FP32,), 1e-1), ""),
        (Tuning(TuningMode.AUTO, (Precision.BF16,), 1e-3), ""),
    ],
)
def test_a_choice_serves_only_as_far_as_the_service_allows(tmp_path, tuning, variant) -> None:
    choices = Choices(tmp_path, "a processor")
    kept = Choice("sha256:aa", "cpu-1", "torch/bf16", engine_of(Backend.TORCH), 1e-2, "")
    choices.keep(kept, PLACE)
    assert choices.find("sha256:aa", PLACE, tuning) == variant


def test_a_choice_is_of_its_model_share_processor_and_engine(tmp_path) -> None:
    kept = Choice("sha256:aa", "cpu-1", "torch/bf16", engine_of(Backend.TORCH), 0.0, "")
    choices = Choices(tmp_path, "a processor")
    choices.keep(kept, PLACE)
    assert choices.find("sha256:bb", PLACE, AUTO) == ""
    assert choices.find("sha256:aa", cpu_class(2, 1024), AUTO) == ""
    assert Choices(tmp_path, "another").find("sha256:aa", PLACE, AUTO) == ""
    choices.keep(Choice("sha256:aa", "cpu-1", "torch/bf16", "torch-0.1", 0.0, ""), PLACE)
    assert choices.find("sha256:aa", PLACE, AUTO) == ""
    next(tmp_path.glob("*.json")).write_text("{")
    assert choices.find("sha256:aa", PLACE, AUTO) == ""


def test_workers_have_cores_of_their_own_and_shares_beside_the_serving_one() -> None:
    one, other = places((0, 1, 2, 3), 1, 2, 100)
    assert one.shares == other.shares == (1.0, 2.0)
    cores = [{core for device in place.devices for core in device.cores} for place in (one, other)]
    assert cores == [{0, 1}, {2, 3}]
    (alone,) = places((0, 1, 2, 3), 2, 1, 100)
    assert alone.shares == (1.0, 0.5, 2.0)
    assert [device.threads for device in alone.devices] == [2, 1, 4]


@pytest.mark.parametrize(("serving_cores", "workers"), [(3, 2), (0, 1), (1, 0), (5, 1)])
def test_more_cores_than_there_are_is_refused(serving_cores: int, workers: int) -> None:
    with pytest.raises(ValueError, match="this machine has 4 cores"):
        places((0, 1, 2, 3), serving_cores, workers, 100)
