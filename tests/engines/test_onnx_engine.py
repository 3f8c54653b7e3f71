import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tessera_runtime.datatypes import DATATYPES
from tessera_runtime.engines.base import EngineDevice, LoadRefused, ModelFile, RunFailed, TensorMeta
from tessera_runtime.engines.loading import load_engine
from tessera_runtime.engines.onnx_file import check_onnx

CPU = EngineDevice("cpu", threads=1)

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}  # fmt: skip


def save(path: Path, nodes, inputs, outputs, initializers=(), **options) -> Path:
    graph = helper.make_graph(nodes, "net", inputs, outputs, list(initializers))
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", 17)] + [helper.make_opsetid(d, 1) for d in domains]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path, **options)
    return path


def info(name: str, kind: int, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def identity(path: Path, kind: int = TensorProto.FLOAT, shape=("batch", 3)) -> Path:
    return save(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [info("x", kind, list(shape))],
        [info("y", kind, list(shape))],
    )


WEIGHTS = np.random.default_rng(3).standard_normal((6, 4)).astype(np.float32)


def linear(path: Path, batch: object = "batch", domain: str = "", **options) -> Path:
    node = helper.make_node("MatMul" if not domain else "Secret", ["x", "w"], ["y"], domain=domain)
    return save(
        path,
        [node],
        [info("x", TensorProto.FLOAT, [batch, 6])],
        [info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(WEIGHTS, "w")],
        **options,
    )


def onnx_file(path: Path, **declared) -> ModelFile:
    return ModelFile(str(path), "ONNX", allow_code=False, **declared)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_passes_unchanged(datatype, tmp_path, ask, closing):
    engine = closing(
        load_engine(onnx_file(identity(tmp_path / "m.onnx", ONNX_TYPES[datatype])), CPU)
    )
    assert engine.signature.inputs == (TensorMeta("x", datatype, (3,)),)
    assert engine.signature.outputs == (TensorMeta("y", datatype, (3,)),)
    if datatype == "BYTES":
        batch = np.array([[b"", "ü".encode(), b"x" * 999], [b"1", b"22", b"333"]], dtype=object)
    else:
        batch = (np.arange(6).reshape(2, 3) % 2).astype(DATATYPES[datatype])
    answer = ask(engine.lane(4), {"x": batch})["y"]
    assert answer.dtype == batch.dtype
    assert answer.tolist() == batch.tolist()


def test_answers_equal_a_session_of_the_same_file(tmp_path, ask, closing):
    path = linear(tmp_path / "m.onnx")
    engine = closing(load_engine(onnx_file(path), CPU))
    assert engine.signature.max_rows is None
    assert engine.version == f"onnxruntime-{onnxruntime.__version__}"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    lane = engine.lane(32)
    for rows in (1, 5, 32):
        x = random(rows, 6)
        assert np.array_equal(ask(lane, {"x": x})["y"], session.run(None, {"x": x})[0])


def test_lanes_of_one_session_run_at_once(tmp_path, ask, closing):
    engine = closing(load_engine(onnx_file(linear(tmp_path / "m.onnx")), CPU))
    wrong: list[int] = []

    def work(seed: int) -> None:
        lane = engine.lane(8)
        x = np.full((8, 6), seed, np.float32)
        for _ in range(50):
            if not np.allclose(ask(lane, {"x": x})["y"], x @ WEIGHTS, rtol=1e-4):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_static_batch_serves_every_size_up_to_it(tmp_path, ask, closing):
    engine = closing(load_engine(onnx_file(linear(tmp_path / "m.onnx", batch=4)), CPU))
    assert engine.signature.max_rows == 4
    lane = engine.lane(4)
    for rows in range(1, 5):
        x = random(rows, 6)
        np.testing.assert_allclose(ask(lane, {"x": x})["y"], x @ WEIGHTS, rtol=1e-5)


def test_variable_rows_are_minus_one(tmp_path, ask, closing):
    path = identity(tmp_path / "m.onnx", shape=("batch", "length", 2))
    engine = closing(load_engine(onnx_file(path), CPU))
    assert engine.signature.inputs[0].row_shape == (-1, 2)
    x = random(2, 9, 2)
    assert np.array_equal(ask(engine.lane(2), {"x": x})["y"], x)


def test_a_failing_run_fails_the_batch_and_not_the_lane(tmp_path, ask, closing):
    path = identity(tmp_path / "m.onnx", TensorProto.STRING)
    lane = closing(load_engine(onnx_file(path), CPU)).lane(1)
    with pytest.raises(RunFailed, match="utf-8"):
        ask(lane, {"x": np.array([[b"\xff", b"", b""]], dtype=object)})
    good = np.array([[b"a", b"", b""]], dtype=object)
    assert ask(lane, {"x": good})["y"].tolist() == good.tolist()


def test_custom_operators_are_refused_by_name(tmp_path):
    with pytest.raises(LoadRefused, match=r"Secret[\s\S]*custom operators"):
        load_engine(onnx_file(linear(tmp_path / "m.onnx", domain="my.ops")), CPU)


@pytest.mark.parametrize("location", ["weights.bin", "../../../etc/passwd", "/etc/passwd"])
def test_external_data_is_refused_wherever_it_points(location, tmp_path):
    path = linear(tmp_path / "m.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LoadRefused, match="external files"):
        load_engine(onnx_file(path), CPU)


def _external() -> TensorProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def _hidden() -> dict[str, onnx.ModelProto]:
    """A model per place in which a tensor can hide."""

    def graph() -> onnx.GraphProto:
        return helper.make_graph(
            [], "g", [info("x", TensorProto.FLOAT, ["b"])], [info("x", TensorProto.FLOAT, ["b"])]
        )

    def model(body: onnx.GraphProto) -> onnx.ModelProto:
        return helper.make_model(body)

    constant = helper.make_node("Constant", [], ["c"], value=_external())
    body = graph()
    body.node.append(constant)
    branch = graph()
    branch.node.append(helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=graph()))
    sparse = graph()
    sparse.sparse_initializer.add().values.CopyFrom(_external())
    function = model(graph())
    function.functions.add(name="f", domain="d").node.append(constant)
    training = model(graph())
    training.training_info.add().initialization.CopyFrom(body)
    many = graph()
    many.node.append(helper.make_node("Many", [], ["m"], values=[_external()]))
    return {
        "constant node": model(body),
        "branch of a branch": model(branch),
        "sparse initializer": model(sparse),
        "function": function,
        "training": training,
        "list attribute": model(many),
    }


@pytest.mark.parametrize("place", sorted(_hidden()))
def test_external_data_is_found_wherever_it_hides(place, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(_hidden()[place].SerializeToString())
    with pytest.raises(LoadRefused, match="external files"):
        check_onnx(str(path))


def test_every_truncation_is_refused(tmp_path):
    data = linear(tmp_path / "m.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for size in range(1, len(data)):
        path.write_bytes(data[:size])
        try:
            engine = load_engine(onnx_file(path), CPU)
        except LoadRefused:
            continue
        # Protobuf has no end mark: what is cut between fields may still be a whole model.
        assert engine.signature.inputs == (TensorMeta("x", "FP32", (6,)),)


@given(st.binary(min_size=1, max_size=200))
def test_noise_is_refused_by_the_scan_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "noise.onnx"
    path.write_bytes(data)
    with pytest.raises(LoadRefused):
        load_engine(onnx_file(path), CPU)


def test_graphs_nested_without_end_are_refused(tmp_path):
    inner = b""
    for _ in range(200):  # attribute.g (6) of node.attribute (5) of graph.node (1)
        for number in (6, 5, 1):
            inner = bytes([number << 3 | 2]) + _length(len(inner)) + inner
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x3a" + _length(len(inner)) + inner)
    with pytest.raises(LoadRefused, match="nested deeper"):
        check_onnx(str(path))


def _length(size: int) -> bytes:
    low = b""
    while size >= 0x80:
        low += bytes([size & 0x7F | 0x80])
        size >>= 7
    return low + bytes([size])


@pytest.mark.parametrize(
    ("shape", "message"), [((), "is a scalar"), ((0, 3), "must share one")], ids=["scalar", "zero"]
)
def test_inputs_without_a_batch_dimension_are_refused(shape, message, tmp_path):
    with pytest.raises(LoadRefused, match=message):
        load_engine(onnx_file(identity(tmp_path / "m.onnx", shape=shape)), CPU)


def test_types_that_cannot_travel_are_refused(tmp_path):
    with pytest.raises(LoadRefused, match="bfloat16"):
        load_engine(onnx_file(identity(tmp_path / "m.onnx", TensorProto.BFLOAT16)), CPU)


def test_declared_metadata_that_contradicts_the_file_is_refused(tmp_path):
    declared = (TensorMeta("x", "FP32", (5,)),)
    with pytest.raises(LoadRefused, match=r"declared rows \(5,\), the model has \(6,\)"):
        load_engine(onnx_file(linear(tmp_path / "m.onnx"), inputs=declared), CPU)


def test_cuda_without_its_provider_is_refused(tmp_path):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(LoadRefused, match="onnxruntime-gpu"):
        load_engine(onnx_file(linear(tmp_path / "m.onnx")), EngineDevice("cuda"))
