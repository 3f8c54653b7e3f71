"""What the zygote imports, so that its workers need not.

The first load of an exported program imports over a thousand modules behind the scenes, many times what the
load itself takes. They are private parts of torch, so a name that a version does not have is passed over:
nothing depends on it but the time of a worker's first load.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from tessera_runtime.engines.base import ModelFile

MODULES = {
    # What model files import besides numpy.
    "python": ("numpy.typing", "dataclasses"),
    "torch": (
        "torch",
        "torch._dynamo",
        "torch._export.serde.serialize",
        "torch._inductor.codecache",
        "torch.export.pt2_archive._package",
        "networkx",
        "tessera_runtime.engines.torch_engine",
        "tessera_runtime.engines.torch_export",
    ),
    "simplejpeg": ("tessera_runtime.engines.media_engine",),
    # Importing ONNX Runtime starts a thread, and takes a tenth of a second: each worker does it for itself.
    "onnxruntime": (),
}
"""By library. Importing them starts no thread and touches no device."""

_PYTHON_EXAMPLE = """\
class Model:
    inputs = outputs = {"x": ("FP32", (1,))}

    def __call__(self, batch):
        return {"x": batch["x"].copy()}

def load(device, options):
    return Model()
"""


class Threaded(Exception):
    """It started threads: forked workers would inherit their locks and not the threads."""


def preload(library: str) -> None:
    """Import what models of ``library`` need, where it is installed. Raises Threaded."""
    for module in MODULES[library]:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            continue
    check_single_threaded(f"importing {library}")


def write_example(library: str, directory: Path) -> ModelFile | None:
    """A model to rehearse with, as small as they come; None where ``library`` is not for the zygote."""
    if library == "python":
        path = directory / "example.py"
        path.write_text(_PYTHON_EXAMPLE)
        return ModelFile(str(path), "Python", allow_code=True)
    if library == "torch" and importlib.util.find_spec("torch") is not None:
        from tessera_runtime.engines.torch_example import write_export

        return write_export(directory / "example.pt2")
    return None


def check_single_threaded(what: str) -> None:
    """Raises Threaded."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise Threaded(f"{what} started {threads - 1} threads")
