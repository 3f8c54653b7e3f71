"""One way in: which engine loads a model file.

Engine libraries are imported only here and only when a file needs them: a torch import takes seconds and
gigabytes, and an image may hold only one of the libraries.
"""

from __future__ import annotations

from tessera_runtime.engines.base import Engine, EngineDevice, LoadRefused, ModelFile

_EXTRAS = {"torch": "runtime", "torchvision": "runtime", "onnxruntime": "onnx"}
"""By module: what of Tessera brings it."""

_CODE_FORMATS = frozenset({"TorchScript", "Python"})


def load_engine(file: ModelFile, device: EngineDevice) -> Engine:
    """Load ``file`` on ``device``.

    Raises LoadRefused, whose message says what to change, when the format is unknown, is code that may not
    run here, needs a library that is not installed, or the file itself is refused.
    """
    if device.kind not in ("cpu", "cuda"):
        raise LoadRefused(f"device kind {device.kind!r}; allowed: cpu, cuda")
    if file.format in _CODE_FORMATS and not file.allow_code:
        raise LoadRefused(
            f"format {file.format} is a program and code is not allowed here; export the model as "
            "TorchExport or ONNX, or place it in a pool with trust.allowCode"
        )
    try:
        match file.format:
            case "TorchExport" | "TorchScript":
                from tessera_runtime.engines.torch_engine import load_torch

                return load_torch(file, device)
            case "ONNX":
                from tessera_runtime.engines.onnx_engine import load_onnx

                return load_onnx(file, device)
            case "Python":
                from tessera_runtime.engines.python_engine import load_python

                return load_python(file, device)
            case "Preprocess":
                from tessera_runtime.engines.media_engine import load_media

                return load_media(file, device)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        raise LoadRefused(
            f"format {file.format} needs {error.name}, which is not installed: "
            f"pip install 'tessera[{extra}]'"
        ) from error
    raise LoadRefused(f"format {file.format!r}; allowed: TorchExport, TorchScript, ONNX, Python")
