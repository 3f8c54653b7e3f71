"""Train the networks on scikit-learn's handwritten digits and export them, seeded and in a few seconds each.

The images are real: 1,797 digits written by 43 people, 8×8 pixels (E. Alpaydin, C. Kaynak, "Optical Recognition
of Handwritten Digits", UCI Machine Learning Repository, 1998), shipped in the package.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from examples.digits.networks import NETWORKS
from sklearn.datasets import load_digits
from torch import nn

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

HELD_OUT = 544
"""Images that no network sees in training: about three in ten."""
EPOCHS = 10
BATCH = 64
MOST_ROWS = 1024
"""Of one call of an exported network: all held-out images at once."""

ONNX = ("mlp",)
"""Members that are exported as ONNX; the others as torch.export archives."""


@dataclass(frozen=True, slots=True)
class Digits:
    """Images FP32 [n,8,8] from 0 to 1, labels [n]."""

    images: Floats
    labels: Labels


def read_digits(seed: int) -> tuple[Digits, Digits]:
    """Training and held-out images: the same split for the same seed."""
    bunch = load_digits()
    images = (bunch.images / 16.0).astype(np.float32)
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(images))
    held, seen = order[:HELD_OUT], order[HELD_OUT:]
    return Digits(images[seen], labels[seen]), Digits(images[held], labels[held])


def train(
    name: str, digits: Digits, seed: int, said: Callable[[str], None]
) -> tuple[Any, tuple[float, ...]]:
    """The trained network in evaluation mode and its mean loss per epoch; ``said`` gets progress in words."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # more threads wait for each other longer than these layers take
    network = NETWORKS[name]()
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    losses: list[float] = []
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(network.logits(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        schedule.step()
        losses.append(total / len(images))
        said(f"training {name}: epoch {epoch + 1}/{EPOCHS}, loss {losses[-1]:.3f}")
    return network.eval(), tuple(losses)


def export(name: str, network: Any, directory: Path) -> Path:
    """Write the network for any number of rows; the path of the file."""
    example = torch.zeros(2, 8, 8)
    # Capture without the attention layers' fused kernel: it is one opaque operator that ONNX does not know
    # and that has no variable batch.
    torch.backends.mha.set_fastpath_enabled(False)
    with warnings.catch_warnings(), torch.no_grad():
        # The exporters warn about their own internals.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        shapes = ({0: torch.export.Dim("rows", min=1, max=MOST_ROWS)},)
        if name in ONNX:
            path = directory / f"{name}.onnx"
            torch.onnx.export(
                network,
                (example,),
                str(path),
                input_names=["image"],
                output_names=["probabilities"],
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        else:
            path = directory / f"{name}.pt2"
            torch.export.save(torch.export.export(network, (example,), dynamic_shapes=shapes), path)
    return path
