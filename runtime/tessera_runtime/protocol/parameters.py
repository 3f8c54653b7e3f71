"""Protocol parameters of requests, inputs and outputs: what is honoured, what is refused.

``timeout`` (microseconds) becomes the request's limit. ``priority`` is accepted and has no effect: the
order is earliest deadline first. Stateful sequences, shared memory and classification are refused, since
answering as if they had worked would be wrong. Other parameters are the client's own and are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from tessera_runtime.dataplane import Parameter
from tessera_runtime.errors import InvalidRequest

_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_UNDERSTOOD = frozenset({*_SEQUENCE, "priority", "timeout"})
_SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


def timeout_of(parameters: Mapping[str, Parameter]) -> float | None:
    """Seconds of the request's ``timeout``, None for none or 0. Raises InvalidRequest for what is refused."""
    if _UNDERSTOOD.isdisjoint(parameters):
        return None
    for name in _SEQUENCE:
        if parameters.get(name):
            raise InvalidRequest(f"parameters.{name}: stateful sequences are not supported")
    _whole("priority", parameters)
    return _whole("timeout", parameters) / 1e6 or None


def _whole(name: str, parameters: Mapping[str, Parameter]) -> int:
    value = parameters.get(name, 0)
    if type(value) is not int or value < 0 or value >= 2**63:
        raise InvalidRequest(f"parameters.{name}: {value!r} is not an integer of 0 or more")
    return value


def refuse_shared_memory(parameters: Mapping[str, Parameter]) -> None:
    """For an input or output; the caller puts its path in front of the message."""
    for name in _SHARED_MEMORY:
        if name in parameters:
            raise InvalidRequest(f"parameters.{name}: shared memory is not supported")


def check_output(parameters: Mapping[str, Parameter]) -> None:
    """Raises InvalidRequest for what an output cannot be asked."""
    refuse_shared_memory(parameters)
    if parameters.get("classification"):
        raise InvalidRequest(
            "parameters.classification: classification is not supported; ask for the scores"
        )
