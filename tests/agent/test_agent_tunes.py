"""An agent and its server try variants, keep what was found, run what is ordered, and fall back from what goes wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from support.agent_process import agent
from support.closed_loop import ClosedLoop
from support.node_api import NodeApi, node_api
from support.server import Server, running_server, wait_until
from support.torch_nets import Mlp, export
from tessera_core.api import RuntimeNode
from tessera_core.api.measurements import TuningResult
from tessera_core.api.runtimenode import InstanceStatus
from tessera_core.api.tuning import Reason

pytestmark = pytest.mark.slow

SERVICE = "vision.mlp"
SLICE = "cpu-1@0"
MODEL = "/mlp.pt2"
CONTROLS = {"name": SERVICE, "generation": 1}
PATIENCE_S = 90.0


class Pod:
    """A runtime pod of two cores, which serves on the first one and tunes on the second."""

    def __init__(self, folder: Path, api: NodeApi, server: Server) -> None:
        self.folder, self.api, self.server = folder, api, server

    def order(
        self,
        variant: str = "",
        *,
        tuning: tuple[str, ...] = (),
        profiling: str | None = None,
        tolerance: str = "0.01",
    ) -> None:
        served = self.served()
        instance = {"service": SERVICE, "member": "m", "slice": SLICE, "batch": 8}
        task = {"service": SERVICE, "member": "m", "device": "cpu", "slice": "cpu-1@1"}
        self.api.order(
            devices=[{"uuid": "cpu", "instances": [{**instance, "variant": variant}]}],
            services=[served],
            candidates=[served] if tuning or profiling is not None else [],
            tuning=[{**task, "variants": list(tuning), "tolerance": tolerance}] if tuning else [],
            profiling=[{**task, "variant": profiling}] if profiling is not None else [],
        )

    def served(self) -> dict[str, Any]:
        model = {"uri": f"{self.api.url}{MODEL}", "format": "TorchExport"}
        objective = {"target": "10s", "percent": "99"}
        spec = {
            "members": [{"name": "m", "model": model, "batch": {"max": 8}}],
            "slo": {"objectives": [objective]},
            "tuning": {"mode": "Auto", "precisions": ["fp32", "bf16"]},
        }
        return {**CONTROLS, "spec": spec, "members": [{"name": "m", "digest": self.digest}]}

    @property
    def digest(self) -> str:
        content = self.api.files[MODEL]
        assert isinstance(content, bytes)
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    def status(self) -> RuntimeNode:
        head = {"apiVersion": "tessera.dev/v1alpha1", "kind": "RuntimeNode"}
        document = {**head, "metadata": {"name": "n"}, "spec": {"epoch": 1}}
        return RuntimeNode.from_dict({**document, "status": self.api.status()})

    def instance(self) -> InstanceStatus | None:
        found = [each for device in self.status().status.devices for each in device.instances]
        return found[0] if found else None

    def runs(self, variant: str) -> bool:
        found = self.instance()
        return found is not None and found.ready == 1 and found.variant == variant

    def result(self) -> TuningResult | None:
        found = self.status().status.tuning
        return found[0] if found else None

    def until(self, condition: Any, what: str) -> None:
        def words() -> str:
            log = (self.folder / "agent.log").read_text()[-3000:]
            return f"{what}; status {self.api.status()}; {log}"

        wait_until(condition, words, PATIENCE_S)


@pytest.fixture(scope="module")
def net() -> Mlp:
    return Mlp().eval()


@contextmanager
def pod_in(folder: Path, api: NodeApi, net: Mlp) -> Iterator[Pod]:
    path = export(net, folder / "mlp.pt2", (torch.zeros(2, 6),))
    api.files.setdefault(MODEL, path.read_bytes())
    with (
        agent(api, folder),  # which ends when its server has
        running_server(folder / "run", "--preload=torch") as server,
    ):
        yield Pod(folder, api, server)


@pytest.fixture
def pod(tmp_path: Path, net: Mlp) -> Iterator[Pod]:
    with node_api("n") as api, pod_in(tmp_path, api, net) as pod:
        yield pod


def answer_of(net: nn.Module):
    def answer(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(torch.from_numpy(rows)).numpy()

    return answer


def test_variants_are_tried_one_after_the_other_beside_what_serves(pod: Pod) -> None:
    pod.order()
    pod.until(lambda: pod.runs(""), "the untuned model")
    wanted = ("openvino/fp32", "tvm/fp32", "torch/bf16")
    pod.order(tuning=wanted, tolerance="0.0000001")
    pod.until(
        lambda: (found := pod.result()) is not None and len(found.outcomes) == 3, "three outcomes"
    )
    result = pod.result()
    assert result is not None
    assert (result.model_digest, result.trying, result.problem) == (pod.digest, "", "")
    first, second, third = result.outcomes
    assert first.verdict in (Reason.FASTER, Reason.NOT_FASTER, Reason.DIFFERS)
    assert second.verdict is Reason.FAILED
    assert "tvm" in second.message
    assert third.verdict is Reason.DIFFERS
    assert (third.error or 0.0) > 1e-7


def test_a_task_that_is_taken_back_ends_and_what_was_found_survives_a_restart(
    tmp_path: Path, net: Mlp
) -> None:
    with node_api("n") as api:
        with pod_in(tmp_path, api, net) as pod:
            pod.order(tuning=("tvm/fp32", "openvino/fp32"))
            pod.until(
                lambda: (found := pod.result()) is not None and found.trying == "openvino/fp32",
                "the second one to be tried",
            )
            pod.order(tuning=("tvm/fp32",))
            pod.until(lambda: (found := pod.result()) is not None and found.trying == "", "its end")
            pod.server.wait_for(lambda report: not report.workers, "its processes to be gone")
            result = pod.result()
            assert result is not None
            assert [each.variant for each in result.outcomes] == ["tvm/fp32"]
        before = len(api.writes())
        with pod_in(tmp_path, api, net) as pod:
            pod.until(lambda: len(api.writes()) > before, "the next agent to say something")
            assert pod.result() == result


def test_a_variant_is_measured_as_any_model_is(pod: Pod) -> None:
    pod.order(profiling="openvino/fp32")
    pod.until(
        lambda: any(each.rows for each in pod.status().status.profiles), "a measurement of it"
    )
    (found,) = pod.status().status.profiles
    assert (found.variant, found.model_digest) == ("openvino/fp32", pod.digest)
    assert (found.engine or "").startswith("openvino")


def test_an_ordered_variant_takes_over_under_load_and_no_request_fails(pod: Pod, net: Mlp) -> None:
    pod.order()
    pod.until(lambda: pod.runs(""), "the untuned model")
    with ClosedLoop(pod.server.ports(), SERVICE, answer_of(net)) as load:
        for variant in ("openvino/fp32", "torch/fp32/channels-last", ""):
            load.wait_answers(50)
            pod.order(variant)
            pod.until(lambda variant=variant: pod.runs(variant), f"{variant} to run")
        load.wait_answers(50)
    assert load.failed == []
    assert load.worst < 1e-4


def test_a_node_falls_back_by_itself_and_says_why(pod: Pod, net: Mlp) -> None:
    pod.order()
    pod.until(lambda: pod.runs(""), "the untuned model")
    with ClosedLoop(pod.server.ports(), SERVICE, answer_of(net)) as load:
        pod.order("onnxruntime/fp32")  # this model is none of ONNX Runtime's
        pod.until(lambda: bool(pod.status().status.fallbacks), "the fallback to be told")
        load.wait_answers(50)
    assert load.failed == []
    (found,) = pod.status().status.fallbacks
    assert (found.model_digest, found.product, found.slice) == (pod.digest, "cpu", "cpu-1")
    assert found.variant == "onnxruntime/fp32"
    assert "could not be loaded" in found.reason
    assert pod.runs("")
    pod.order("openvino/fp32")
    pod.until(lambda: pod.runs("openvino/fp32"), "another variant")
    assert pod.status().status.fallbacks == ()
