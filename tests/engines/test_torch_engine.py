import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from support.torch_nets import Cnn, Mlp, export, script
from tessera_runtime.engines.base import EngineDevice, LoadRefused, ModelFile, TensorMeta
from tessera_runtime.engines.loading import load_engine
from tessera_runtime.engines.version import library_version

CPU = EngineDevice("cpu", threads=1)


class Kwargs(nn.Module):
    def forward(self, x: torch.Tensor, *, scale: torch.Tensor, mode: str = "plus"):
        return {"logits": x * scale[:, None], "total": (x.sum(1) + scale).to(torch.float64)}


class Tuple(nn.Module):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]):
        return pair[0] + pair[1], (pair[0] > 0, None)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 1.5, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class Sequence(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float().cumsum(1) + tokens.shape[1]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        return x + self.seen


def exported(path, **declared) -> ModelFile:
    return ModelFile(str(path), "TorchExport", allow_code=False, **declared)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def in_process(net: nn.Module, *arrays: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return net.eval()(*(torch.from_numpy(array) for array in arrays)).numpy()


@pytest.fixture(scope="module")
def mlp(models):
    return export(Mlp(), models / "mlp.pt2", (torch.zeros(2, 6),))


@pytest.mark.parametrize(("net", "row"), [(Mlp(), (6,)), (Cnn(), (1, 8, 8))], ids=["mlp", "cnn"])
def test_answers_equal_an_in_process_run_bit_for_bit(net, row, models, ask, closing):
    path = export(net, models / f"equal-{len(row)}.pt2", (torch.zeros(2, *row),))
    engine = closing(load_engine(exported(path), CPU))
    (name,) = (meta.name for meta in engine.signature.inputs)
    lane = engine.lane(32)
    whole = random(32, *row)
    for rows in (1, 2, 3, 17, 32):
        answer = ask(lane, {name: whole[:rows]})["output_0"]
        assert np.array_equal(answer, in_process(net, whole[:rows]))
        np.testing.assert_allclose(answer, in_process(net, whole)[:rows], rtol=1e-5, atol=1e-6)


def test_the_signature_is_read_from_the_file(mlp, closing):
    engine = closing(load_engine(exported(mlp), CPU))
    assert engine.signature.inputs == (TensorMeta("x", "FP32", (6,)),)
    assert engine.signature.outputs == (TensorMeta("output_0", "FP32", (3,)),)
    assert engine.signature.max_rows is None
    assert engine.version == library_version("torch")
    weights = sum(p.numel() * 4 for p in Mlp().parameters())
    assert engine.memory_mib() == pytest.approx(weights / 2**20)


def test_the_pool_has_the_threads_of_the_device(mlp, closing):
    closing(load_engine(exported(mlp), EngineDevice("cpu", threads=2)))
    assert torch.get_num_threads() == 2
    closing(load_engine(exported(mlp), CPU))
    assert torch.get_num_threads() == 1
    assert torch.get_num_interop_threads() == 1


def test_lanes_share_weights_and_not_buffers(mlp, ask, closing):
    engine = closing(load_engine(exported(mlp), CPU))
    one, two = engine.lane(4), engine.lane(4)
    first, second = random(4, 6, seed=1), random(4, 6, seed=2)
    one.stage({"x": (4, 6)})["x"][...] = first
    two.stage({"x": (4, 6)})["x"][...] = second
    assert np.array_equal(one.run()["output_0"], in_process(Mlp(), first))
    assert np.array_equal(two.run()["output_0"], in_process(Mlp(), second))


def test_staging_allocates_nothing_per_batch(mlp, closing):
    lane = closing(load_engine(exported(mlp), CPU)).lane(8)
    views = [lane.stage({"x": (rows, 6)})["x"] for rows in (8, 1, 5)]
    assert len({view.ctypes.data for view in views}) == 1


def test_keyword_arguments_dict_outputs_and_constants(models, ask, closing):
    net = Kwargs()
    batch = Dim("batch", max=16)
    path = export(
        net,
        models / "kwargs.pt2",
        (torch.zeros(2, 3),),
        {"scale": torch.zeros(2), "mode": "plus"},
        dynamic_shapes={"x": {0: batch}, "scale": {0: batch}, "mode": None},
    )
    engine = closing(load_engine(exported(path), CPU))
    assert engine.signature.inputs == (
        TensorMeta("x", "FP32", (3,)),
        TensorMeta("scale", "FP32", ()),
    )
    assert engine.signature.outputs == (
        TensorMeta("logits", "FP32", (3,)),
        TensorMeta("total", "FP64", ()),
    )
    assert engine.signature.max_rows == 16
    x, scale = random(5, 3), random(5)
    answer = ask(engine.lane(16), {"x": x, "scale": scale})
    assert np.array_equal(answer["logits"], x * scale[:, None])
    assert answer["total"].dtype == np.float64


def test_nested_inputs_and_outputs_are_flattened_and_none_is_left_out(models, ask, closing):
    batch = Dim("batch")
    path = export(
        Tuple(),
        models / "tuple.pt2",
        ((torch.zeros(2, 3), torch.zeros(2, 3)),),
        dynamic_shapes={"pair": ({0: batch}, {0: batch})},
    )
    engine = closing(load_engine(exported(path), CPU))
    assert [meta.name for meta in engine.signature.inputs] == ["pair_0", "pair_1"]
    a, b = random(4, 3, seed=1), random(4, 3, seed=2)
    answer = ask(engine.lane(4), {"pair_0": a, "pair_1": b})
    assert answer.keys() == {"output_0", "output_1"}
    assert np.array_equal(answer["output_0"], a + b)
    assert np.array_equal(answer["output_1"], a > 0)


def test_inputs_may_be_called_like_fields_of_the_file_format(models, ask, closing):
    class Names(nn.Module):
        def forward(self, target, name, metadata):
            return {"as_operator": target + name, "in_spec": metadata}

    three = (torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2, 1))
    path = export(Names(), models / "names.pt2", three)
    engine = closing(load_engine(exported(path), CPU))
    batch = {
        name: random(2, 1, seed=seed) for seed, name in enumerate(("target", "name", "metadata"))
    }
    answer = ask(engine.lane(2), batch)
    assert np.array_equal(answer["as_operator"], batch["target"] + batch["name"])
    assert np.array_equal(answer["in_spec"], batch["metadata"])


@pytest.mark.parametrize("exported_rows", [1, 4])
def test_a_static_batch_serves_every_size_up_to_it(exported_rows, models, ask, closing):
    path = export(
        Mlp(), models / f"static{exported_rows}.pt2", (torch.zeros(exported_rows, 6),), static=True
    )
    engine = closing(load_engine(exported(path), CPU))
    assert engine.signature.max_rows == exported_rows
    lane = engine.lane(exported_rows)
    for rows in range(1, exported_rows + 1):
        x = random(rows, 6, seed=rows)
        np.testing.assert_allclose(
            ask(lane, {"x": x})["output_0"], in_process(Mlp(), x), rtol=1e-5, atol=1e-6
        )
    with pytest.raises(ValueError, match=f"1 to {exported_rows}"):
        engine.lane(exported_rows + 1)


def test_a_batch_below_the_exported_minimum_is_padded(models, ask, closing):
    path = export(
        Mlp(), models / "least.pt2", (torch.zeros(9, 6),), batch=Dim("batch", min=8, max=16)
    )
    lane = closing(load_engine(exported(path), CPU)).lane(16)
    x = random(3, 6)
    np.testing.assert_allclose(
        ask(lane, {"x": x})["output_0"], in_process(Mlp(), x), rtol=1e-5, atol=1e-6
    )


def test_variable_rows_are_minus_one_and_keep_their_range(models, ask, closing):
    from tessera_runtime.engines.base import RunFailed

    path = export(
        Sequence(),
        models / "sequence.pt2",
        (torch.zeros(2, 5, dtype=torch.int64),),
        dynamic_shapes={"tokens": {0: Dim("batch"), 1: Dim("length", max=64)}},
    )
    engine = closing(load_engine(exported(path), CPU))
    assert engine.signature.inputs == (TensorMeta("tokens", "INT64", (-1,)),)
    assert engine.signature.outputs == (TensorMeta("output_0", "FP32", (-1,)),)
    lane = engine.lane(4)
    for length in (3, 64, 7):
        tokens = np.ones((2, length), dtype=np.int64)
        answer = ask(lane, {"tokens": tokens})["output_0"]
        assert answer[1].tolist() == [n + length for n in range(1, length + 1)]
    with pytest.raises(RunFailed, match="64"):
        ask(lane, {"tokens": np.ones((2, 65), dtype=np.int64)})


def test_bfloat16_is_served_as_fp32(models, ask, closing):
    path = export(Half(), models / "half.pt2", (torch.zeros(2, 4, dtype=torch.bfloat16),))
    engine = closing(load_engine(exported(path), CPU))
    assert engine.signature.inputs == (TensorMeta("x", "FP32", (4,)),)
    answer = ask(engine.lane(2), {"x": np.full((2, 4), 2, np.float32)})["output_0"]
    assert answer.dtype == np.float32
    assert (answer == 3).all()


def test_a_model_with_state_is_refused(models):
    path = export(Counter(), models / "counter.pt2", (torch.zeros(2, 3),))
    with pytest.raises(LoadRefused, match="changes 'seen' when it runs"):
        load_engine(exported(path), CPU)


def test_inputs_without_a_common_batch_are_refused(models):
    class Add(nn.Module):
        def forward(self, x, y):
            return x + y.sum()

    path = export(Add(), models / "add.pt2", (torch.zeros(2, 3), torch.zeros(5)), static=True)
    with pytest.raises(LoadRefused, match="must share one batch dimension: export with"):
        load_engine(exported(path), CPU)


def test_an_output_without_batch_is_refused(models):
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean()

    path = export(Mean(), models / "mean.pt2", (torch.zeros(2, 3),))
    with pytest.raises(LoadRefused, match="first dimension must be the batch"):
        load_engine(exported(path), CPU)


def test_declared_outputs_name_what_the_file_leaves_unnamed(mlp, ask, closing):
    declared = (TensorMeta("probabilities", "FP32", (-1,)),)
    engine = closing(load_engine(exported(mlp, outputs=declared), CPU))
    assert engine.signature.outputs == (TensorMeta("probabilities", "FP32", (3,)),)
    assert ask(engine.lane(1), {"x": random(1, 6)})["probabilities"].shape == (1, 3)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"inputs": (TensorMeta("x", "FP64", (6,)),)}, "declared FP64, the model has FP32"),
        ({"inputs": (TensorMeta("x", "FP32", (7,)),)}, r"rows \(7,\), the model has \(6,\)"),
        ({"inputs": (TensorMeta("z", "FP32", (6,)),)}, "the model has .'x'."),
        ({"outputs": (TensorMeta("a", "FP32", (3,)),) * 2}, "2 declared, the model has 1"),
    ],
)
def test_a_declaration_that_contradicts_the_file_is_refused(mlp, declared, message):
    with pytest.raises(LoadRefused, match=message):
        load_engine(exported(mlp, **declared), CPU)


SIX = (TensorMeta("x", "FP32", (6,)),)


def scripted(path, inputs=SIX, outputs=()) -> ModelFile:
    return ModelFile(str(path), "TorchScript", allow_code=True, inputs=inputs, outputs=outputs)


def test_torchscript_needs_declared_inputs_and_finds_its_outputs(models, ask, closing):
    path = script(Mlp(), models / "mlp.pt", (torch.zeros(2, 6),))
    with pytest.raises(LoadRefused, match=r"declare spec\.inputs"):
        load_engine(scripted(path, inputs=()), CPU)
    engine = closing(load_engine(scripted(path), CPU))
    assert engine.signature.outputs == (TensorMeta("output_0", "FP32", (3,)),)
    x = random(5, 6)
    assert np.array_equal(ask(engine.lane(5), {"x": x})["output_0"], in_process(Mlp(), x))


def test_torchscript_checks_its_declaration_by_running(models):
    path = script(Mlp(), models / "mlp2.pt", (torch.zeros(2, 6),))
    with pytest.raises(LoadRefused, match="failed a dry run"):
        load_engine(scripted(path, inputs=(TensorMeta("x", "FP32", (5,)),)), CPU)
    with pytest.raises(LoadRefused, match="declared rows"):
        load_engine(scripted(path, outputs=(TensorMeta("y", "FP32", (4,)),)), CPU)


@pytest.mark.parametrize("format_", ["TorchExport", "TorchScript"])
def test_the_wrong_format_names_the_right_one(models, mlp, format_):
    path = mlp if format_ == "TorchScript" else script(Mlp(), models / "f.pt", (torch.zeros(2, 6),))
    file = ModelFile(str(path), format_, True, SIX)
    other = {"TorchExport": "TorchScript", "TorchScript": "TorchExport"}[format_]
    with pytest.raises(LoadRefused, match=f"set model.format to {other}"):
        load_engine(file, CPU)


@pytest.mark.parametrize("format_", ["TorchExport", "TorchScript"])
def test_a_checkpoint_or_raw_pickle_is_refused_with_the_remedy(format_, tmp_path):
    checkpoint, raw = tmp_path / "model.pth", tmp_path / "model.pkl"
    torch.save(Mlp().state_dict(), checkpoint)
    raw.write_bytes(pickle.dumps({"weight": [1.0]}))
    for path in (checkpoint, raw):
        file = ModelFile(str(path), format_, True, SIX)
        with pytest.raises(
            LoadRefused, match=r"pickle.* export the model with torch\.export\.save"
        ):
            load_engine(file, CPU)


def test_every_truncation_of_an_archive_is_refused(mlp, tmp_path):
    data = mlp.read_bytes()
    path = tmp_path / "cut.pt2"
    for size in range(1, len(data), len(data) // 40):
        path.write_bytes(data[:size])
        with pytest.raises(LoadRefused):
            load_engine(exported(path), CPU)


def test_a_damaged_weight_is_refused(mlp, tmp_path):
    data = bytearray(mlp.read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("weights/weight_0"))
    at = data.index(b"weight_0", info.header_offset) + 200
    data[at] ^= 0xFF
    path = tmp_path / "damaged.pt2"
    path.write_bytes(data)
    with pytest.raises(LoadRefused, match="damaged in the archive"):
        load_engine(exported(path), CPU)


def test_weights_larger_than_the_device_are_refused(tmp_path):
    path = export(
        nn.Linear(512, 1024),
        tmp_path / "wide.pt2",
        (torch.zeros(2, 512),),
        dynamic_shapes=({0: Dim("batch")},),
    )
    with pytest.raises(LoadRefused, match="does not fit in 1 MiB"):
        load_engine(exported(path), EngineDevice("cpu", memory_mib=1))
