"""Charts of what was measured, beside the JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.control_real.pictures import Chart, svg
from bench.harness import Row
from bench.lines import CASE, WHO
from bench.preprocess.cases import LATENCY, LIMIT, ONCE, PLAIN, POOL

RATES = (LIMIT, PLAIN, ONCE, POOL)


def draw(rows: Sequence[Row], written: Path) -> None:
    """One of rates and one of latencies."""
    rates: dict[str, dict[str, float]] = {}
    tails: dict[str, dict[str, float]] = {}
    for row in rows:
        case, who, medians = row.labels[CASE], row.labels[WHO], row.medians
        if case in RATES and "rate_per_s" in medians:
            label = f"{case}: {who}" if case == POOL else who
            rates[label] = {"images/s": medians["rate_per_s"]}
        elif case == LATENCY:
            tails.setdefault(row.labels["load"], {})[who] = medians["p99_ms"]
    for name, chart in (
        ("rates", Chart("Images per second", rates)),
        ("latency", Chart("p99 in ms at fixed loads", tails)),
    ):
        written.with_name(f"{written.stem}-{name}.svg").write_text(svg(chart))
