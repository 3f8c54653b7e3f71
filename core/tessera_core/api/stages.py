"""What a preprocessing stage is, as a document that is handled like a model file: fetched, measured and placed by its digest."""

from __future__ import annotations

import json

from tessera_core.api.errors import Report, SpecInvalid
from tessera_core.api.preprocess import Preprocess
from tessera_core.api.records import record

REVISION = 1
"""Of how stages work: another one gives other tensors or takes another time, so it is another stage."""


def to_document(preprocess: Preprocess) -> bytes:
    """The same bytes for the same stage."""
    encoded = record(Preprocess).encode(preprocess)
    document = {"revision": REVISION, "preprocess": encoded}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def from_document(document: bytes) -> Preprocess:
    """Raises ValueError, SpecInvalid among them, for what :func:`to_document` did not write or another revision did."""
    found = json.loads(document)
    if not isinstance(found, dict) or found.get("revision") != REVISION:
        raise ValueError(f"no preprocessing stage of revision {REVISION}")
    report = Report()
    preprocess = record(Preprocess).decode(found.get("preprocess"), "preprocess", report)
    if report.errors:
        raise SpecInvalid(report.errors)
    assert isinstance(preprocess, Preprocess)
    return preprocess
