"""The results of ``tessera simulate`` as tables and as a document."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from rich.table import Table
from rich.text import Text

from tessera_cli.simulate_load import Load
from tessera_cli.tables import table
from tessera_core.simulate.cluster import Result
from tessera_core.simulate.devices import DeviceLoad


def as_document(
    load: Load,
    results: Sequence[Result],
    refused: list[dict[str, Any]],
    devices: Sequence[DeviceLoad],
) -> dict[str, Any]:
    return {
        "trace": load.text,
        "durationSeconds": load.duration_s,
        "requests": None if load.duration_s is not None or load.recorded else load.requests,
        "seed": load.seed,
        "lateAreDropped": load.as_served,
        "services": [_service(each) for each in results],
        "devices": [
            {
                "node": each.node,
                "device": each.device,
                "product": each.product,
                "rowsPerSecond": _rounded(each.rows_per_s),
                "utilisation": _rounded(each.busy),
                "members": list(each.members),
            }
            for each in devices
        ],
        "refused": refused,
    }


def _service(each: Result) -> dict[str, Any]:
    scenario = each.scenario
    return {
        "service": scenario.service,
        "requestsPerSecond": _rounded(scenario.rate_per_s),
        "burstiness": scenario.burstiness,
        "percentile": scenario.percentile,
        "targetMs": _rounded(scenario.target_ms),
        "predicted": {"latencyMs": _rounded(scenario.predicted_ms)},
        "simulated": {
            "requests": each.requests,
            "requestsPerSecond": _rounded(each.rate_per_s),
            "goodputPerSecond": _rounded(each.goodput_per_s),
            "p50Ms": _rounded(each.p50_ms),
            "p95Ms": _rounded(each.p95_ms),
            "p99Ms": _rounded(each.p99_ms),
            "latencyMs": _rounded(each.tail_ms),
        },
        "within": round(each.within, 6),
        "met": each.met,
        "queues": [
            {
                "member": load.queue.member,
                "where": list(load.queue.where),
                "meanBatch": _rounded(load.mean_batch),
                "utilisation": _rounded(load.utilisation),
                "dropped": load.dropped,
            }
            for load in each.loads
        ],
    }


def service_table(results: Sequence[Result], refused: Sequence[dict[str, Any]]) -> Table:
    numbers = ("req/s", "good/s", "p50", "p95", "p99", "tail", "target", "batch", "busy", "within")
    shown = table(
        "Latency in ms, tails predicted / simulated, and the busiest queue",
        ("service",),
        numbers,
        ("busiest",),
    )
    for each in results:
        scenario, busiest = each.scenario, each.busiest
        shown.add_row(
            scenario.service,
            f"{each.rate_per_s:.4g}",
            f"{each.goodput_per_s:.4g}",
            *map(_latency, (each.p50_ms, each.p95_ms, each.p99_ms)),
            f"p{scenario.percentile:g} {_tail(each)}",
            f"{scenario.target_ms:g}",
            f"{busiest.mean_batch:.3g}",
            f"{busiest.utilisation:.0%}",
            Text(f"{each.within:.2%}", "green" if each.met else "red"),
            busiest.queue.member,
        )
    for one in refused:
        shown.add_row(Text(f"{one['service']}/{one['member']}: {one['reason']}", "red"))
    return shown


def device_table(devices: Sequence[DeviceLoad]) -> Table:
    shown = table("Devices", ("device",), ("rows/s", "busy"), ("members",))
    for each in devices:
        shown.add_row(
            f"{each.node}/{each.device}",
            f"{each.rows_per_s:.4g}",
            f"{each.busy:.0%}",
            ", ".join(each.members),
        )
    return shown


def _tail(each: Result) -> str:
    predicted = each.scenario.predicted_ms
    shown = "overload" if predicted is None else f"{predicted:.3g}"
    return f"{shown} / {_latency(each.tail_ms)}"


def _latency(ms: float) -> str:
    return f"{ms:.3g}" if isfinite(ms) else "dropped"


def _rounded(number: float | None) -> float | None:
    return None if number is None or not isfinite(number) else float(f"{number:.4g}")
