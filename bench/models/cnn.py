"""A small convolutional network over FP32 [3,64,64], about 0.2 ms for one image on one core.

Batching makes it several times cheaper per image, as it does large networks on a GPU; a ResNet on a CPU
gains nothing from it, so that it could not tell servers apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

IMAGE = (3, 64, 64)
CLASSES = 10


def small_cnn(seed: int) -> Any:
    """The network with random weights."""
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


def export_cnn(seed: int, path: Path) -> Any:
    """Write the network as a torch.export archive of any batch size, and return it as loaded again."""
    rows = torch.export.Dim("rows", min=1, max=256)
    example = torch.zeros(2, *IMAGE)
    exported = torch.export.export(small_cnn(seed), (example,), dynamic_shapes=({0: rows},))
    torch.export.save(exported, path)
    return torch.export.load(path).module()
