"""What is served: seeded ensembles of forty model families for whole H100s, and profiles that make measuring needless.

SYNTHETIC, as the fleet that the planner is measured with, of which the families are. Rates are log-uniform so that
300 services use two thirds of 2,400 GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import numpy as np
from bench.planner.facts import digest
from bench.planner.fleet import Family, families
from e2e.scale import kwok

API = "tessera.dev/v1alpha1"
POOL = "h100"
PRODUCT = "NVIDIA-H100-80GB-HBM3"
MEMORY_MIB = 81559
SMS = 132
NAMESPACES = tuple(f"team-{index:02d}" for index in range(12))
PRIORITIES = {"gold": 1000, "silver": 100}
_POWER = 1.6 * SMS / 108
"""Of an H100 as a multiple of an A100, which families are described on."""
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_PROCESSES = (1, 2, 4)
_RATES = (300.0, 40_000.0)
_TARGETS_MS = (20.0, 400.0)
_SLACK = 3.0
"""A target is at least this multiple of a lone row's time."""
_SEED = 1


def pool(nodes: int) -> dict[str, Any]:
    """All ``nodes`` always: what is measured is not an autoscaler."""
    return {
        "apiVersion": API,
        "kind": "RuntimePool",
        "metadata": {"name": POOL},
        "spec": {
            "node": {
                "resources": {"cpu": "96", "memory": "900Gi", "nvidia.com/gpu": str(kwok.GPUS)},
                "selector": dict([kwok.LABEL]),
            },
            "size": {"min": nodes, "max": nodes},
            "cost": {"perNodeHour": "40", "idleWatts": "70"},
            "trust": {"sharedBetweenNamespaces": True},
        },
    }


def priority_classes() -> Iterator[dict[str, Any]]:
    for name, value in PRIORITIES.items():
        yield {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
        }


def profiles() -> Iterator[dict[str, Any]]:
    """One per family, with its status."""
    for family in _families():
        rows = [
            {
                "batch": batch,
                "instances": processes,
                "p50": f"{ms:.4f}ms",
                "p99": f"{1.05 * ms:.4f}ms",
                "throughput": f"{1e3 * processes * batch / ms:.4f}",
                "memoryMiB": f"{family.memory_mib(batch, processes):.1f}",
            }
            for processes in _PROCESSES
            for batch in _BATCHES
            for ms in [family.batch_ms(batch, processes, _POWER)]
            if family.memory_mib(batch, processes) <= MEMORY_MIB
        ]
        yield {
            "apiVersion": API,
            "kind": "ModelProfile",
            "metadata": {"name": f"{family.name}-h100", "namespace": NAMESPACES[0]},
            "spec": {
                "modelDigest": digest(family.name),
                "deviceClass": {
                    "product": PRODUCT,
                    "slice": "full",
                    "smCount": SMS,
                    "memoryMiB": MEMORY_MIB,
                },
                "engine": "torch 2.8.0",
                "driver": "580.65",
            },
            "status": {"rows": rows},
        }


def services(count: int) -> Iterator[dict[str, Any]]:
    """ModelServices of one to four members."""
    rng = np.random.default_rng(_SEED)
    models = _families()
    for index in range(count):
        members = int(rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))) + 1
        chosen = [models[each] for each in rng.choice(len(models), size=members, replace=False)]
        least = _SLACK * max(model.batch_ms(1, 1, _POWER) for model in chosen) + 1
        target_ms = ceil(max(_log_uniform(rng, *_TARGETS_MS), least))
        rate = float(f"{_log_uniform(rng, *_RATES):.4g}")
        namespace = NAMESPACES[int(rng.integers(len(NAMESPACES)))]
        priority, spread = rng.random(2)
        spec: dict[str, Any] = {
            "members": [
                {
                    "name": f"m{number}",
                    "model": {
                        "uri": f"s3://models/{model.name}",
                        "format": "TorchExport",
                        "digest": digest(model.name),
                    },
                    "batch": {"max": _BATCHES[-1]},
                }
                for number, model in enumerate(chosen)
            ],
            "ensemble": {"combine": "Mean" if members > 1 else "None"},
            "slo": {"objectives": [{"target": f"{target_ms}ms", "percent": "99"}]},
            "traffic": {"requestsPerSecond": f"{rate:g}"},
        }
        if priority < 0.4:
            spec["priorityClassName"] = "gold" if priority < 0.1 else "silver"
        if spread < 0.05:
            spec["placement"] = {"spread": {"minNodes": 2}}
        yield {
            "apiVersion": API,
            "kind": "ModelService",
            "metadata": {"name": f"service-{index:03d}", "namespace": namespace},
            "spec": spec,
        }


def _families() -> Sequence[Family]:
    return families(np.random.default_rng(_SEED))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
