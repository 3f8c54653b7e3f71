"""Coverage-guided fuzzing of the gRPC connection: ``python tests/fuzz/fuzz_http2.py -max_total_time=60``.

The first byte says how the rest is split. The preface and SETTINGS are sent before it.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(include=["tessera_runtime"]):
    from support.memory_http2 import converse, error_codes
    from tessera_runtime.protocol.http2 import frames
from support.served_models import served_plane

_runner = asyncio.Runner()
_START = frames.PREFACE + frames.settings_frame({})


def one_input(data: bytes) -> None:
    step = data[0] + 1 if data else 1
    rest = data[1:]
    pieces = [_START, *(rest[at : at + step] for at in range(0, len(rest), step))]
    codes = error_codes(_runner.run(converse(served_plane(), pieces)))
    assert frames.Code.INTERNAL_ERROR not in codes


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
