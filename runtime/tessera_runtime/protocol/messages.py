"""The protobuf messages of :file:`oip.proto`, in a descriptor pool of their own.

Generated modules would register package ``inference`` in the process-wide pool, where it collides with
any client library that does the same. So the serialized descriptors are shipped and loaded here.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"

POOL: Any = descriptor_pool.DescriptorPool()

_described = descriptor_pb2.FileDescriptorSet.FromString(
    files("tessera_runtime.protocol").joinpath("oip.binpb").read_bytes()
)
for _file in _described.file:
    POOL.Add(_file)


def message(name: str) -> Any:
    """The class of message ``inference.<name>``."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


ModelInferRequest = message("ModelInferRequest")
ModelInferResponse = message("ModelInferResponse")
ModelStreamInferResponse = message("ModelStreamInferResponse")
