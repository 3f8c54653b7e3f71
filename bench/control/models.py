"""What the queue model says, without simulation: rates of a known table, and energy on few devices or on many."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from bench.control.lines import line
from bench.lines import Line, Reach

from tessera_core.perf import EnergyModel, ServiceModel, joules_per_row, max_rate

# ResNet-50 in mixed precision on a V100: the line through b/throughput of Inoue 2021 (arXiv 1912.06322), table of fits.
V100 = ServiceModel(alpha_ms=0.1438, tau0_ms=1.8874)
# Rows per ms within an SLO, by SLO in ms and percentile: from the exact law of that paper's queue, solved apart
# from this code (stationary law of the batch sizes, then the tail by conditioning on the batch met).
KNOWN = {
    (6.0, 95.0): 2.25,
    (6.0, 99.0): 1.83,
    (10.0, 95.0): 4.03,
    (10.0, 99.0): 3.69,
    (20.0, 95.0): 5.46,
    (20.0, 99.0): 5.25,
}
OFF_PERCENT = 2.0
QUEUE, ENERGY = "Queue model, V100", "Energy per request"

DEVICES = 8
SLO_MS, PERCENT = 20.0, 99.0
# A batch of b rows takes 0.03 b + 0.4 J over 60 W at idle: 250 W at full batches, as a V100's data sheet allows.
POWER = EnergyModel(row_joules=0.03, batch_joules=0.4, idle_watts=60.0)
LOADS = (0.1, 0.3, 0.5, 0.7, 0.9)


def queue_lines() -> Iterator[Line]:
    for (slo_ms, percentile), known in KNOWN.items():
        predicted = max_rate(V100, slo_ms, percentile) / 1e3
        yield line(
            QUEUE,
            f"p{percentile:g} within {slo_ms:g} ms",
            {
                "predicted": predicted,
                "known": known,
                "off_percent": 100 * abs(predicted / known - 1),
            },
            Reach("off_percent", at_most=OFF_PERCENT),
        )


def energy_lines() -> Iterator[Line]:
    """DEVICES share a load evenly, or as few as hold the SLO do; those without load are off in both."""
    each = max_rate(V100, SLO_MS, PERCENT)
    for load in LOADS:
        rate = load * DEVICES * each
        few = max(1, ceil(rate / each - 1e-9))
        spread, consolidated = (joules_per_row(POWER, V100, rate / n) for n in (DEVICES, few))
        yield line(
            ENERGY,
            f"{load:g} of what {DEVICES} devices carry",
            {
                "rate_per_s": rate,
                "spread_j": spread,
                "devices": float(few),
                "consolidated_j": consolidated,
                "saved_percent": 100 * (1 - consolidated / spread),
            },
            Reach("saved_percent", at_least=0.0),
        )
