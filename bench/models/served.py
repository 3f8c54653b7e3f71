"""The models as every peer runs them: numpy in, numpy out. Needs torch and numpy only.

Peers import it in their own environments, and the in-process loop in this one: the same files, engine and
settings on all sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Model = Callable[[Array], Array]


def load(directory: Path, networks: Sequence[str]) -> Model:
    """The mean of the networks of ``directory``, on one thread; without networks, the identity."""
    if not networks:
        return lambda rows: rows.copy()
    import torch

    torch.set_num_threads(1)
    modules = [torch.export.load(directory / f"{name}.pt2").module() for name in networks]

    def run(rows: Array) -> Array:
        with torch.inference_mode():
            outputs = [module(torch.from_numpy(rows)).numpy() for module in modules]
        mean: Array = outputs[0] if len(outputs) == 1 else np.mean(outputs, axis=0)
        return mean

    return run
