"""What a node is asked to find out about models, and what it found: latency of a model, and whether variants are faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tessera_core.api.members import DIGEST
from tessera_core.api.meta import LABEL
from tessera_core.api.modelprofile import DEVICE_CLASS, ROW
from tessera_core.api.places import DEVICE_ID, SLICE_NAME
from tessera_core.api.records import ListOf, record
from tessera_core.api.scalars import decimal, matching, text
from tessera_core.api.tuning import MOST_VARIANTS, VARIANT, Outcome
from tessera_core.gpu.devices import DeviceClass
from tessera_core.perf.profile import ProfileRow

SERVED_NAME = matching(
    r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?",
    'a served name "<namespace>.<name>"',
    127,
)
MOST_TASKS = 64
"""Of tuning, of one node."""


@dataclass(frozen=True, slots=True)
class ProfilingTask:
    """A member to measure on a slice of a device."""

    service: Annotated[str, SERVED_NAME]
    member: Annotated[str, LABEL]
    device: Annotated[str, DEVICE_ID]
    slice: Annotated[str, SLICE_NAME]
    variant: Annotated[str, VARIANT] = ""


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """What became of a profiling task; kept until the task is taken back."""

    service: Annotated[str, SERVED_NAME]
    member: Annotated[str, LABEL]
    model_digest: Annotated[str | None, DIGEST] = None
    """Absent: the model could not be fetched."""
    device_class: Annotated[DeviceClass | None, DEVICE_CLASS] = None
    engine: Annotated[str | None, text(128)] = None
    driver: Annotated[str | None, text(128)] = None
    variant: Annotated[str, VARIANT] = ""
    rows: Annotated[tuple[ProfileRow, ...], ListOf(ROW, most=1024)] = ()
    problem: Annotated[str, text(1024)] = ""
    """Why there are no rows."""


@dataclass(frozen=True, slots=True)
class TuningTask:
    """Variants of a member to try, one after another, on a slice of a device that nothing else uses meanwhile."""

    service: Annotated[str, SERVED_NAME]
    member: Annotated[str, LABEL]
    device: Annotated[str, DEVICE_ID]
    slice: Annotated[str, SLICE_NAME]
    variants: Annotated[tuple[str, ...], ListOf(VARIANT, 1, MOST_VARIANTS)]
    tolerance: Annotated[float, decimal(above=0, example="1e-2")]
    """Largest difference of an output, relative to its scale, for which a variant's speed is measured at all."""


@dataclass(frozen=True, slots=True)
class TuningResult:
    """What became of a tuning task so far; kept until its variants are taken back."""

    service: Annotated[str, SERVED_NAME]
    member: Annotated[str, LABEL]
    device: Annotated[str, DEVICE_ID]
    slice: Annotated[str, SLICE_NAME]
    model_digest: Annotated[str | None, DIGEST] = None
    """Absent: the model could not be fetched."""
    outcomes: Annotated[
        tuple[Outcome, ...], ListOf(record(Outcome), most=MOST_VARIANTS, key="variant")
    ] = ()
    trying: Annotated[str, VARIANT] = ""
    """Under way now; empty: none."""
    problem: Annotated[str, text(1024)] = ""
    """Why nothing can be tried."""
