import numpy as np
import pytest
import torch
from torch import nn

from support.torch_nets import Cnn, Mlp, export
from tessera_runtime.engines.base import EngineDevice, LoadRefused, ModelFile
from tessera_runtime.engines.loading import load_engine
from tessera_runtime.engines.torch_cuda import buckets

CUDA = EngineDevice("cuda")


class Synchronising(nn.Module):
    """Asks the host in the middle, which a CUDA graph cannot capture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._check(x.shape[0] > 0)
        return x[:, x[0].argmax().item() :].sum(1) * 0 + x.sum(1)


def exported(path) -> ModelFile:
    return ModelFile(str(path), "TorchExport", allow_code=False)


@pytest.mark.parametrize(
    ("max_batch", "sizes"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_buckets_are_powers_of_two_up_to_the_largest_batch(max_batch, sizes):
    assert buckets(max_batch) == sizes


def test_without_a_device_loading_is_refused(models):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    path = export(Mlp(), models / "cpu-only.pt2", (torch.zeros(2, 6),))
    with pytest.raises(LoadRefused, match="no CUDA device"):
        load_engine(exported(path), CUDA)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("net", "row"), [(Mlp(), (6,)), (Cnn(), (1, 8, 8))], ids=["mlp", "cnn"])
def test_answers_on_a_gpu_equal_the_cpu_within_rounding(net, row, models, ask, closing):
    path = export(net, models / f"gpu-{len(row)}.pt2", (torch.zeros(2, *row),))
    engine = closing(load_engine(exported(path), CUDA))
    (name,) = (meta.name for meta in engine.signature.inputs)
    lane = engine.lane(13)
    assert sorted(lane._graphs) == [1, 2, 4, 8, 13]
    for rows in (1, 3, 13, 2):
        x = np.random.default_rng(rows).standard_normal((rows, *row), dtype=np.float32)
        with torch.inference_mode():
            expected = net.eval()(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(ask(lane, {name: x})["output_0"], expected, rtol=1e-3, atol=1e-4)
    lane.close()


@pytest.mark.gpu
@needs_gpu
def test_two_lanes_of_one_gpu_do_not_mix_their_batches(models, ask, closing):
    path = export(Mlp(), models / "gpu-lanes.pt2", (torch.zeros(2, 6),))
    engine = closing(load_engine(exported(path), CUDA))
    lanes = [engine.lane(8), engine.lane(8)]
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((8, 6), dtype=np.float32)
        both = [
            ask(lane, {"x": sign * x})["output_0"]
            for lane, sign in zip(lanes, (1, -1), strict=True)
        ]
        with torch.inference_mode():
            for answer, sign in zip(both, (1, -1), strict=True):
                expected = Mlp().eval()(torch.from_numpy(sign * x)).numpy()
                np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_a_model_that_cannot_be_captured_runs_plainly(models, ask, closing):
    path = models / "gpu-sync.pt2"
    with torch.no_grad():
        torch.jit.save(torch.jit.script(Synchronising()), str(path))
    from tessera_runtime.engines.base import TensorMeta

    file = ModelFile(str(path), "TorchScript", True, (TensorMeta("x", "FP32", (6,)),))
    lane = closing(load_engine(file, CUDA)).lane(4)
    assert lane._graphs == {}
    x = np.ones((3, 6), np.float32)
    assert ask(lane, {"x": x})["output_0"].tolist() == [6, 6, 6]
