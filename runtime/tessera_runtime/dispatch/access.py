"""Who may name which service: those that carry one of its keys.

A service that needs a key is closed until keys were handed over, and when there are none: what is not known opens
nothing. Keys are of the served name, not of a version, and stay as long as anything of that name answers, so that a
service that goes cannot be asked without one by who knows how peers ask.

Keys are looked up by their digests, all of them and each in constant time: how long a refusal takes says nothing of
how much of a key was right.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping

from tessera_runtime.dataplane import Keys
from tessera_runtime.errors import Unauthorized

MOST_PRESENTED = 8
"""Keys that a call to a peer carries, so that they fit into its header, and keys of one call that are looked at.
Servers learn of a changed Secret one after another: a call passes if one of these is known to both."""


class Gate:
    """The keys of one service."""

    __slots__ = ("_digests", "keys", "leaves", "refused")

    def __init__(self) -> None:
        self.keys: Keys = ()
        self.refused = 0
        """Requests without a key of it."""
        self.leaves = False
        """Whether it is there only for what still answers: one of the name that comes later has other keys."""
        self._digests: tuple[bytes, ...] = ()

    def set(self, keys: Keys) -> None:
        self.keys = keys
        self._digests = tuple(map(_digest, keys))

    def opens_to(self, keys: Keys) -> bool:
        """Whether one of ``keys`` is a key of the service."""
        found = False
        for key in keys[:MOST_PRESENTED]:
            given = _digest(key)
            for known in self._digests:
                found |= hmac.compare_digest(given, known)
        return found


class Gates:
    """Those of all services that need a key, by served name."""

    def __init__(self) -> None:
        self._gates: dict[str, Gate] = {}

    def set(
        self, needed: Mapping[str, bool], staying: Collection[str], keys: Mapping[str, Keys]
    ) -> None:
        """``needed``: by served name, whether a key is. ``staying``: services that are not wanted any more and still
        answer; they stay as they are. ``keys``: those that are new; others keep theirs.
        """
        for name in self._gates.keys() - needed.keys():
            if name in staying:
                self._gates[name].leaves = True
            else:
                del self._gates[name]
        for name, is_needed in needed.items():
            if not is_needed:
                self._gates.pop(name, None)
                continue
            gate = self._gates.get(name)
            if gate is None or gate.leaves:
                gate = self._gates[name] = Gate()
            if name in keys:
                gate.set(keys[name])

    def check(self, name: str, keys: Keys) -> None:
        """Raises Unauthorized where ``name`` needs a key that is not among ``keys``."""
        gate = self._gates.get(name)
        if gate is None or gate.opens_to(keys):
            return
        gate.refused += 1
        if not gate.keys:
            raise Unauthorized(f"model {name} has no valid key now; its ModelService says why")
        if keys:
            raise Unauthorized(f"model {name}: the key is none of its keys")
        raise Unauthorized(f'model {name} needs a key: send "Authorization: Bearer <key>"')

    def open_to(self, name: str, keys: Keys) -> bool:
        """As :meth:`check`, of a list that nobody is refused."""
        gate = self._gates.get(name)
        return gate is None or gate.opens_to(keys)

    def is_closed(self, name: str) -> bool:
        """Whether nobody can have a key of ``name``, and one is needed."""
        gate = self._gates.get(name)
        return gate is not None and not gate.keys

    def presented(self, name: str) -> Keys:
        """What calls to peers for ``name`` carry."""
        gate = self._gates.get(name)
        return gate.keys[:MOST_PRESENTED] if gate is not None else ()

    def refused(self) -> dict[str, int]:
        """Requests that were refused, by served name."""
        return {name: gate.refused for name, gate in self._gates.items()}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
