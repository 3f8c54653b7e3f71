"""The members of an ensemble: which model, where from, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from tessera_core.api.meta import LABEL, NameRef
from tessera_core.api.scalars import Choice, decimal, integer, matching

DIGEST = matching(r"sha256:[0-9a-f]{64}", '"sha256:" and 64 lower-case hexadecimal digits', 71)
SCHEMES = ("s3", "gs", "az", "hf", "http", "https", "oci", "file")
# No "@" before the path: credentials belong in a Secret, and a URI is copied into logs and status.
MODEL_URI = matching(
    rf"(?:{'|'.join(SCHEMES)})://[^\s/@]*(?:/[^\s]*)?",
    f"a URI without user and password, of one of the schemes {', '.join(SCHEMES)}",
    2048,
)


class ModelFormat(StrEnum):
    """What a model file is.

    TorchExport and ONNX are graphs: data. TorchScript and Python run code of their author's choice. Preprocess is no
    user's to write: the document of a stage (``stages.py``).
    """

    TORCH_EXPORT = "TorchExport"
    TORCH_SCRIPT = "TorchScript"
    ONNX = "ONNX"
    PYTHON = "Python"
    PREPROCESS = "Preprocess"

    @property
    def is_code(self) -> bool:
        return self in (ModelFormat.TORCH_SCRIPT, ModelFormat.PYTHON)


@dataclass(frozen=True, slots=True)
class Model:
    """Where a member's model comes from."""

    uri: Annotated[str, MODEL_URI]
    """A ``file`` URI may be relative (``file://./cnn.pt2``): to the document that holds it."""
    format: Annotated[ModelFormat, Choice(ModelFormat, frozenset({ModelFormat.PREPROCESS}))]
    digest: Annotated[str | None, DIGEST] = None
    """Checked after the download; absent: whatever is there, and its digest is reported."""
    secret_ref: NameRef | None = None
    """Credentials for ``uri``, in the ModelService's namespace."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Bounds for the batch size that the system picks."""

    max: Annotated[int, integer(1, 4096)] = 64
    """Rows."""


@dataclass(frozen=True, slots=True)
class Member:
    """One model of the ensemble."""

    name: Annotated[str, LABEL]
    model: Model
    weight: Annotated[float | None, decimal(above=0)] = None
    """Share in WeightedMean and WeightedVote; weights need not sum to 1."""
    required: bool = True
    """False: an answer may lack it when it failed, and under ``onTimeout: Partial`` also when it is late."""
    batch: Batch = Batch()
    profile_ref: NameRef | None = None
    """A ModelProfile to use; absent: the system measures."""
