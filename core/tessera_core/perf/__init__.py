"""Performance: measured latency profiles and the batch-queue model that predicts latency under load."""

from tessera_core.perf.capacity import (
    FULLEST_LOAD,
    latency_percentile,
    max_rate,
    mean_latency,
    utilisation,
)
from tessera_core.perf.counters import Counters
from tessera_core.perf.energy import EnergyModel, joules_per_row
from tessera_core.perf.ensemble import (
    member_percentile,
    members_waited_for,
    quorum_probability,
)
from tessera_core.perf.health import ModelHealth, Unmet, model_health
from tessera_core.perf.profile import LatencyProfile, LinearFit, Neighbours, ProfileRow
from tessera_core.perf.service import ServiceModel
from tessera_core.perf.shared_queue import Server, shared_latency, shared_rate

__all__ = [
    "FULLEST_LOAD",
    "Counters",
    "EnergyModel",
    "LatencyProfile",
    "LinearFit",
    "ModelHealth",
    "Neighbours",
    "ProfileRow",
    "Server",
    "ServiceModel",
    "Unmet",
    "joules_per_row",
    "latency_percentile",
    "max_rate",
    "mean_latency",
    "member_percentile",
    "members_waited_for",
    "model_health",
    "quorum_probability",
    "shared_latency",
    "shared_rate",
    "utilisation",
]
