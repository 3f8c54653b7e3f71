"""Tuning in the documents: what a ModelService allows, what nodes try, and what became of it.

A *variant* is another way to run the very same model file: a compiler, an arithmetic, options. Its name is one bounded
string, which :mod:`tessera_core.tuning.variants` reads; the empty one is the model as it is loaded. Documents carry names:
what is compiled is made on the node that runs it, and never leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from tessera_core.api.members import DIGEST
from tessera_core.api.meta import TIMESTAMP
from tessera_core.api.places import PRODUCT, SLICE_KIND
from tessera_core.api.records import ListOf, record
from tessera_core.api.scalars import Choice, decimal, integer, matching, text
from tessera_core.tuning.verdict import Reason

__all__ = [
    "MOST_VARIANTS",
    "NO_TUNING",
    "VARIANT",
    "FallenBack",
    "Outcome",
    "Precision",
    "Quarantined",
    "Reason",
    "Tuning",
    "TuningMode",
    "TuningPhase",
    "TuningStatus",
]

MOST_VARIANTS = 64
"""Of one model on one device class."""
VARIANT = matching(
    r"(?:[a-z0-9]{1,16}/[a-z0-9]{1,8}(?:/[a-z0-9=,._-]{1,70})?)?",
    'a variant such as "openvino/bf16", or nothing for the model as it is loaded',
    96,
)


class TuningMode(StrEnum):
    """Whether faster variants of a model may replace it where their outputs stay within the tolerance."""

    OFF = "Off"
    AUTO = "Auto"


class Precision(StrEnum):
    """Arithmetic that tuning may try."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True)
class Tuning:
    """Which faster variants of the models may be used."""

    mode: TuningMode = TuningMode.OFF
    precisions: Annotated[tuple[Precision, ...], ListOf(Choice(Precision), 1, len(Precision))] = (
        Precision.FP32,
    )
    tolerance: Annotated[float, decimal(above=0, example="1e-2")] = 1e-2
    """Largest difference of an output from the untuned model's, relative to its scale."""


NO_TUNING = Tuning()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found of one variant, beside the untuned model on the same share of the same device."""

    variant: Annotated[str, VARIANT]
    verdict: Reason
    error: Annotated[float | None, decimal(least=0)] = None
    """Largest difference of an output, relative to its scale; absent: nothing was computed."""
    p99_ratio: Annotated[float | None, decimal(above=0, example="0.8")] = None
    """Its p99 over the untuned model's, at the share that serves; absent: not measured."""
    throughput_ratio: Annotated[float | None, decimal(above=0, example="1.2")] = None
    """Its rows per second over the untuned model's; absent: not measured."""
    message: Annotated[str, text(1024)] = ""
    """In words."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A variant that is not used although it was faster: it failed where it served."""

    variant: Annotated[str, VARIANT]
    reason: Annotated[str, text(1024)]
    since: Annotated[str | None, TIMESTAMP] = None


class TuningPhase(StrEnum):
    """How far the tuning of one model on one device class is."""

    PENDING = "Pending"
    """Nothing that it could be tried on is free."""
    TUNING = "Tuning"
    TUNED = "Tuned"
    """Every variant was tried."""
    CANCELLED = "Cancelled"
    """Not all were, and nobody wants it any more."""
    FAILED = "Failed"
    """Every variant was tried, and none could be built or run."""


@dataclass(frozen=True, slots=True)
class TuningStatus:
    """Of one model on one device class. What a service may use of it depends on the service: see ``Tuning``."""

    phase: TuningPhase
    done: Annotated[int, integer(0, MOST_VARIANTS)] = 0
    """Variants that were tried, of ``total``."""
    total: Annotated[int, integer(0, MOST_VARIANTS)] = 0
    promoted: Annotated[str, VARIANT] = ""
    """The fastest that some service uses; empty: none."""
    outcomes: Annotated[
        tuple[Outcome, ...], ListOf(record(Outcome), most=MOST_VARIANTS, key="variant")
    ] = ()
    quarantined: Annotated[
        tuple[Quarantined, ...], ListOf(record(Quarantined), most=MOST_VARIANTS, key="variant")
    ] = ()
    again: Annotated[str, text(128)] = ""
    """The value of the annotation ``tessera.dev/tune-again`` for which all was tried anew."""


@dataclass(frozen=True, slots=True)
class FallenBack:
    """A variant that a node no longer runs by its own decision, until it is told another one."""

    model_digest: Annotated[str, DIGEST]
    product: Annotated[str, PRODUCT]
    slice: Annotated[str, SLICE_KIND]
    variant: Annotated[str, VARIANT]
    reason: Annotated[str, text(1024)]
