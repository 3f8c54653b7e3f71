"""ModelProfile: measured latency of one model digest on one device class. Written by the system, kept as a fact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from tessera_core.api.errors import FieldError
from tessera_core.api.members import DIGEST
from tessera_core.api.meta import CONDITIONS, TIMESTAMP, Condition, ObjectMeta, Resource
from tessera_core.api.places import PRODUCT, SLICE_KIND
from tessera_core.api.records import ListOf, Name, Record, Rule, record
from tessera_core.api.scalars import decimal, integer, milliseconds, number, text
from tessera_core.api.tuning import VARIANT, TuningStatus
from tessera_core.gpu.devices import DeviceClass
from tessera_core.perf.profile import LinearFit, ProfileRow

DEVICE_CLASS = Record(
    DeviceClass,
    product=Annotated[str, PRODUCT],
    slice=Annotated[str, SLICE_KIND],
    sm_count=Annotated[int, integer(0, 65536)],
    memory_mib=Annotated[int, integer(1), Name("memoryMiB")],
)
ROW = Record(
    ProfileRow,
    batch=Annotated[int, integer(1, 65536)],
    instances=Annotated[int, integer(1, 1024)],
    p50_ms=Annotated[float, milliseconds(), Name("p50")],
    p99_ms=Annotated[float, milliseconds(), Name("p99")],
    throughput=Annotated[float, number(least=0)],
    memory_mib=Annotated[float, number(least=0), Name("memoryMiB")],
)
FIT = Record(
    LinearFit,
    alpha_ms=Annotated[float, decimal()],
    tau0_ms=Annotated[float, decimal()],
    r2=Annotated[float, decimal(most=1)],
)


def _cpu_slices_on_cpu(spec: ModelProfileSpec) -> Iterator[FieldError]:
    device = spec.device_class
    if device.is_cpu != device.slice.startswith("cpu-"):
        allowed = '"cpu-N" with product cpu, and only there'
        yield FieldError("deviceClass.slice", repr(device.slice), allowed)


@dataclass(frozen=True, slots=True)
class ModelProfileSpec:
    """What was measured. Immutable: another driver, engine or variant is another profile."""

    RULES: ClassVar[tuple[Rule, ...]] = (_cpu_slices_on_cpu,)

    model_digest: Annotated[str, DIGEST]
    device_class: Annotated[DeviceClass, DEVICE_CLASS]
    engine: Annotated[str, text(128)]
    """Name and version, e.g. ``torch 2.8.0``."""
    driver: Annotated[str | None, text(128)] = None
    """Version of the device's driver; absent on a CPU."""
    variant: Annotated[str, VARIANT] = ""
    """Of the model; empty: as it is loaded."""


@dataclass(frozen=True, slots=True)
class Drift:
    """What batches take where the model runs, over what was measured, once that has lasted."""

    ratio: Annotated[float, decimal(above=0, example="1.5")]
    """2: twice as long. Plans count with it where it is above 1."""
    since: Annotated[str | None, TIMESTAMP] = None
    """When it was recorded."""
    nodes: Annotated[int, integer()] = 0
    """That reported it then; the ratio is their median."""


@dataclass(frozen=True, slots=True)
class ModelProfileStatus:
    """The measured cells, the line through them, and how far they are from what batches take now."""

    conditions: Annotated[tuple[Condition, ...], CONDITIONS] = ()
    rows: Annotated[tuple[ProfileRow, ...], ListOf(ROW, most=1024)] = ()
    fit: Annotated[LinearFit | None, FIT] = None
    drift: Annotated[Drift | None, record(Drift)] = None
    """Absent: batches take about what was measured."""
    tuning: Annotated[TuningStatus | None, record(TuningStatus)] = None
    """Of the profile without a variant: which variants were tried; absent: nobody has asked for any."""


@dataclass(frozen=True, slots=True)
class ModelProfile(Resource):
    """Latency of one model on one kind of device."""

    KIND: ClassVar[str] = "ModelProfile"

    metadata: ObjectMeta
    spec: ModelProfileSpec
    status: ModelProfileStatus = ModelProfileStatus()
