"""Coverage-guided fuzzing of inference bodies over HTTP: ``python tests/fuzz/fuzz_v2.py -max_total_time=60``."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(include=["tessera_runtime"]):
    from tessera_runtime.protocol.v2json import RequestBody, decode_call, encode_reply
from support.function_plane import FunctionPlane, array_of
from tessera_runtime.dataplane import InferReply, OutputTensor
from tessera_runtime.errors import ServeError


def one_input(data: bytes) -> None:
    if len(data) < 3:
        return
    body = data[2:]
    json_size = int.from_bytes(data[:2], "little")
    plane = FunctionPlane({})
    slot = plane.allocate(len(body))
    slot.view[:] = body
    given = RequestBody(slot, len(body), json_size or None)
    try:
        call, encoding = decode_call(plane, "m", "", given)
    except ServeError:
        plane.assert_clean()
        return
    outputs = tuple(OutputTensor(one.name, one.datatype, array_of(one)) for one in call.inputs)
    try:
        encode_reply(InferReply("m", "1", call.id, outputs), encoding)
    except ServeError:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
