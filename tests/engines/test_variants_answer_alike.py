"""Every variant of a small model answers as the untuned model does, at all sizes of batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, save_model
from torch import nn

from support.torch_nets import Cnn, Mlp, export
from tessera_core.api.members import ModelFormat
from tessera_core.api.modelservice import Precision
from tessera_core.tuning.variants import Backend, candidates
from tessera_runtime.engines.base import EngineDevice, LoadRefused, ModelFile
from tessera_runtime.engines.loading import build_artefact, load_engine
from tessera_runtime.engines.version import library_version

CPU = EngineDevice("cpu", threads=1)
BATCHES = (1, 2, 3, 7, 8)
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
"""Relative to the largest answer; bfloat16 has 8 bits of mantissa."""

QUICK = [
    str(each)
    for each in candidates(ModelFormat.TORCH_EXPORT, "cpu", Precision, Backend)
    if not each.compiles
]
ONNX = [str(each) for each in candidates(ModelFormat.ONNX, "cpu", Precision, Backend)]


class Named(nn.Module):
    """Integers and a constant among the inputs, and a dictionary of two answers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(16, 8)
        self.net = nn.Linear(8, 4)

    def forward(self, tokens: torch.Tensor, scale: torch.Tensor, power: int = 2):
        found = self.table(tokens).mean(1)
        return {"logits": self.net(found) * scale**power, "most": found.argmax(1)}


@pytest.fixture(scope="module")
def files(models: Path) -> dict[str, ModelFile]:
    def exported(name: str, net: nn.Module, args: tuple, **options) -> ModelFile:
        path = export(net, models / f"variant_{name}.pt2", args, **options)
        return ModelFile(str(path), "TorchExport", allow_code=False)

    dim = torch.export.Dim("batch")
    tokens = torch.ones(2, 5, dtype=torch.int64)
    return {
        "mlp": exported("mlp", Mlp(), (torch.zeros(2, 6),)),
        "cnn": exported("cnn", Cnn(), (torch.zeros(2, 1, 8, 8),)),
        "named": exported(
            "named",
            Named(),
            (tokens, torch.ones(2, 1), 2),
            dynamic_shapes={"tokens": {0: dim}, "scale": {0: dim}, "power": None},
        ),
        "bounded": exported(
            "bounded", Mlp(), (torch.zeros(2, 6),), batch=torch.export.Dim("batch", max=10)
        ),
        "static": exported("static", Cnn(), (torch.zeros(8, 1, 8, 8),), static=True),
        "onnx": ModelFile(str(linear(models / "variant.onnx")), "ONNX", allow_code=False),
    }


def linear(path: Path) -> Path:
    """Weights that are among the graph's inputs, and an answer that is an input under another name."""
    weights = np.random.default_rng(3).standard_normal((6, 4)).astype(np.float32)

    def info(name: str, *row: int):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *row])

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Relu", ["product"], ["y"]),
            helper.make_node("Identity", ["x"], ["same"]),
        ],
        "net",
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 4]), info("x", 6)],
        [info("y", 4), info("same", 6)],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = helper.make_opsetid("", 17)
    save_model(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def tuned(file: ModelFile, variant: str, artefact: str = "") -> ModelFile:
    return ModelFile(file.path, file.format, False, variant=variant, artefact=artefact)


def given(engine, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        meta.name: rng.standard_normal((rows, *meta.row_shape), dtype=np.float32)
        if meta.datatype == "FP32"
        else rng.integers(0, 16, (rows, *meta.row_shape))
        for meta in engine.signature.inputs
    }


def assert_alike(ask, closing, file: ModelFile, variant: ModelFile) -> None:
    plain = closing(load_engine(file, CPU))
    engine = closing(load_engine(variant, CPU))
    assert engine.signature == plain.signature
    one, other = plain.lane(max(BATCHES)), engine.lane(max(BATCHES))
    tolerance = TOLERANCE[variant.variant.split("/")[1]]
    for rows in BATCHES:
        batch = given(plain, rows)
        wanted, found = ask(one, batch), ask(other, batch)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            assert found[name].dtype == array.dtype
            if array.dtype.kind == "f":
                scale = float(np.abs(array).max())
                np.testing.assert_allclose(found[name], array, rtol=0, atol=tolerance * scale)
            else:
                np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("model", ["mlp", "cnn", "named", "bounded", "static"])
@pytest.mark.parametrize("variant", QUICK)
def test_a_variant_of_an_export_answers_as_untuned(files, ask, closing, model, variant) -> None:
    assert_alike(ask, closing, files[model], tuned(files[model], variant))


@pytest.mark.parametrize("variant", ONNX)
def test_a_variant_of_onnx_answers_as_untuned(files, ask, closing, variant) -> None:
    assert_alike(ask, closing, files["onnx"], tuned(files["onnx"], variant))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    ("model", "variant"),
    [
        ("named", "inductor/fp32"),
        ("cnn", "inductor/bf16"),
        ("static", "inductor/fp32/max-autotune"),
    ],
)
def test_what_was_compiled_answers_as_untuned(
    files, ask, closing, tmp_path, model, variant
) -> None:
    path = str(tmp_path / "compiled.pt2")
    assert build_artefact(tuned(files[model], variant), CPU, path) == library_version("torch")
    assert_alike(ask, closing, files[model], tuned(files[model], variant, path))


def test_a_variant_that_was_not_built_is_refused_with_what_to_do(files) -> None:
    with pytest.raises(LoadRefused, match=r"was not built on this node.*tune the model again"):
        load_engine(tuned(files["mlp"], "inductor/fp32"), CPU)


@pytest.mark.parametrize(
    ("model", "variant", "words"),
    [
        ("mlp", "onnxruntime/fp32", "TorchExport is not run by it"),
        ("onnx", "torch/bf16", "ONNX is not run by it"),
        ("mlp", "torch/fp16", "not on devices of kind cpu"),
        ("mlp", "tvm/fp32", "expected <backend>/<precision>"),
    ],
)
def test_a_variant_that_does_not_fit_is_refused(files, model, variant, words) -> None:
    with pytest.raises(LoadRefused, match=words):
        load_engine(tuned(files[model], variant), CPU)


@pytest.mark.parametrize(
    ("model", "variant", "run"),
    [
        ("mlp", "openvino/fp32", {1: 1, 3: 3, 8: 8}),
        ("bounded", "openvino/fp32", {1: 1, 3: 3, 8: 8}),
        ("bounded", "openvino/fp32/static", {1: 1, 3: 4, 8: 8, 9: 10}),
        ("static", "openvino/fp32", {1: 8, 8: 8}),
    ],
)
def test_openvino_runs_no_more_rows_than_it_must(files, closing, model, variant, run) -> None:
    engine = closing(load_engine(tuned(files[model], variant), CPU))
    assert {rows: engine.rows_run(rows) for rows in run} == run


def test_openvino_does_not_phone_home(files, closing) -> None:
    import sys

    closing(load_engine(tuned(files["mlp"], "openvino/fp32"), CPU))
    assert sys.modules["openvino_telemetry"] is None
    assert sys.modules["openvino.tools.ovc"].telemetry.__class__.__module__.endswith("_stub")
