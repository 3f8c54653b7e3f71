"""The models that the protocol tests serve, and values of every datatype."""

from __future__ import annotations

import numpy as np

from support.function_plane import FunctionModel, FunctionPlane, model
from tessera_runtime.datatypes import DATATYPES
from tessera_runtime.errors import Overloaded, Unavailable


def _fail(error: Exception):
    def raises(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise error

    return raises


def _arithmetic(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    a, b = inputs["A"], inputs["B"]
    return {"SUM": a + b, "DIFFERENCE": a - b}


ROW = [("INPUT0", "FP32", (-1, 16))]
ROW_OUT = [("OUTPUT0", "FP32", (-1, 16))]
IDENTITY = model("test.identity", lambda given: {"OUTPUT0": given["INPUT0"]}, ROW, ROW_OUT)


def served_models() -> list[FunctionModel]:
    echoes = [
        model(
            f"echo.{name}",
            lambda given: {"OUTPUT0": given["INPUT0"]},
            [("INPUT0", name, (-1, -1))],
            [("OUTPUT0", name, (-1, -1))],
        )
        for name in DATATYPES
    ]
    pair = [("A", "INT32", (-1, 2)), ("B", "INT32", (-1, 2))]
    results = [("SUM", "INT32", (-1, 2)), ("DIFFERENCE", "INT32", (-1, 2))]
    return [
        *echoes,
        IDENTITY,
        model("test.arithmetic", _arithmetic, pair, results),
        model("test.raises", _fail(ZeroDivisionError("/secret/path")), ROW, ROW_OUT),
        model("test.busy", _fail(Overloaded("queue is full; retry later")), ROW, ROW_OUT),
        model("test.down", _fail(Unavailable("no instance is ready")), ROW, ROW_OUT),
    ]


def served_plane(**options: object) -> FunctionPlane:
    return FunctionPlane.of(*served_models(), **options)


def sample(datatype: str) -> np.ndarray:
    """Three rows of two that hold the datatype's extreme values."""
    dtype = DATATYPES[datatype]
    if datatype == "BYTES":
        values: list[object] = [b"", b"a", "straße ⛵".encode(), b"x" * 300, b"0", b"last"]
    elif datatype == "BOOL":
        values = [True, False, False, True, True, True]
    elif dtype.kind == "f":
        limits = np.finfo(dtype)
        values = [0.0, -1.5, limits.max, limits.min, limits.tiny, 1 / 3]
    else:
        bounds = np.iinfo(dtype)
        values = [0, 1, 2, bounds.max, bounds.min, 7]
    return np.array(values, dtype=dtype).reshape(3, 2)
