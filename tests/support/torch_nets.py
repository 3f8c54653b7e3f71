"""Small networks and their exports, for tests of whatever runs models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim


class Mlp(nn.Module):
    def __init__(self, width: int = 6, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.net = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Cnn(nn.Module):
    """Takes images of 1×8×8; batch normalisation has buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)


def export(
    net: nn.Module,
    path: Path,
    args: tuple = (),
    kwargs: dict | None = None,
    *,
    static: bool = False,
    batch: Dim | None = None,
    dynamic_shapes: object = None,
) -> Path:
    """Save ``net`` as .pt2, with a dynamic batch unless ``static``."""
    net.eval()
    if not static and dynamic_shapes is None:
        dim = batch or Dim("batch")
        names = list(_arguments(net, args)) + list(kwargs or {})
        dynamic_shapes = {name: {0: dim} for name in names}
    program = torch.export.export(net, args, kwargs, dynamic_shapes=dynamic_shapes)
    torch.export.save(program, path)
    return path


def script(net: nn.Module, path: Path, args: tuple) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net.eval(), args).save(str(path))
    return path


def _arguments(net: nn.Module, args: tuple) -> list[str]:
    forward: Callable = net.forward
    return list(forward.__code__.co_varnames[1 : 1 + len(args)])
