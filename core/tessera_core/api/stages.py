"""A preprocessing stage as a member of its service: its document is handled like a model file, so that it is cached,
measured and placed like the models that wait for what it makes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import lru_cache

from tessera_core.api.errors import Report, SpecInvalid
from tessera_core.api.members import Batch, Member, Model, ModelFormat
from tessera_core.api.preprocess import Preprocess
from tessera_core.api.records import record

STAGE = "preprocess"
"""Name of the member."""
SCHEME = "stage"
"""Of the URI that holds the document itself, in URL-safe base 64. Documents of users cannot have it."""
MOST_ROWS = 64
"""Of a batch of a stage: media are decoded one after the other, so more gain nothing, but requests may have that many."""
REVISION = 1
"""Of how stages work: another one gives other tensors or takes another time, so it is another stage."""


@lru_cache(maxsize=4096)
def stage_of(preprocess: Preprocess) -> Member:
    """The member that does it."""
    document = to_document(preprocess)
    digest = f"sha256:{hashlib.sha256(document).hexdigest()}"
    uri = f"{SCHEME}://{base64.urlsafe_b64encode(document).decode()}"
    return Member(STAGE, Model(uri, ModelFormat.PREPROCESS, digest), batch=Batch(MOST_ROWS))


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
