"""Small ONNX models whose answers are known: same bytes for the same arguments, so the same digest in every run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]

INPUT, OUTPUT = "x", "scores"
FEATURES, CLASSES = 64, 10
_CHANNELS, _SIDE = 16, 24


@cache
def classifier(seed: int, layers: int = 0) -> bytes:
    """A file: ``INPUT`` of shape (rows, FEATURES) to probabilities ``OUTPUT`` of shape (rows, CLASSES).

    Without layers it takes microseconds. Each of ``layers`` is a convolution of some 2.7 million multiplications
    for every row, about 0.2 ms of one core: work that batching does not make cheaper.
    """
    random = np.random.default_rng(seed)

    def normal(*shape: int, scale: float) -> Array:
        return (random.normal(size=shape) * scale).astype(np.float32)

    pixels = _CHANNELS * _SIDE * _SIDE
    constants = {"w": normal(FEATURES, pixels if layers else 256, scale=0.2)}
    nodes = [helper.make_node("MatMul", [INPUT, "w"], ["h"])]
    last = "h"
    if layers:
        constants["image"] = np.array([-1, _CHANNELS, _SIDE, _SIDE])
        nodes.append(helper.make_node("Reshape", [last, "image"], ["h0"]))
        for layer in range(layers):
            kernel = f"k{layer}"
            constants[kernel] = normal(_CHANNELS, _CHANNELS, 3, 3, scale=0.1)
            nodes += [
                helper.make_node(
                    "Conv", [f"h{layer}", kernel], [f"c{layer}"], pads=[1, 1, 1, 1], name=kernel
                ),
                helper.make_node("Tanh", [f"c{layer}"], [f"h{layer + 1}"]),
            ]
        constants["flat"] = np.array([-1, pixels])
        nodes.append(helper.make_node("Reshape", [f"h{layers}", "flat"], ["f"]))
        last = "f"
    constants["v"] = normal(pixels if layers else 256, CLASSES, scale=0.1)
    nodes += [
        helper.make_node("Tanh", [last], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["l"]),
        helper.make_node("Softmax", ["l"], [OUTPUT], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", FEATURES])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    data: bytes = model.SerializeToString()
    return data


def averages(scale: float, side: int) -> bytes:
    """A file: ``INPUT`` of shape (rows, 3, side, side) to the mean of each channel times ``scale``, ``y`` of shape (rows, 3)."""
    nodes = [
        helper.make_node("ReduceMean", [INPUT], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["m", "scale"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "averages",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(np.float32(scale), "scale")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    data: bytes = model.SerializeToString()
    return data


def example(rows: int = 1, seed: int = 0) -> Array:
    """An input."""
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype(np.float32)


def answer(file: bytes, x: Array) -> Array:
    """What the model says, computed here."""
    result: Array = _session(file).run([OUTPUT], {INPUT: x})[0]
    return result


def mean(files: Sequence[bytes], x: Array) -> Array:
    """What an ensemble of them says that combines by Mean."""
    result: Array = np.mean([answer(file, x) for file in files], axis=0, dtype=np.float32)
    return result


@cache
def _session(file: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
