"""Eight networks of differing kinds, with fixed weights: what there is to gain differs between them.

Two of plain convolutions, a residual one, one of depthwise convolutions, wide layers, a transformer's encoder, convolutions over
time, and tables that are looked up.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from bench.models.networks import convolutions, mlp, resnet18, small_cnn
from torch import nn

MOST_ROWS = 64


def depthwise() -> Any:
    """Depthwise separable convolutions (Howard et al. 2017, section 3.1), eight of them."""
    torch.manual_seed(17)
    layers: list[Any] = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU()]
    width = 32
    for stride in (1, 2, 1, 2, 1, 2, 1, 1):
        out = width * stride
        layers += [nn.Conv2d(width, width, 3, stride, 1, groups=width), nn.ReLU()]
        layers += [nn.Conv2d(width, out, 1), nn.ReLU()]
        width = out
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
    ).eval()


class Encoder(nn.Module):  # type: ignore[misc]
    """Four layers of a transformer's encoder (Vaswani et al. 2017, section 3.1) over 64 steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(19)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, input: Any) -> Any:  # noqa: A002 - its name is that of the served input
        return self.head(self.layers(input).mean(1))


class Tables(nn.Module):  # type: ignore[misc]
    """Embeddings of 26 categories beside dense features, as recommenders have them (Naumov et al. 2019)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(26)
        self.tables = nn.ModuleList([nn.Embedding(1000, 32) for _ in range(26)])
        self.top = nn.Sequential(
            nn.Linear(26 * 32, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 1)
        )

    def forward(self, input: Any) -> Any:  # noqa: A002 - its name is that of the served input
        found = [table(input[:, place]) for place, table in enumerate(self.tables)]
        return self.top(torch.cat(found, 1))


def waves() -> Any:
    """Convolutions over a second of sound at 8 kHz."""
    torch.manual_seed(8)
    widths = (1, 32, 64, 128, 128)
    layers: list[Any] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv1d(inputs, outputs, 9, 4, 4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, 10)).eval()


NETWORKS: Mapping[str, tuple[Callable[[], Any], tuple[int, ...], Any]] = {
    "cnn": (lambda: small_cnn(0), (3, 64, 64), torch.float),
    "deep": (lambda: convolutions(20, 16), (3, 32, 32), torch.float),
    "resnet18": (resnet18, (3, 128, 128), torch.float),
    "depthwise": (depthwise, (3, 96, 96), torch.float),
    "mlp": (lambda: mlp(4, 1024), (16,), torch.float),
    "encoder": (Encoder, (64, 256), torch.float),
    "waves": (waves, (1, 8000), torch.float),
    "tables": (Tables, (26,), torch.int64),
}
"""How each is made, the shape of a row and its datatype."""


def export(name: str, directory: Path) -> Path:
    """Write a network as a torch.export archive of any batch size."""
    make, row_shape, dtype = NETWORKS[name]
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    example = torch.zeros(2, *row_shape, dtype=dtype)
    path = directory / f"{name}.pt2"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            make().eval(), (example,), dynamic_shapes=({0: rows},), strict=False
        )
        torch.export.save(exported, path)
    return path
