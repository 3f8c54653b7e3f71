"""Real exported models through the whole server equal the same files run in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from support.clients import infer_grpc, infer_http
from support.server import Server, running_server
from support.targets import member, service
from support.targets import server as target
from support.torch_nets import Mlp, export, script
from tessera_core.api.modelservice import Combine
from tessera_core.ensemble.combine import combine
from tessera_runtime.target import TensorTarget

SIGNATURE = {
    "inputs": (TensorTarget("x", "FP32", (6,)),),
    "outputs": (TensorTarget("scores", "FP32", (3,)),),
}
FORMATS = {"torch_export": "TorchExport", "torch_script": "TorchScript", "onnx": "ONNX"}


@pytest.fixture(scope="module")
def with_torch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose zygote has imported the engines, as in production."""
    run_dir = tmp_path_factory.mktemp("engines") / "run"
    with running_server(run_dir, "--preload=torch,onnxruntime") as server:
        yield server


@pytest.fixture(scope="module")
def net() -> Mlp:
    return Mlp().eval()


@pytest.fixture(scope="module")
def exported(net: Mlp, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    example = (torch.zeros(2, 6),)
    return {
        "torch_export": export(net, folder / "mlp.pt2", example),
        "torch_script": script(net, folder / "mlp.pt", example),
        "onnx": save_onnx(net, folder / "mlp.onnx"),
    }


def save_onnx(net: Mlp, path: Path) -> Path:
    first, _, last = net.net
    weights = {"w1": first.weight, "b1": first.bias, "w2": last.weight, "b2": last.bias}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"], transB=1),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "w2", "b2"], ["scores"], transB=1),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(w.detach().numpy(), name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def in_process(kind: str, path: Path, net: Mlp, x: np.ndarray) -> np.ndarray:
    if kind == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x})[0]
    with torch.inference_mode():
        return net(torch.from_numpy(x)).numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the order in which kernels for other batch sizes or thread counts add."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((4, 6)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_a_served_file_answers_as_in_process(
    with_torch: Server, exported: dict[str, Path], net: Mlp, x: np.ndarray, kind: str
):
    a = member("a", exported[kind], format=FORMATS[kind])
    with_torch.apply(target(service(kind.replace("_", "-"), a, **SIGNATURE)))
    name = f"test.{kind.replace('_', '-')}"
    expected = in_process(kind, exported[kind], net, x)
    close(infer_http(with_torch.http(), name, x).as_numpy("scores"), expected)
    close(infer_grpc(with_torch.grpc(), name, x[:1]).as_numpy("scores"), expected[:1])


@pytest.mark.slow
def test_members_of_different_engines_make_one_ensemble(
    with_torch: Server, exported: dict[str, Path], net: Mlp, x: np.ndarray
):
    members = [
        member(kind.replace("_", "-"), exported[kind], format=FORMATS[kind], instances=2)
        for kind in FORMATS
    ]
    with_torch.apply(target(service("mixed", *members, combine=Combine.SOFT_VOTE, **SIGNATURE)))
    answers = [in_process(kind, exported[kind], net, x) for kind in FORMATS]
    result = infer_http(with_torch.http(), "test.mixed", x)
    close(result.as_numpy("scores"), combine(Combine.SOFT_VOTE, answers))
    metadata = with_torch.http().get_model_metadata("test.mixed")
    assert metadata["platform"] == "tessera_ensemble"


def test_code_is_refused_where_it_is_not_allowed(with_torch: Server, exported: dict[str, Path]):
    script = member("a", exported["torch_script"], format="TorchScript", allow_code=False)
    with_torch.apply(target())
    with_torch.apply(target(service("m", script, **SIGNATURE)), wait=False)
    with_torch.wait_for(lambda r: r.services[0].members[0].problem, "the reason reported")
    assert "TorchScript" in with_torch.member("test.m").problem
