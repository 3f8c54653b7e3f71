"""What a fleet is: pools of GPUs, groups of services, how it is controlled, what fails.

Services are described by groups and drawn from ranges, as nobody writes thousands of them. Everything drawn follows from
``seed``. Times that something takes are facts of the fleet, the same for every policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar

from tessera_core.api import FieldError, SpecInvalid
from tessera_core.api.errors import Report
from tessera_core.api.meta import LABEL
from tessera_core.api.records import ListOf, Name, record
from tessera_core.api.scalars import decimal, duration, integer, matching, milliseconds
from tessera_core.gpu.mig import GpuModel
from tessera_core.gpu.tables import MODELS, model_of

MOST_GPUS, MOST_SERVICES, MOST_SLOTS = 100_000, 20_000, 400_000
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Range:
    """A quantity that is drawn for each service, evenly in its logarithm."""

    low: Annotated[float, decimal(above=0, most=1e6, example="2.5"), Name("from")]
    high: Annotated[float, decimal(above=0, most=1e6, example="2.5"), Name("to")]

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"from is at most to, found {self.low:g} and {self.high:g}")


@dataclass(frozen=True, slots=True)
class Targets:
    """A latency that is drawn for each service, evenly in its logarithm, ms."""

    low: Annotated[float, milliseconds(), Name("from")]
    high: Annotated[float, milliseconds(), Name("to")]

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(
                f"from is above 0 and at most to, found {self.low:g} and {self.high:g}"
            )


@dataclass(frozen=True, slots=True)
class Pool:
    """GPUs of one product that may be cut."""

    name: Annotated[str, LABEL]
    product: Annotated[str, matching(r"[A-Za-z0-9._-]+", "an NVML product name as a label", 63)]
    gpus: Annotated[int, integer(1, MOST_GPUS)]
    cost_per_gpu_hour: Annotated[float, decimal(above=0, most=1e4, example="3.0")]
    speed_per_sm: Annotated[
        float, decimal(above=0, most=100, example="1.6"), Name("speedPerSM")
    ] = 1.0
    """An A100's is 1."""
    gpus_per_node: Annotated[int, integer(1, 64)] = 8
    recut_at_once: Annotated[int, integer(1, MOST_GPUS)] = 64
    """GPUs that may be drained and cut at the same time: the pool's disruption budget."""

    @property
    def model(self) -> GpuModel:
        found = model_of(self.product)
        assert found is not None, "checked by Fleet"
        return found


@dataclass(frozen=True, slots=True)
class Bursts:
    """Times in which a service has several times its usual rate."""

    per_week: Annotated[float, decimal(least=0, most=1000, example="3.5")] = 2.0
    height: Range = Range(1.5, 4.0)
    """Rate within one, in multiples of the rate without."""
    minutes: Range = Range(5.0, 60.0)


@dataclass(frozen=True, slots=True)
class Group:
    """Services that are alike, of one member each."""

    name: Annotated[str, LABEL]
    pool: Annotated[str, LABEL]
    count: Annotated[int, integer(1, MOST_SERVICES)]
    requests_per_second: Range
    """In the mean over a day at the start, without bursts."""
    target: Targets
    row_ms: Range
    """What a row adds to a batch on a whole A100, ms: alpha."""
    batch_ms: Range
    """What every batch takes there whatever its rows, ms: tau0."""
    percent: Annotated[float, decimal(least=90, most=99.9, example="99")] = 99.0
    """Of the requests, that have to be answered within the target."""
    burstiness: Range = Range(1.0, 1.0)
    """Squared variation of the gaps between requests within a slot; 1 is Poisson."""
    swing: Range = Range(0.3, 0.8)
    """Of a day: it is between (1 - swing) and (1 + swing) times its mean. At most 1."""
    peak_hour: Annotated[float, decimal(least=0, most=24, example="14")] = 12.0
    """Of the day, by one clock for the whole fleet, in the mean of the services."""
    peak_spread: Annotated[float, decimal(least=0, most=12, example="3")] = 12.0
    """Hours that a service's own may be earlier or later; 12: anywhere in the day, as of services all over the world."""
    weekend: Range = Range(0.4, 1.0)
    """Rate on Saturdays and Sundays, in multiples of other days'."""
    growth: Range = Range(1.0, 1.0)
    """Rate at the end over that at the start."""
    bursts: Bursts = Bursts()


@dataclass(frozen=True, slots=True)
class Control:
    """How capacity follows the rate. The defaults are the operator's, and times of the size that are seen in its tests."""

    headroom: Annotated[float, decimal(least=1, most=10, example="1.2")] = 1.2
    """Capacity that is planned, as a multiple of the rate."""
    slack: Annotated[float, decimal(least=0, most=1, example="0.1")] = 0.1
    """Share of its capacity that a lower rate must leave unused before any is taken away."""
    peak_s: Annotated[float, duration(above=0), Name("peakWindow")] = 600.0
    """For which a peak counts."""
    observe_s: Annotated[float, duration(above=0), Name("observe")] = 90.0
    """From a higher rate to a plan for it: a minute counted, half of one until it is reported."""
    load_s: Annotated[float, duration(above=0), Name("load")] = 60.0
    """From a plan to an instance that answers, on a slice that is there: fetch, load, warm."""
    recut_s: Annotated[float, duration(above=0), Name("recut")] = 90.0
    """Draining what the GPU still has, cutting it, starting a server on it."""
    hpa_targets: Annotated[
        tuple[float, ...],
        ListOf(decimal(above=0, most=0.95, example="0.7"), 1, 8),
        Name("hpaTargets"),
    ] = (0.7,)
    """Busy share of its GPUs that an HPA keeps, one policy for each."""
    hpa_stabilisation_s: Annotated[float, duration(above=0), Name("hpaStabilisation")] = 300.0
    """For which the most replicas that were wanted stay: the default of Kubernetes."""
    hpa_observe_s: Annotated[float, duration(above=0), Name("hpaObserve")] = 45.0
    """Its period of 15 s, and half a minute until the metric is there."""


@dataclass(frozen=True, slots=True)
class Failures:
    """What breaks. The rates are those of 16,384 H100s over 54 days (Llama 3, arXiv 2407.21783, table 5): 268 unexpected
    interruptions by GPUs, of 884,736 GPU days, and 88 by hosts and network, of 110,592 node days.
    """

    gpu_per_thousand_days: Annotated[float, decimal(least=0, most=1000, example="0.3")] = 0.303
    node_per_thousand_days: Annotated[float, decimal(least=0, most=1000, example="0.8")] = 0.796
    detect_s: Annotated[float, duration(above=0), Name("detect")] = 60.0
    """From a failure to a plan without what failed."""
    repair_s: Annotated[float, duration(above=0), Name("repair")] = DAY_S
    """Until it is back; assumed, not measured."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """All of it."""

    pools: Annotated[tuple[Pool, ...], ListOf(record(Pool), 1, 16, "name")]
    services: Annotated[tuple[Group, ...], ListOf(record(Group), 1, 64, "name")]
    control: Control = Control()
    failures: Failures = Failures()
    horizon_s: Annotated[float, duration(above=0), Name("horizon")] = 365 * DAY_S
    slot_s: Annotated[float, duration(above=0, most=3600), Name("slot")] = 300.0
    seed: Annotated[int, integer()] = 0

    RULES: ClassVar[tuple[Callable[[Fleet], Iterable[FieldError]], ...]]

    @property
    def slots(self) -> int:
        return ceil(self.horizon_s / self.slot_s - 1e-9)

    @property
    def count(self) -> int:
        """Of services."""
        return sum(group.count for group in self.services)


def _known_pools(fleet: Fleet) -> Iterator[FieldError]:
    names = [pool.name for pool in fleet.pools]
    for index, group in enumerate(fleet.services):
        if group.pool not in names:
            yield FieldError(f"services[{index}].pool", repr(group.pool), ", ".join(names))


def _known_products(fleet: Fleet) -> Iterator[FieldError]:
    for index, pool in enumerate(fleet.pools):
        if model_of(pool.product) is None:
            known = ", ".join(model.products[0] for model in MODELS)
            yield FieldError(f"pools[{index}].product", repr(pool.product), f"such as {known}")


def _bounded(fleet: Fleet) -> Iterator[FieldError]:
    for path, found, most in (
        ("services", fleet.count, MOST_SERVICES),
        ("pools", sum(pool.gpus for pool in fleet.pools), MOST_GPUS),
        ("horizon", fleet.slots, MOST_SLOTS),
    ):
        if found > most:
            what = {"services": "services", "pools": "GPUs", "horizon": "slots"}[path]
            yield FieldError(path, f"{found} {what}", f"at most {most} in all")


def _swings(fleet: Fleet) -> Iterator[FieldError]:
    for index, group in enumerate(fleet.services):
        if group.swing.high > 1:
            yield FieldError(f"services[{index}].swing.to", f"{group.swing.high:g}", "at most 1")
        if group.burstiness.low < 1:
            path = f"services[{index}].burstiness.from"
            yield FieldError(path, f"{group.burstiness.low:g}", "at least 1")


def _quick_enough(fleet: Fleet) -> Iterator[FieldError]:
    """A slot holds what follows a change in it but waiting for cuts: what goes is paid until its end at most."""
    control = fleet.control
    for path, seconds in (
        ("control", control.observe_s + control.load_s),
        ("control", control.hpa_observe_s + control.load_s),
        ("failures", fleet.failures.detect_s + control.load_s),
    ):
        if seconds > fleet.slot_s:
            found = f"{seconds:g} s until an instance more answers"
            yield FieldError(path, found, f"at most a slot, {fleet.slot_s:g} s; make it longer")


def _windows_of_a_day(fleet: Fleet) -> Iterator[FieldError]:
    if fleet.control.peak_s > DAY_S or fleet.control.hpa_stabilisation_s > DAY_S:
        yield FieldError("control", "a window above a day", "windows of at most 24h")


Fleet.RULES = (
    _known_pools,
    _known_products,
    _bounded,
    _swings,
    _quick_enough,
    _windows_of_a_day,
)


def fleet_from_dict(document: object) -> Fleet:
    """Read a fleet; raises SpecInvalid with every error, each naming its field."""
    report = Report()
    fleet = record(Fleet).decode(document, "", report)
    if report.errors:
        raise SpecInvalid(report.errors)
    assert isinstance(fleet, Fleet)
    return fleet
