"""Simulation: seeded, deterministic replay of arrivals through batching queues, without a clock."""

from tessera_core.simulate.ensemble import simulate_ensemble
from tessera_core.simulate.station import Served, Station, simulate

__all__ = ["Served", "Station", "simulate", "simulate_ensemble"]
