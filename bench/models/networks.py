"""The networks of the data plane's bench, with fixed weights: three small CNNs, their fusion, ResNet-18, an MLP.

The small CNN takes about 0.2 ms for one FP32 [3,64,64] image on one core. Batching makes it several times
cheaper per image, as it does large networks on a GPU; a ResNet on a CPU gains nothing from it, so that it
tells engines and copies apart, and not servers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

CLASSES = 10
MOST_ROWS = 256


def small_cnn(seed: int) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    ).eval()


class Fused(nn.Module):  # type: ignore[misc]
    """The mean of three small CNNs in one network."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([small_cnn(seed) for seed in range(3)])

    def forward(self, input: Any) -> Any:  # noqa: A002 - its name is that of the served input
        return torch.stack([member(input) for member in self.members]).mean(0)


class _Block(nn.Module):  # type: ignore[misc]
    """Basic residual block (He et al. 2016, section 3.3 and figure 5, left)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        )

    def forward(self, images: Any) -> Any:
        return torch.relu(self.body(images) + self.shortcut(images))


def resnet18() -> Any:
    """He et al. 2016, table 1, 18 layers, 1000 classes, random weights."""
    torch.manual_seed(18)
    blocks = []
    width = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [_Block(width, outputs, stride), _Block(outputs, outputs, 1)]
        width = outputs
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 1000),
    ).eval()


def mlp() -> Any:
    """Six wide layers: 57 MB of weights, read once a batch, so that batches gain what they gain on a GPU."""
    torch.manual_seed(6)
    width = 1536
    hidden = [layer for _ in range(6) for layer in (nn.ReLU(), nn.Linear(width, width))]
    return nn.Sequential(nn.Linear(16, width), *hidden, nn.ReLU(), nn.Linear(width, 10)).eval()


def network(name: str) -> Any:
    """By the names of :data:`bench.peers.base.NETWORKS`."""
    if name in ("resnet18", "mlp"):
        return resnet18() if name == "resnet18" else mlp()
    return Fused().eval() if name == "fused" else small_cnn(int(name.removeprefix("cnn")))


def export(name: str, row_shape: tuple[int, ...], directory: Path) -> None:
    """Write a network as a torch.export archive of any batch size, unless it is there."""
    path = directory / f"{name}.pt2"
    if path.exists():
        return
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    example = torch.zeros(2, *row_shape)
    exported = torch.export.export(network(name), (example,), dynamic_shapes=({0: rows},))
    torch.export.save(exported, path)
