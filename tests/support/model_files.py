"""Python models for the data plane: scaled identities that wait, raise, lie, hang or die when they are told to."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from support.server import wait_until

WIDTH = 4
"""Elements of a row."""

# First elements of a row that make the model misbehave.
DIE = 9001.0
HANG = 9002.0
RAISE = 9003.0
WRONG_ROWS = 9004.0
WRONG_DATATYPE = 9005.0
NO_OUTPUT = 9006.0

_SOURCE = """
import os, time
import numpy as np

class Model:
    inputs = {{"x": ("FP32", ({width},))}}
    outputs = {{"y": ("FP32", ({width},))}}
    {limit}

    def __call__(self, batch):
        x = batch["x"]
        while os.path.exists({gate!r} + ".closed"):
            os.utime({gate!r} + ".entered")  # all that a confined model can do to it
            time.sleep(0.002)
        told = set(x[:, 0].tolist())
        if {die} in told:
            os._exit(17)
        if {hang} in told:
            time.sleep(3600)
        if {fail} in told:
            raise ValueError("told to raise")
        if {no_output} in told:
            return {{}}
        y = x * np.float32({scale}) + np.float32({offset})
        if {wrong_rows} in told:
            return {{"y": y[:, :1]}}
        if {wrong_datatype} in told:
            return {{"y": y.astype("f8")}}
        return {{"y": y}}

def load(device, options):
    while os.path.exists({gate!r} + ".unloadable"):
        time.sleep(0.002)
    return Model()
"""


class ModelFile:
    """``y = x · scale + offset``, and a gate at which its batches can be held."""

    def __init__(
        self, path: Path, scale: float = 1.0, offset: float = 0.0, max_rows: int | None = None
    ) -> None:
        self.path = path
        self.scale, self.offset = np.float32(scale), np.float32(offset)
        self._closed = path.with_name(path.name + ".closed")
        self._unloadable = path.with_name(path.name + ".unloadable")
        self._entered = path.with_name(path.name + ".entered")
        path.write_text(
            _SOURCE.format(
                width=WIDTH,
                gate=str(path),
                limit="" if max_rows is None else f"max_rows = {max_rows}",
                die=DIE,
                hang=HANG,
                fail=RAISE,
                no_output=NO_OUTPUT,
                wrong_rows=WRONG_ROWS,
                wrong_datatype=WRONG_DATATYPE,
                scale=scale,
                offset=offset,
            )
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """What the model answers."""
        return x * self.scale + self.offset

    def hold(self) -> None:
        """From now on batches wait inside the model, as in a slow one."""
        self._entered.touch()
        os.utime(self._entered, (0, 0))
        self._closed.touch()

    def wait_held(self) -> None:
        """Until a batch waits inside the model."""
        wait_until(self._entered_since, f"a batch held in {self.path.name}")

    def _entered_since(self) -> bool:
        return self._entered.stat().st_mtime > 0

    def let_go(self) -> None:
        self._closed.unlink(missing_ok=True)

    def hold_loading(self) -> None:
        """From now on new instances do not get beyond loading."""
        self._unloadable.touch()

    def let_load(self) -> None:
        self._unloadable.unlink(missing_ok=True)


def rows(first: float, count: int = 1) -> np.ndarray:
    """``count`` rows that are unlike those of every other ``first``."""
    return np.float32(first) + np.arange(count * WIDTH, dtype=np.float32).reshape(count, WIDTH) / 64


def told(magic: float) -> np.ndarray:
    """One row that makes the model misbehave."""
    row = np.zeros((1, WIDTH), np.float32)
    row[0, 0] = magic
    return row
