"""An exported graph as one function: the same answers, whatever the graph is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from support.torch_nets import Cnn, export
from tessera_runtime.engines import torch_program
from tessera_runtime.engines.base import EngineDevice, ModelFile
from tessera_runtime.engines.loading import load_engine

CPU = EngineDevice("cpu", threads=1)


class Branches(nn.Module):
    """Control flow, keywords, infinite and other constants, results in several places."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(8.0).reshape(2, 4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        chosen = torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,))
        low = torch.where(x > 0, x, torch.full_like(x, float("-inf"), dtype=torch.float32))
        return {
            "chosen": chosen,
            "low": low.amax(1, keepdim=True),
            "wide": torch.cat([x, self.table[:1].expand(x.shape[0], -1)], dim=1),
            "double": x.to(torch.float64),
        }


class Picks(nn.Module):
    """Sizes in between that depend on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        picked = x[x > 0]
        return x + picked.sum() + picked.shape[0]


class Shared(nn.Module):
    """A convolution's weight that is also read as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image).flatten(1) + self.conv.weight.reshape(-1)[:1]


def answers(net: nn.Module, path, x: np.ndarray) -> dict[str, np.ndarray]:
    file = export(net, path, (torch.zeros(2, *x.shape[1:]),))
    engine = load_engine(ModelFile(str(file), "TorchExport", allow_code=False), CPU)
    lane = engine.lane(len(x))
    (name,) = (meta.name for meta in engine.signature.inputs)
    for _ in range(2):
        lane.stage({name: x.shape})[name][...] = x
        found = {name: array.copy() for name, array in lane.run().items()}
    engine.close()
    return found


@pytest.mark.parametrize("sign", [1, -1])
def test_a_graph_of_everything_answers_as_its_module(sign, tmp_path):
    x = sign * np.abs(np.random.default_rng(0).standard_normal((3, 4), np.float32))
    found = answers(Branches(), tmp_path / "branches.pt2", x)
    with torch.inference_mode():
        expected = Branches()(torch.from_numpy(x))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


def test_sizes_that_depend_on_values_are_no_hindrance(tmp_path):
    x = np.array([[1, -1, 2, 3], [-4, 5, -6, 7]], np.float32)
    (found,) = answers(Picks(), tmp_path / "picks.pt2", x).values()
    np.testing.assert_array_equal(found, x + 18 + 5)


def test_convolutions_answer_alike_in_the_order_that_is_chosen(tmp_path):
    for net, row in ((Cnn(), (1, 8, 8)), (Shared(), (3, 9, 9))):
        x = np.random.default_rng(1).standard_normal((4, *row), np.float32)
        (found,) = answers(net, tmp_path / f"{type(net).__name__}.pt2", x).values()
        with torch.inference_mode():
            np.testing.assert_allclose(
                found, net.eval()(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5
            )


def program_of(net: nn.Module, *example: torch.Tensor):
    shapes = {"image": {0: Dim("batch")}}
    return torch.export.export(net.eval(), example, dynamic_shapes=shapes)


def lifted(program) -> dict[str, torch.Tensor]:
    signature = program.graph_signature
    return {
        spec.arg.name: program.state_dict[spec.target].detach()
        for spec in signature.input_specs
        if spec.target is not None
    }


def turned(forward) -> bool:
    """Whether a weight of the function is stored in channels-last order, and in no other."""
    tensors = [v for v in forward.__globals__.values() if isinstance(v, torch.Tensor)]
    return any(t.ndim == 4 and not t.is_contiguous() for t in tensors)


def test_the_other_order_is_kept_only_where_it_is_close_and_not_slower(monkeypatch):
    torch.manual_seed(0)
    program = program_of(Wide(), torch.zeros(2, 3, 8, 8))
    weights = lifted(program)

    def examples(rows: int) -> list[torch.Tensor]:
        return [torch.randn(rows, 3, 8, 8)]

    monkeypatch.setattr(torch_program, "SLOWER", float("inf"))
    assert turned(torch_program.fastest(program, weights, examples))
    assert not turned(torch_program.fastest(program, weights, None))
    monkeypatch.setattr(torch_program, "SLOWER", 0.0)
    assert not turned(torch_program.fastest(program, weights, examples))
    monkeypatch.setattr(torch_program, "SLOWER", float("inf"))
    monkeypatch.setattr(torch_program, "_close", lambda *_: False)
    assert not turned(torch_program.fastest(program, weights, examples))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image)


@pytest.mark.parametrize(
    ("expected", "found", "close"),
    [
        ([1.0, -2.0], [1.0, -2.0], True),
        ([1000.0, 0.0], [1000.1, 0.001], True),
        ([1000.0, 1.0], [1000.0, 1.1], False),
        ([float("nan"), float("inf")], [float("nan"), float("inf")], True),
        ([float("nan"), 1.0], [1.0, 1.0], False),
    ],
)
def test_how_far_an_answer_may_be_off(expected, found, close):
    assert torch_program._close([torch.tensor(expected)], [torch.tensor(found)]) is close
