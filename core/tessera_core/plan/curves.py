"""What models take on classes of parts, shared by all latency budgets that are asked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tessera_core.gpu.devices import DeviceClass
from tessera_core.perf import LatencyProfile
from tessera_core.plan.behaviour import Behaviour
from tessera_core.plan.demand import Demand
from tessera_core.plan.points import Column, columns_of

Profiles = Mapping[tuple[str, str, str], LatencyProfile]
"""By (digest, product, slice)."""


class Curves:
    """The points of models on places, in requests of a number of rows; shared by all their budgets."""

    def __init__(
        self, places: Sequence[DeviceClass], profiles: Profiles, neighbour_derate: float
    ) -> None:
        self.places = tuple(places)
        self._profiles = profiles
        self._derate = neighbour_derate
        self._columns: dict[tuple[str, int, int, int], tuple[Column, ...]] = {}
        self._behaviours: dict[tuple[object, ...], Behaviour] = {}

    def profile(self, digest: str | None, place: int) -> LatencyProfile | None:
        """The measurement of a model on ``place``, None where there is none."""
        if digest is None:
            return None
        where = self.places[place]
        return self._profiles.get((digest, where.product, where.slice))

    def behaviour(self, demand: Demand) -> Behaviour:
        """The behaviour that ``demand`` asks for."""
        key = (
            demand.digest,
            demand.rows_per_request,
            demand.batch_max,
            demand.budget_ms,
            demand.percentile,
            demand.burstiness,
        )
        found = self._behaviours.get(key)
        if found is None:
            found = self._behaviours[key] = Behaviour(self, demand)
        return found

    def columns(self, digest: str | None, place: int, rows: int, most: int) -> tuple[Column, ...]:
        """Points by instance count; those beyond the part's memory are left out."""
        if digest is None:
            return ()
        key = (digest, place, rows, most)
        if key not in self._columns:
            profile = self.profile(digest, place)
            where = self.places[place]
            self._columns[key] = (
                () if profile is None else columns_of(profile, where, rows, most, self._derate)
            )
        return self._columns[key]
