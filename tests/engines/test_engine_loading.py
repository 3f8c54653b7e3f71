import subprocess
import sys
from pathlib import Path

import pytest

from tessera_runtime.engines.base import EngineDevice, LoadRefused, ModelFile
from tessera_runtime.engines.loading import load_engine

CPU = EngineDevice("cpu")
FORMATS = ["TorchExport", "TorchScript", "ONNX", "Python"]


@pytest.mark.parametrize("format_", ["TorchScript", "Python"])
def test_code_is_refused_where_it_is_not_allowed(format_, tmp_path):
    ran = tmp_path / "ran"
    path = tmp_path / "model.py"
    path.write_text(f"open({str(ran)!r}, 'w')")
    with pytest.raises(LoadRefused, match="code is not allowed here; export the model"):
        load_engine(ModelFile(str(path), format_, allow_code=False), CPU)
    assert not ran.exists()


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"", "empty"), (Path, "single file")],
    ids=["missing", "empty", "directory"],
)
def test_a_file_that_cannot_be_a_model_is_refused(format_, content, message, tmp_path):
    path = tmp_path / "model"
    if content is Path:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadRefused, match=message):
        load_engine(_with_inputs(str(path), format_), CPU)


@pytest.mark.parametrize("format_", FORMATS)
def test_noise_is_refused_in_every_format(format_, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"\x07\x13noise" * 100)
    with pytest.raises(LoadRefused):
        load_engine(_with_inputs(str(path), format_), CPU)


@pytest.mark.parametrize("format_", ["TorchExport", "TorchScript", "ONNX"])
def test_a_file_larger_than_the_device_is_refused_before_it_is_read(format_, tmp_path):
    path = tmp_path / "model"
    with open(path, "wb") as file:
        file.truncate(3 * 2**20)
    with pytest.raises(LoadRefused, match="3 MiB does not fit in 2 MiB"):
        load_engine(_with_inputs(str(path), format_), EngineDevice("cpu", memory_mib=2))


def test_unknown_formats_and_devices_list_what_is_allowed():
    with pytest.raises(LoadRefused, match="allowed: TorchExport, TorchScript, ONNX, Python"):
        load_engine(ModelFile("x", "SavedModel", allow_code=True), CPU)
    with pytest.raises(LoadRefused, match="allowed: cpu, cuda"):
        load_engine(ModelFile("x", "ONNX", allow_code=True), EngineDevice("tpu"))


def test_importing_the_loader_imports_no_engine_library():
    script = (
        "import sys, tessera_runtime.engines.loading; "
        "sys.exit(bool({'torch', 'onnxruntime'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("format_", "library"), [("TorchExport", "torch"), ("ONNX", "onnxruntime")]
)
def test_a_missing_library_is_refused_with_the_extra_to_install(format_, library):
    script = f"""
import sys
sys.modules[{library!r}] = None
from tessera_runtime.engines.loading import load_engine
from tessera_runtime.engines.base import *
try:
    load_engine(ModelFile("x", {format_!r}, allow_code=False), EngineDevice("cpu"))
except LoadRefused as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert f"needs {library}" in done.stdout
    assert "pip install 'tessera[" in done.stdout


def _with_inputs(path: str, format_: str) -> ModelFile:
    from tessera_runtime.engines.base import TensorMeta

    return ModelFile(path, format_, allow_code=True, inputs=(TensorMeta("x", "FP32", (4,)),))
