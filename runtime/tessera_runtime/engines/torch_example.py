"""An exported program of one small layer of each common kind, made with the torch that is to load it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from tessera_runtime.engines.base import ModelFile


def write_export(path: Path) -> ModelFile:
    torch.set_num_threads(1)  # a pool of threads would not survive the forks
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 2),
    ).eval()
    example, batch = torch.zeros(2, 1, 8, 8), torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
    return ModelFile(str(path), "TorchExport", allow_code=False)
