"""Server reflection: what the protocol's, health's and reflection's own descriptors say."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tessera_runtime.protocol.grpc_call import Begin, method
from tessera_runtime.protocol.grpc_codec import parse
from tessera_runtime.protocol.grpc_rpc import EachCall
from tessera_runtime.protocol.messages import POOL

REFLECTION_SERVICE: str = reflection.SERVICE_NAME


def reflection_methods(services: Iterable[str]) -> dict[str, Begin]:
    """``services``: the names to list."""
    answers: Any = reflection.ReflectionServicer(services, pool=_described())

    def answer(data: bytes) -> bytes:
        request = parse(reflection_pb2.ServerReflectionRequest, data)
        (response,) = answers.ServerReflectionInfo(iter((request,)), None)
        return bytes(response.SerializeToString())

    return {"ServerReflectionInfo": method(EachCall, answer)}


@cache
def _described() -> Any:
    """The pool that reflection answers from."""
    for module in (health_pb2, reflection_pb2):
        described = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(described)
        POOL.Add(described)
    return POOL
