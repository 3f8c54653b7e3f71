from pathlib import Path

import numpy as np
import pytest

from tessera_runtime.datatypes import DATATYPES
from tessera_runtime.engines.base import (
    EngineDevice,
    LoadRefused,
    ModelFile,
    RunFailed,
    TensorMeta,
)
from tessera_runtime.engines.loading import load_engine

HERE = Path(__file__).parent / "python_models"
CPU = EngineDevice("cpu")


def python_file(path: Path, options: dict | None = None, **declared) -> ModelFile:
    return ModelFile(str(path), "Python", allow_code=True, options=options, **declared)


def written(tmp_path: Path, source: str) -> ModelFile:
    path = tmp_path / "model.py"
    path.write_text(source)
    return python_file(path)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_identity_answers_every_datatype(datatype, ask, closing):
    engine = closing(
        load_engine(python_file(HERE / "identity.py", {"datatype": datatype, "shape": "3"}), CPU)
    )
    values = np.arange(6).reshape(2, 3) % 2
    if datatype == "BYTES":
        batch = np.array([[b"", b"a", b"\0\xff"], [b"longer", b"x" * 1000, b"y"]], dtype=object)
    else:
        batch = values.astype(DATATYPES[datatype])
    answer = ask(engine.lane(4), {"x": batch})["y"]
    assert answer.dtype == batch.dtype
    assert answer.tolist() == batch.tolist()


def test_staged_memory_is_the_same_every_time(closing):
    lane = closing(load_engine(python_file(HERE / "identity.py"), CPU)).lane(8)
    first = lane.stage({"x": (8, 4)})["x"]
    second = lane.stage({"x": (3, 4)})["x"]
    assert np.shares_memory(first, second)


def test_variable_rows_grow_the_memory(ask, closing):
    lane = closing(load_engine(python_file(HERE / "identity.py", {"shape": "-1"}), CPU)).lane(8)
    for width in (2, 50, 7):
        batch = np.random.default_rng(width).random((3, width), dtype=np.float32)
        assert (ask(lane, {"x": batch})["y"] == batch).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "no luck today"),
        ("exit", "SystemExit"),
        ("rows", r"answered shape \(1, 2\); expected \(2, 2\)"),
        ("shape", r"answered shape \(2, 3\)"),
        ("datatype", "answered float64; expected FP32"),
        ("missing", "'y' is missing"),
        ("none", "answered NoneType"),
    ],
)
def test_a_bad_answer_fails_the_batch_and_not_the_lane(how, message, ask, closing):
    lane = closing(load_engine(python_file(HERE / "misbehaving.py", {"how": how}), CPU)).lane(4)
    bad = np.array([[-1, 0], [1, 1]], dtype=np.float32)
    with pytest.raises(RunFailed, match=message):
        ask(lane, {"x": bad})
    assert (ask(lane, {"x": -bad[:1]})["y"] == -2 * bad[:1]).all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "the model takes"),
        ({"x": (1, 2), "z": (1, 2)}, "the model takes"),
        ({"x": (5, 2)}, "1 to 4"),
        ({"x": (0, 2)}, "1 to 4"),
        ({"x": ()}, "1 to 4"),
        ({"x": (2, 3)}, "rows of shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_when_staged(shapes, message, closing):
    lane = closing(load_engine(python_file(HERE / "misbehaving.py", {"how": "raise"}), CPU)).lane(4)
    with pytest.raises(ValueError, match=message):
        lane.stage(shapes)


def test_a_lane_larger_than_the_model_allows_is_refused(closing):
    engine = closing(load_engine(python_file(HERE / "misbehaving.py", {"how": "raise"}), CPU))
    assert engine.signature.max_rows == 8
    with pytest.raises(ValueError, match="1 to 8"):
        engine.lane(9)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def load(:", "SyntaxError"),
        ("raise OSError('boom')", "boom"),
        ("raise SystemExit(1)", "SystemExit"),
        ("x = 1", "defines no function load"),
        ("def load(device, options): raise KeyError('weights')", "weights"),
        ("def load(device, options): return 7", "not callable"),
        ("def load(device, options): return lambda batch: batch", "model.inputs must map"),
        (
            "class M:\n inputs = {'x': ('FP31', (1,))}\n outputs = inputs\n __call__ = print\n"
            "def load(device, options): return M()",
            "datatypes: BOOL",
        ),
        (
            "class M:\n inputs = outputs = {'x': 'FP32'}\n __call__ = print\n"
            "def load(device, options): return M()",
            "expected .datatype, shape",
        ),
        (
            "class M:\n inputs = outputs = {'x': ('FP32', ())}\n max_rows = 0\n __call__ = print\n"
            "def load(device, options): return M()",
            "max_rows is 0",
        ),
    ],
)
def test_a_bad_module_is_refused_with_the_reason(tmp_path, source, message):
    with pytest.raises(LoadRefused, match=message):
        load_engine(written(tmp_path, source), CPU)


def test_a_dataclass_in_the_module_works_and_no_byte_code_is_left(tmp_path, ask, closing):
    source = """
from __future__ import annotations
from dataclasses import dataclass, field
@dataclass
class M:
    device: str
    inputs: dict = field(default_factory=lambda: {"x": ("INT64", ())})
    outputs: dict = field(default_factory=lambda: {"x": ("INT64", ())})
    def __call__(self, batch): return {"x": batch["x"] + (self.device == "cpu")}
def load(device, options): return M(device)
"""
    engine = closing(load_engine(written(tmp_path, source), CPU))
    assert ask(engine.lane(2), {"x": np.array([1, 2])})["x"].tolist() == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


def test_declared_metadata_that_contradicts_the_module_is_refused():
    declared = (TensorMeta("x", "FP64", (4,)),)
    with pytest.raises(LoadRefused, match="declared FP64, the model has FP32"):
        load_engine(python_file(HERE / "identity.py", inputs=declared), CPU)


def test_a_model_that_says_it_is_too_big_is_refused(tmp_path):
    source = (
        "class M:\n inputs = outputs = {'x': ('FP32', ())}\n memory_mib = 64\n __call__ = print\n"
        "def load(device, options): return M()"
    )
    with pytest.raises(LoadRefused, match="does not fit in 32 MiB"):
        load_engine(written(tmp_path, source), EngineDevice("cpu", memory_mib=32))
