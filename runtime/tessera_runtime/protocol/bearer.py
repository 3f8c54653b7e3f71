"""The keys that a request carries: ``Authorization: Bearer <key>`` (RFC 6750, section 2.1), in HTTP and in gRPC metadata.

Other schemes are no key. They are left to whoever stands in front of the server, and none of their business here.
"""

from __future__ import annotations

from tessera_runtime.dataplane import Keys

AUTHORIZATION = "authorization"
"""Of gRPC metadata, where names are lower case."""


def keys_of(value: str) -> Keys:
    """The key of one Authorization value, if it is one."""
    scheme, _, key = value.partition(" ")
    key = key.strip()
    return (key,) if key and scheme.lower() == "bearer" else ()


def presented(keys: Keys) -> tuple[tuple[str, str], ...]:
    """The metadata of a call that carries ``keys``."""
    return tuple((AUTHORIZATION, f"Bearer {key}") for key in keys)
