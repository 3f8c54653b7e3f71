"""How many rows per second a cell carries within its member's latency budget.

The answer comes from the measured profile and the queue model. Three things are added here:

Requests of several rows. A request of k rows is late when its last row is. Its rows stay together, so the
queue is solved in requests: a batch of at most cap // k requests, k rows' worth of time each.

Several members on one part (``blocking_ms``). They take turns: between two batches of one member every other
one may run a full batch. So a member sees each of its batches lengthened by one full batch of every other
member there. This is the worst case of a round robin, hence safe: it cannot promise more than the part has,
because in one such round each member is credited with no more than the one batch it runs. Kernels that
overlap do better; an interference term measured per pair of members would replace ``blocking_ms`` alone.

Several parts for one member. Each is a queue with its share of a Poisson stream, which is Poisson again, so
their rates add up. One shared queue does better and never worse.

Rates are integers, thousandths of a row per second, rounded down: sums do not depend on their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, inf

from tessera_core.gpu.devices import DeviceClass
from tessera_core.perf import (
    LatencyProfile,
    Neighbours,
    ServiceModel,
    latency_percentile,
    max_rate,
)
from tessera_core.plan.demand import Demand
from tessera_core.plan.matrix import Cell, Part

MILLI = 1000
"""Rates inside the search are rows per second times this."""
_BLOCKING_STEPS = 32
"""Blocking is rounded up to this fraction of the latency budget, so that few different queues are solved."""
_AS_GOOD = 0.99
"""Rates this close to the best are ties: closer than the measurement is exact."""

Profiles = Mapping[tuple[str, str, str], LatencyProfile]
"""By (digest, product, slice)."""


def per_request(service: ServiceModel, rows: int) -> ServiceModel:
    """The same server seen by requests of ``rows`` rows; rates are then requests per second.

    Where a request exceeds the cap it takes several batches, and no two requests share one.
    """
    cap = service.cap
    if rows == 1:
        return service
    if cap is not None and cap < rows:
        whole = ceil(rows / cap) * service.batch_ms(cap)
        return replace(service, alpha_ms=whole, tau0_ms=0.0, cap=1)
    return replace(
        service, alpha_ms=service.alpha_ms * rows, cap=None if cap is None else cap // rows
    )


class Predictor:
    """Rates, latencies and memory of cells; remembers what it has solved.

    Members are indices into ``demands``. Pure as far as a caller can see: equal questions get equal answers.
    """

    def __init__(
        self, demands: Sequence[Demand], profiles: Profiles, neighbour_derate: float
    ) -> None:
        self._demands = demands
        self._profiles = profiles
        self._derate = neighbour_derate
        self._services: dict[tuple[Cell, DeviceClass], ServiceModel] = {}
        self._cells: dict[tuple[int, DeviceClass], tuple[Cell, ...]] = {}
        self._best: dict[tuple[int, DeviceClass], Cell | None] = {}
        self._rates: dict[Part, tuple[int, ...]] = {}
        self._memory: dict[Part, int] = {}

    def profile(self, member: int, place: DeviceClass) -> LatencyProfile | None:
        """The measurement of ``member`` on ``place``, None where there is none."""
        digest = self._demands[member].digest
        if digest is None:
            return None
        return self._profiles.get((digest, place.product, place.slice))

    def cells(self, member: int, place: DeviceClass) -> tuple[Cell, ...]:
        """Every cell worth trying: measured batch sizes up to the bound × measured instance counts."""
        key = (member, place)
        if key not in self._cells:
            profile = self.profile(member, place)
            found: list[Cell] = []
            if profile is not None:
                most = self._demands[member].batch_max
                for instances in profile.instance_counts:
                    batches = {row.batch for row in profile.cells(instances)}
                    caps = {batch for batch in batches if batch < most} | {min(most, max(batches))}
                    found += (Cell(member, cap, instances) for cap in sorted(caps))
            self._cells[key] = tuple(found)
        return self._cells[key]

    def best(self, member: int, place: DeviceClass) -> Cell | None:
        """The cell with the highest rate when ``member`` has ``place`` to itself; of ties the smallest.

        None without a profile, or when no cell fits the memory and the latency budget.
        """
        key = (member, place)
        if key not in self._best:
            self._best[key] = self._find_best(member, place)
        return self._best[key]

    def _find_best(self, member: int, place: DeviceClass) -> Cell | None:
        fitting = [
            cell
            for cell in self.cells(member, place)
            if self.memory_mib(Part(place, (cell,))) <= place.memory_mib
        ]
        # The most that a cell could carry without any latency bound decides the order: once that is below
        # the best rate found, no queue needs to be solved any more.
        fitting.sort(key=lambda cell: (-self.service(cell, place).capacity_per_s, cell))
        rates: dict[Cell, int] = {}
        top = 0
        for cell in fitting:
            if self.service(cell, place).capacity_per_s * MILLI < top:
                break
            rates[cell] = self.rates(Part(place, (cell,)))[0]
            top = max(top, rates[cell])
        if top == 0:
            return None
        ties = [cell for cell, rate in rates.items() if rate >= _AS_GOOD * top]
        return min(ties, key=lambda cell: (self.memory_mib(Part(place, (cell,))), cell))

    def service(self, cell: Cell, place: DeviceClass) -> ServiceModel:
        """Batch times of ``cell`` in rows, alone on ``place``, other parts of the device being busy."""
        key = (cell, place)
        if key not in self._services:
            profile = self.profile(cell.member, place)
            assert profile is not None, f"{cell} was made without a profile of {place}"
            around = Neighbours.BUSY if place.is_mig else Neighbours.IDLE
            service = profile.service(cell.cap, cell.instances, around)
            if place.is_mig and all(row.neighbours is Neighbours.IDLE for row in profile.rows):
                service = service.scaled(self._derate)
            self._services[key] = service
        return self._services[key]

    def memory_mib(self, part: Part) -> int:
        """Device memory of everything in ``part``, MiB, rounded up per member."""
        if part not in self._memory:
            self._memory[part] = sum(self._cell_memory(cell, part.place) for cell in part.cells)
        return self._memory[part]

    def _cell_memory(self, cell: Cell, place: DeviceClass) -> int:
        profile = self.profile(cell.member, place)
        assert profile is not None, f"{cell} was made without a profile of {place}"
        rows = profile.cells(cell.instances)
        # Buffers exist for every batch size up to the cap, so the largest of them counts.
        within = [row.memory_mib for row in rows if row.batch <= cell.cap]
        return ceil(max(within, default=min(row.memory_mib for row in rows)))

    def rates(self, part: Part) -> tuple[int, ...]:
        """Rows/s × ``MILLI`` that each cell of ``part`` carries within its budget, in the order of cells."""
        if part not in self._rates:
            self._rates[part] = tuple(self._rate(cell, part) for cell in part.cells)
        return self._rates[part]

    def _rate(self, cell: Cell, part: Part) -> int:
        demand = self._demands[cell.member]
        if demand.budget_ms <= 0:
            return 0
        requests = max_rate(
            self._queue(cell, part), demand.budget_ms, demand.percentile, demand.burstiness
        )
        return int(requests * demand.rows_per_request * MILLI)

    def latency_ms(self, cell: Cell, part: Part, rows_per_s: float) -> float:
        """Latency at the member's percentile when ``cell`` gets ``rows_per_s``, ms; ``inf`` if unstable."""
        demand = self._demands[cell.member]
        rate = rows_per_s / demand.rows_per_request
        return latency_percentile(
            self._queue(cell, part), rate, demand.percentile, demand.burstiness
        )

    def least_latency_ms(self, member: int, place: DeviceClass) -> float:
        """The member's percentile on an idle ``place``, ms: no plan gets below; ``inf`` without a cell."""
        return min(
            (
                self.latency_ms(cell, Part(place, (cell,)), 0.0)
                for cell in self.cells(member, place)
            ),
            default=inf,
        )

    def _queue(self, cell: Cell, part: Part) -> ServiceModel:
        service = self.service(cell, part.place)
        blocking = self.blocking_ms(cell, part)
        if blocking:
            service = replace(service, tau0_ms=service.tau0_ms + blocking)
        return per_request(service, self._demands[cell.member].rows_per_request)

    def blocking_ms(self, cell: Cell, part: Part) -> float:
        """Time that the other members of ``part`` may add to each batch of ``cell``, ms."""
        others = sum(
            self.service(other, part.place).batch_ms(other.cap)
            for other in part.cells
            if other.member != cell.member
        )
        step = max(self._demands[cell.member].budget_ms, 1e-3) / _BLOCKING_STEPS
        return ceil(others / step) * step
