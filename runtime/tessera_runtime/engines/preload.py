"""What the zygote imports, so that its workers need not.

The first load of an exported program imports over a thousand modules behind the scenes, many times what the
load itself takes. They are private parts of torch, so a name that a version does not have is passed over:
nothing depends on it but the time of a worker's first load.
"""

from __future__ import annotations

import importlib
from pathlib import Path

MODULES = {
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
    # Importing ONNX Runtime starts a thread, and takes a tenth of a second: each worker does it for itself.
    "onnxruntime": (),
}
"""By library. Importing them starts no thread and touches no device."""


class Threaded(Exception):
    """An import started threads: forked workers would inherit their locks and not the threads."""


def preload(library: str) -> None:
    """Import what models of ``library`` need, where it is installed. Raises Threaded."""
    for module in MODULES[library]:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            continue
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise Threaded(f"importing {library} started {threads - 1} threads")
