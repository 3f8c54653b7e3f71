"""What the operator wrote, as the API server's audit log has it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

Object = tuple[str, str, str, str]
"""(resource, subresource, namespace, name)."""
_WRITES = ["create", "update", "patch", "delete"]


@dataclass(frozen=True, slots=True)
class Write:
    """One request that was to change an object."""

    at_s: float
    """When it was answered; Unix time."""
    verb: str
    target: Object
    code: int
    version: str
    """Of the object after it: its generation where the spec was written, else its resource version."""


def policy(user: str) -> str:
    """Everything that ``user`` writes, with the answers; nothing of others. Leases are signs of life."""
    rules = [
        {"level": "None", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}]},
        {"level": "RequestResponse", "users": [user], "verbs": _WRITES, "omitManagedFields": True},
        {"level": "None"},
    ]
    return json.dumps(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": rules,
        }
    )


class Log:
    """An audit log that is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def end(self) -> int:
        """Where it ends now; ``since`` reads from there on."""
        return self._path.stat().st_size if self._path.exists() else 0

    def since(self, start: int) -> tuple[Write, ...]:
        """Writes that were logged after ``start``."""
        with self._path.open("rb") as file:
            file.seek(start)
            return tuple(_write(json.loads(line)) for line in file if line.endswith(b"\n"))


def in_vain(writes: Iterable[Write]) -> Iterator[Write]:
    """Those that left the object as the write to it before had left it."""
    last: dict[Object, str] = {}
    for each in writes:
        if each.version and last.get(each.target) == each.version:
            yield each
        last[each.target] = each.version


def _write(event: dict[str, object]) -> Write:
    reference, status, answer = (
        event[name] if isinstance(event.get(name), dict) else {}
        for name in ("objectRef", "responseStatus", "responseObject")
    )
    assert isinstance(reference, dict)
    assert isinstance(status, dict)
    assert isinstance(answer, dict)
    subresource = reference.get("subresource", "")
    metadata = answer.get("metadata", {})
    # Others write the status of what the operator writes the spec of; of pods it writes neither, but annotations.
    whole = subresource or reference.get("resource") == "pods"
    version = "" if whole else metadata.get("generation", "")
    name = reference.get("name") or metadata.get("name", "")
    at = datetime.fromisoformat(str(event["stageTimestamp"]))
    return Write(
        at.timestamp(),
        str(event["verb"]),
        (reference.get("resource", ""), subresource, reference.get("namespace", ""), name),
        status.get("code", 0),
        str(version or metadata.get("resourceVersion", "")),
    )
