"""What PREBA (arXiv 2411.19114) reports of an A100 as a whole and cut into seven, and what is assumed beside it.

The paper gives the batch at the knee of each model and slice, and the time of a batch of audio there. Its other figures are
drawn as bars without numbers, so what batches take is a law through the knee. Two are looked at, since what waiting is worth
depends on which it is: a *line*, of which a tenth is there whatever the batch (nine tenths of the best throughput are reached
at the knee then, which is how a knee is read from measurements here), and a *floor*, where every batch up to the knee takes as long
as it, as where launching the kernels takes longer than running them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tessera_core.batching.preba import KNEE

Law = Callable[[float], float]
"""Milliseconds of a batch, by how much of the work at the knee it is."""


def line(knee_ms: float) -> Law:
    return lambda work: knee_ms * (1 - KNEE + KNEE * work)


def floor(knee_ms: float) -> Law:
    return lambda work: knee_ms * max(1.0, work)


LAWS = {"line": line, "floor": floor}

SLICES = {"7 x 1g": 7, "1 x 7g": 1}
"""How the A100 is cut, and instances."""


@dataclass(frozen=True, slots=True)
class Images:
    """A network of images of one size."""

    name: str
    knees: dict[str, int]
    """Batch_knee of a slice, by how the GPU is cut. Source: the paper's table of knees."""
    knee_ms: float
    """Of a batch at the knee on 1g. Not in the paper: that of a network of like depth on such a slice, in PyTorch without
    graphs as the paper ran it (ParvaGPU's measurements, arXiv 2409.14447)."""


IMAGES = (
    Images("MobileNetV3-small", {"7 x 1g": 16, "1 x 7g": 128}, 6.0),  # MobileNetV2: 4 rows, 6 ms
    Images("SqueezeNet 1.1", {"7 x 1g": 4, "1 x 7g": 32}, 5.0),  # fewer layers: its 1 row, 5 ms
    Images("Swin-T", {"7 x 1g": 2, "1 x 7g": 16}, 12.0),  # DenseNet121: 2 rows, 12 ms
)

AUDIO = {"audio": 0.0, "audio, attention": 0.5}
"""How much of the work of the longest recording grows with the square of the length, as attention does. None in the paper, which says
one time at the knee for all lengths; half of it is assumed beside that.
"""

AUDIO_KNEE_MS = 35.0
"""Of a batch at the knee on 1g, for every length. Source: the paper, of all three audio models."""

AUDIO_KNEE_S = {"7 x 1g": 105.0, "1 x 7g": 8 * 105.0}
"""Seconds of audio in it: at every length as much, as the one time for all says. How much is not in the paper; this is 3 of 35 s
or 42 of 2.5 s. On 7g eight times as much, as the paper's knees of images are."""

BUCKET_S = 2.5
"""Width of a bucket of lengths. Source: the paper."""

LONGEST_S, SHORTEST_S = 35.0, 1.3
MEDIAN_S, SIGMA = 5.8, 0.7
"""Lengths of LibriSpeech's test-clean, which the paper takes: 2,620 utterances of 5.4 hours (Panayotov et al., ICASSP 2015), so
7.4 s on average. A lognormal with these parameters has that mean."""


def knee_ms(on_1g: float, cut: str, batches: float) -> float:
    """On ``cut``, whose batch at the knee is ``batches`` times that of 1g: the whole does what seven slices do."""
    return on_1g * batches * SLICES[cut] / 7
