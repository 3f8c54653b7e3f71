"""Three small networks of different kinds that read an 8×8 digit.

Each takes ``image`` FP32 [rows,8,8] with values 0 to 1 and gives class probabilities FP32 [rows,10]: their mean
is then a vote in which a sure member counts for more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

SIDE = 8
CLASSES = 10


class Cnn(nn.Module):  # type: ignore[misc]
    """Three convolutions, then the strongest response in each part of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2048, CLASSES),
        )

    def logits(self, image: Any) -> Any:
        return self.layers(image.unsqueeze(1))

    def forward(self, image: Any) -> Any:
        return self.logits(image).softmax(dim=-1)


class Mlp(nn.Module):  # type: ignore[misc]
    """Two hidden layers over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(SIDE * SIDE, 512),
            nn.ReLU(),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, CLASSES),
        )

    def logits(self, image: Any) -> Any:
        return self.layers(image)

    def forward(self, image: Any) -> Any:
        return self.logits(image).softmax(dim=-1)


class Transformer(nn.Module):  # type: ignore[misc]
    """Two layers of attention; the tokens are the rows and columns of the image."""

    WIDTH = 96

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, self.WIDTH)
        self.position = nn.Parameter(torch.randn(2 * SIDE, self.WIDTH) * 0.1)
        layers = (
            nn.TransformerEncoderLayer(
                self.WIDTH, nhead=4, dim_feedforward=192, dropout=0.0, batch_first=True
            )
            for _ in range(2)
        )
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(self.WIDTH, CLASSES)

    def logits(self, image: Any) -> Any:
        tokens = torch.cat((image, image.transpose(1, 2)), dim=1)
        return self.head(self.layers(self.embed(tokens) + self.position).mean(dim=1))

    def forward(self, image: Any) -> Any:
        return self.logits(image).softmax(dim=-1)


NETWORKS: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {"cnn": Cnn, "mlp": Mlp, "transformer": Transformer}
)
"""By member name."""
