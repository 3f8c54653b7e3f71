"""The keys that a request carries: ``Authorization: Bearer <key>`` (RFC 6750, section 2.1), in HTTP and in gRPC metadata.

Other schemes are no key. They are left to whoever stands in front of the server, and none of their business here.
"""

from __future__ import annotations

from collections.abc import Iterable

from tessera_runtime.dataplane import Keys

AUTHORIZATION = "authorization"
"""Of gRPC metadata, where names are lower case."""


def keys_of(value: str) -> Keys:
    """The key of one Authorization value, if it is one."""
    scheme, _, key = value.partition(" ")
    key = key.strip()
    return (key,) if key and scheme.lower() == "bearer" else ()


def keys_among(metadata: Iterable[tuple[str, str | bytes]]) -> Keys:
    """All keys of a call's metadata: peers present several, of which the called one may know a part only."""
    return tuple(
        key
        for name, value in metadata
        if name == AUTHORIZATION and isinstance(value, str)
        for key in keys_of(value)
    )


def presented(keys: Keys) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that carries ``keys``."""
    return tuple((AUTHORIZATION, f"Bearer {key}") for key in keys)
