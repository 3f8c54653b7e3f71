"""A fleet over a year: thousands of services on thousands of GPUs, under one policy for capacity after another.

    description → services, rates → tables (covers, attainment) → a policy's year, slot by slot → figures

Time goes in slots of minutes. Within a slot a service's rate is constant and its queues are in their steady state, so what
a slot costs and how many requests it serves in time are looked up. ``checked`` simulates a sample of slots request by
request, which says how far the look-up can be trusted.
"""

from tessera_core.simulate.fleet.facts import Fleet, fleet_from_dict
from tessera_core.simulate.fleet.policies import POLICIES, PolicyKind
from tessera_core.simulate.fleet.year import Year, simulate_years

__all__ = ["POLICIES", "Fleet", "PolicyKind", "Year", "fleet_from_dict", "simulate_years"]
