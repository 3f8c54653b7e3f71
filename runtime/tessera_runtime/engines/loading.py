"""One way in: which engine loads a model file.

Engine libraries are imported only here and only when a file needs them: a torch import takes seconds and
gigabytes, and an image may hold only one of the libraries.
"""

from __future__ import annotations

from collections.abc import Mapping

from tessera_core.tuning.variants import PRECISIONS, Backend, Variant, parse
from tessera_runtime.engines.base import Engine, EngineDevice, LoadRefused, ModelFile
from tessera_runtime.engines.version import library_version

_EXTRAS = {
    "torch": "runtime",
    "torchvision": "runtime",
    "onnxruntime": "onnx",
    "openvino": "openvino",
}
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
    variant = _variant(file, device)
    try:
        if variant is not None and variant.backend is Backend.OPENVINO:
            from tessera_runtime.engines.openvino_engine import load_openvino

            return load_openvino(file, device, variant)
        match file.format:
            case "TorchExport" | "TorchScript":
                from tessera_runtime.engines.torch_engine import load_torch

                return load_torch(file, device, variant)
            case "ONNX":
                from tessera_runtime.engines.onnx_engine import load_onnx

                return load_onnx(file, device, variant)
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
            f"{file.variant or f'format {file.format}'} needs {error.name}, which is not installed: "
            f"pip install 'tessera[{extra}]'"
        ) from error
    raise LoadRefused(f"format {file.format!r}; allowed: TorchExport, TorchScript, ONNX, Python")


_BACKENDS: Mapping[str, frozenset[Backend]] = {
    "TorchExport": frozenset({Backend.TORCH, Backend.INDUCTOR, Backend.OPENVINO}),
    "ONNX": frozenset({Backend.ONNX_RUNTIME, Backend.OPENVINO}),
}


def _variant(file: ModelFile, device: EngineDevice) -> Variant | None:
    """What ``file.variant`` says, where the format and the device have it. Raises LoadRefused."""
    if not file.variant:
        return None
    try:
        variant = parse(file.variant)
    except ValueError as error:
        raise LoadRefused(str(error)) from error
    if variant.backend not in _BACKENDS.get(file.format, ()):
        raise LoadRefused(f"variant {variant}: format {file.format} is not run by it")
    if variant.precision not in PRECISIONS[variant.backend].get(device.kind, ()):
        raise LoadRefused(f"variant {variant}: not on devices of kind {device.kind}")
    return variant


def build_artefact(file: ModelFile, device: EngineDevice, path: str) -> str:
    """Build what the variant of ``file`` needs to be loaded on ``device``, as the file ``path``. Returns library and version.
    Raises LoadRefused.
    """
    variant = _variant(file, device)
    if variant is None or not variant.compiles:
        raise LoadRefused(f"variant {file.variant!r} needs nothing to be built")
    from tessera_runtime.engines.torch_compiled import build
    from tessera_runtime.engines.torch_engine import CUDA, set_threads

    set_threads(device.threads)
    build(file, CUDA if device.kind == "cuda" else "cpu", variant, path)
    return library_version("torch")
