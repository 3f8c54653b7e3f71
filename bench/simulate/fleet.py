"""A whole cluster: how long its simulation takes, and how much memory, in a process of its own.

The fleet of the planner's bench: hundreds of ensembles on hundreds of boards. Every request goes to all members of its
service, so member requests are several times those of the services.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from bench.harness import Figures, Row
from bench.planner.fleet import mixed_fleet

from tessera_core.plan import plan
from tessera_core.simulate.cluster import replay
from tessera_core.simulate.devices import device_loads
from tessera_core.simulate.scenarios import scenarios
from tessera_core.simulate.traces import Gamma


@dataclass(frozen=True, slots=True)
class Fleet:
    nodes: int = 60
    services: int = 300
    requests: int = 40_000
    """Of each service."""


QUICK = Fleet(nodes=4, services=8, requests=5_000)


def fleet_rows(fleet: Fleet) -> Iterator[Row]:
    argv = [sys.executable, "-m", "bench.simulate.fleet", json.dumps(asdict(fleet))]
    root = Path(__file__).parents[2]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True)
    yield Row({"group": "fleet", "services": str(fleet.services)}, (json.loads(done.stdout),))


def simulated(fleet: Fleet) -> Figures:
    """In this process, whose peak of memory it tells."""
    state = mixed_fleet(fleet.nodes, fleet.services, seed=1)
    planned = plan(state)
    found = scenarios(planned, state)
    planned_mib = _peak_mib()
    began = time.perf_counter()
    results = []
    for scenario in found:
        rng = np.random.default_rng([1, *scenario.service.encode()])
        rate = scenario.rate_per_s
        arrivals = Gamma(scenario.burstiness).times_ms(rate, fleet.requests / rate, rng)
        results.append(replay(scenario, arrivals, rng, as_served=True).result())
    devices = device_loads(planned, state, results)
    took = time.perf_counter() - began
    requests = sum(each.requests for each in results)
    member_requests = sum(each.requests * len(each.scenario.members) for each in results)
    return {
        "seconds": took,
        "services": float(len(results)),
        "devices": float(len(devices)),
        "requests": float(requests),
        "member_requests": float(member_requests),
        "member_requests_per_s": member_requests / took,
        "peak_mib": _peak_mib(),
        "peak_mib_of_planning": planned_mib,
        "met": sum(each.met for each in results) / len(results),
    }


def _peak_mib() -> float:
    """Most memory that this program has had; unlike ru_maxrss, nothing of who started it."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(simulated(Fleet(**json.loads(sys.argv[1])))))
