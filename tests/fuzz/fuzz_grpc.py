"""Coverage-guided fuzzing of ModelInferRequest, and of what a peer answers:
``python tests/fuzz/fuzz_grpc.py -max_total_time=60``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(include=["tessera_runtime"]):
    from tessera_runtime.protocol.grpc_codec import decode_call, decode_reply, encode_reply, parse
    from tessera_runtime.protocol.member_call import Sent
    from tessera_runtime.protocol.messages import ModelInferRequest, ModelInferResponse
from support.function_plane import FunctionPlane, array_of, model
from tessera_runtime.dataplane import InferReply, OutputTensor
from tessera_runtime.errors import ServeError


def one_input(data: bytes) -> None:
    take_request(data)
    try:
        decode_reply(parse(ModelInferResponse, data))
    except (ServeError, ValueError):
        pass


def take_request(data: bytes) -> None:
    plane = FunctionPlane.of(model("", dict, [], []))
    try:
        call = decode_call(plane, parse(ModelInferRequest, data), None, Sent())
    except ServeError:
        plane.assert_clean()
        return
    outputs = tuple(OutputTensor(one.name, one.datatype, array_of(one)) for one in call.inputs)
    encode_reply(InferReply("m", "1", call.id, outputs), final=True).SerializeToString()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
