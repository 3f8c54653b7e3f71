"""The networks of the benches, with fixed weights: three small CNNs, their fusion, ResNet-18 and -50, an MLP, and three
shapes for a processor and three for a GPU.

The small CNN takes about 0.2 ms for one FP32 [3,64,64] image on one core. Batching makes it several times
cheaper per image, as it does large networks on a GPU; a ResNet on a CPU gains nothing from it, so that it
tells engines and copies apart, and not servers. ResNet-50 is for GPUs: half precision, and images as they come, of
unsigned bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
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


class _Bottleneck(nn.Module):  # type: ignore[misc]
    """Bottleneck block (He et al. 2016, figure 5, right), with the stride in its 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False),
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


class Pixels(nn.Module):  # type: ignore[misc]
    """Bottlenecks on images of unsigned bytes, which it normalises itself; logits in single precision."""

    def __init__(self, width: int, depths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        blocks: list[Any] = []
        inputs = width
        for stage, depth in enumerate(depths):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                blocks.append(_Bottleneck(inputs, width << stage, stride))
                inputs = 4 * (width << stage)
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            *blocks,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(inputs, classes),
        )
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 127.5))
        self.register_buffer("scale", torch.full((1, 3, 1, 1), 1 / 73.6))  # of evenly drawn bytes

    def forward(self, input: Any) -> Any:  # noqa: A002 - its name is that of the served input
        images = input.to(self.mean.dtype).contiguous(memory_format=torch.channels_last)
        return self.body((images - self.mean) * self.scale).float()


def pixels(name: str, precision: Any) -> Any:
    """One of :data:`BOTTLENECKS` at ``precision``.

    One batch of noise sets the statistics of its normalisations, as training would: without, activations grow from
    block to block.
    """
    torch.manual_seed(50)
    net = Pixels(*BOTTLENECKS[name])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8))
    return net.eval().to(precision, memory_format=torch.channels_last)


BOTTLENECKS: dict[str, tuple[int, tuple[int, ...], int]] = {
    "resnet50": (64, (3, 4, 6, 3), 1000),  # He et al. 2016, table 1
    "bottlenecks": (
        8,
        (1, 2),
        10,
    ),  # the same kind small, for tests: it runs on a processor in no time
    "pixels_small": (32, (1, 1, 1, 1), 1000),
    "pixels_wide": (128, (3, 4, 6, 3), 1000),  # ResNet-50, twice as wide
    "pixels_deep": (64, (3, 8, 36, 3), 1000),  # ResNet-152
}
"""Networks of bytes: width of the first stage, blocks of each, classes."""

PIXELS = {name: torch.float if name == "bottlenecks" else torch.half for name in BOTTLENECKS}
"""What they are served at."""


def mlp(layers: int = 6, width: int = 1536) -> Any:
    """Wide layers: 57 MB of weights, read once a batch, so that batches gain what they gain on a GPU."""
    torch.manual_seed(6)
    hidden = [layer for _ in range(layers) for layer in (nn.ReLU(), nn.Linear(width, width))]
    return nn.Sequential(nn.Linear(16, width), *hidden, nn.ReLU(), nn.Linear(width, 10)).eval()


def convolutions(layers: int, channels: int) -> Any:
    """Plain ones of the whole image: of few, a batch costs what its rows cost; of many, their calls cost as much."""
    torch.manual_seed(layers)
    widths = [3, *[channels] * layers]
    body = [
        layer
        for inputs, outputs in pairwise(widths)
        for layer in (nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())
    ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    return nn.Sequential(*body, *head).eval()


_SHAPES: dict[str, Callable[[], Any]] = {
    "resnet18": resnet18,
    "mlp": mlp,
    "small": partial(convolutions, 2, 32),
    "wide": partial(mlp, 3, 3072),  # 113 MB
    "deep": partial(convolutions, 40, 16),
}


def network(name: str) -> Any:
    """By the names of :data:`bench.peers.base.NETWORKS`."""
    if name in PIXELS:
        return pixels(name, PIXELS[name])
    if name in _SHAPES:
        return _SHAPES[name]()
    return Fused().eval() if name == "fused" else small_cnn(int(name.removeprefix("cnn")))


def export(name: str, row_shape: tuple[int, ...], directory: Path) -> None:
    """Write a network as a torch.export archive of any batch size, unless it is there."""
    path = directory / f"{name}.pt2"
    if path.exists():
        return
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    example = torch.zeros(2, *row_shape, dtype=torch.uint8 if name in PIXELS else torch.float)
    exported = torch.export.export(network(name), (example,), dynamic_shapes=({0: rows},))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights in channels-last order are no slices of others
        torch.export.save(exported, path)
