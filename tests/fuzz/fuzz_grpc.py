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
    from tessera_runtime.protocol.grpc_reply import ReplyWriter
    from tessera_runtime.protocol.grpc_request import RequestReader
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
    """Walked by hand or parsed by protobuf, a request means the same, and so does an answer."""
    plane = FunctionPlane.of(model("", dict, [], []))
    slot = plane.allocate(max(1, len(data)))
    slot.view[: len(data)] = data
    walked = parsed = None
    try:
        walked = RequestReader(plane).read(slot, data, None, Sent(), "")
    except ServeError:
        plane.assert_clean()
    try:
        parsed = decode_call(plane, parse(ModelInferRequest, data), None, Sent())
    except ServeError:
        pass
    assert (walked is None) == (parsed is None)
    if walked is None or parsed is None:
        return
    assert walked.id == parsed.id
    for one, other in zip(walked.inputs, parsed.inputs, strict=True):
        assert (one.name, one.datatype, one.shape) == (other.name, other.datatype, other.shape)
        assert array_of(one).tobytes() == array_of(other).tobytes() or one.datatype == "BYTES"
    outputs = tuple(OutputTensor(one.name, one.datatype, array_of(one)) for one in walked.inputs)
    reply = InferReply("m", "1", walked.id, outputs)
    parts, _ = ReplyWriter().write(reply, final=True)
    written = b"".join(map(bytes, parts))[5:]
    assert ModelInferResponse.FromString(written) == encode_reply(reply, final=True)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
