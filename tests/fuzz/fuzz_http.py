"""Coverage-guided fuzzing of a whole HTTP connection: ``python tests/fuzz/fuzz_http.py -max_total_time=60``.

The input's first bytes say how the rest is cut into pieces; what follows is what a client sends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(include=["tessera_runtime"]):
    from support.memory_http import converse, statuses
from support.raw_http import INFER, json_infer, request
from support.served_models import served_plane

_runner = asyncio.Runner()
_PREFIX = request("POST", INFER, json_infer("seed"))


def one_input(data: bytes) -> None:
    cut, keep, rest = data[:1], data[1:2], data[2:]
    if not keep:
        return
    size = cut[0] + 1
    # Half of the inputs begin with part of a valid request, so that bodies are reached early.
    sent = (_PREFIX[: keep[0] * 2] if keep[0] < 128 else b"") + rest
    pieces = [sent[at : at + size] for at in range(0, len(sent), size)]
    codes = statuses(_runner.run(converse(served_plane(), pieces)))
    assert all(code < 500 or code == 501 for code in codes), codes


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
