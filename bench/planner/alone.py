"""One fleet planned from nothing in a process of its own, so that its peak of resident memory is its own.

``python bench/planner/alone.py NODES SERVICES SEED`` prints the figures as one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.harness import Figures
from bench.planner.fleet import GPUS_PER_NODE, mixed_fleet

from tessera_core.plan.decision import Plan
from tessera_core.plan.planner import Planner

TIMEOUT_S = 900


def planned_alone(nodes: int, services: int, seed: int) -> Figures:
    """Figures of ``fleet.mixed_fleet`` planned by a fresh interpreter.

    Raises RuntimeError with what it wrote to stderr when it fails.
    """
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, (nodes, services, seed))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    figures: Figures = json.loads(done.stdout)
    return figures


def plan_figures(plan: Plan) -> Figures:
    """What a fleet's plan came to."""
    return {
        "cost": plan.cost,
        "bound": plan.lower_bound,
        "gap_percent": plan.gap_percent,
        "used": float(sum(bool(device.assignments) for device in plan.devices)),
        "refused": float(len(plan.refused)),
        "short": float(sum(service.short is not None for service in plan.services)),
    }


def peak_mib() -> float:
    """Most memory that this process ever had resident, MiB.

    From /proc: ``getrusage`` counts what the parent had at the fork, too.
    """
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith("VmHWM:"):
            return int(row.split()[1]) / 1024
    raise RuntimeError("/proc/self/status: no VmHWM")


def _main(nodes: int, services: int, seed: int) -> Figures:
    state = mixed_fleet(nodes, services, seed)
    facts = peak_mib()
    started = perf_counter()
    plan = Planner().plan(state)
    seconds = perf_counter() - started
    return {
        "seconds": seconds,
        "peak_mib": peak_mib(),
        "facts_mib": facts,
        "services": float(services),
        "members": float(sum(len(each.spec.members) for each in state.services)),
        "boards": float(nodes * GPUS_PER_NODE),
        **plan_figures(plan),
    }


if __name__ == "__main__":
    print(json.dumps(_main(*map(int, sys.argv[1:]))))
