"""Served answers beside the same files run in this process, and what has to hold at the end.

The exported files are what is compared, not the networks in memory: what is checked is serving, and export is
outside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from tessera_cli.loadgen import Protocol, Samples
from tessera_cli.loadgen.wire import decode
from tessera_core.api.modelservice import Combine
from tessera_core.ensemble.combine import combine

Floats = npt.NDArray[np.float32]

RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerance of a probability: batches of other sizes sum in another order."""


@dataclass(frozen=True, slots=True)
class Expected:
    """Probabilities [images,10] of each member and of the ensemble."""

    members: Mapping[str, Floats]
    ensemble: Floats


@dataclass(frozen=True, slots=True)
class Compared:
    """Every good answer against what was expected for its image."""

    answers: int
    different: int
    """Outside the tolerance, or with another digit on top, or unreadable."""
    worst: float
    """Largest difference of a probability."""
    served: Floats
    """Like what was expected: the last answer to each request; NaN where none came."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold."""

    name: str
    holds: bool
    found: str


def run_file(path: Path, images: Floats) -> Floats:
    """Run an exported network over all images at once."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (only,) = session.run(None, {session.get_inputs()[0].name: images})
        return np.asarray(only)
    module = torch.export.load(path).module()
    with torch.inference_mode():
        return np.asarray(module(torch.from_numpy(images)).numpy())


def expect(files: Mapping[str, Path], images: Floats) -> Expected:
    """What each member and their mean say about each image."""
    members = {name: run_file(path, images) for name, path in files.items()}
    return Expected(members, combine(Combine.MEAN, list(members.values())))


def accuracy(probabilities: Floats, labels: npt.NDArray[np.int64]) -> float:
    """Share of images whose most probable class is right; images without an answer count as wrong."""
    answered = ~np.isnan(probabilities).any(axis=1)
    right = np.where(answered, np.nan_to_num(probabilities).argmax(axis=1) == labels, False)
    return float(right.mean())


def compare(samples: Samples, protocols: Sequence[Protocol], expected: Floats) -> Compared:
    """Compare every good answer with ``expected`` [requests,rows,10], by the order in which a load sends:
    its request ``i`` is number ``i // n mod requests`` over protocol ``i mod n``.
    """
    served = np.full_like(expected, np.nan)
    different = 0
    worst = 0.0
    good = np.flatnonzero(samples.good)
    for number in good.tolist():
        turn, which = divmod(number, len(protocols))
        wanted = expected[turn % len(expected)]
        answer = _probabilities(protocols[which], samples.answers[number], wanted)
        if answer is None:
            different += 1
            continue
        served[turn % len(expected)] = answer
        worst = max(worst, float(np.abs(answer - wanted).max()))
        same_digits = (answer.argmax(axis=-1) == wanted.argmax(axis=-1)).all()
        different += not (same_digits and np.allclose(answer, wanted, RELATIVE, ABSOLUTE))
    return Compared(len(good), different, worst, served)


def _probabilities(protocol: Protocol, body: bytes, like: Floats) -> Floats | None:
    try:
        outputs: Mapping[str, Any] = decode(protocol, body)
    except (ValueError, KeyError):
        return None
    answer = next(iter(outputs.values()), None)
    if answer is None or answer.shape != like.shape or answer.dtype != like.dtype:
        return None
    return np.asarray(answer)
