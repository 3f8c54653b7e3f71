"""The demo as one picture: latency against the SLO, rate, and what the server did, over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from examples.digits.load import Rates, Tick
from matplotlib.figure import Figure

from tessera_cli.loadgen import Samples

_BIN_S = 1.0
_DOT = "#b8c4d6"
_MEASURED, _PREDICTED, _SLO = "#1f4e9c", "#d9822b", "#c23030"
_MEMBERS = ("#1f4e9c", "#2e8b57", "#8a4fa3", "#d9822b")


def draw(
    samples: Samples,
    ticks: Sequence[Tick],
    rates: Rates,
    slo_ms: float,
    step_s: float,
    path: Path,
) -> None:
    """Save the picture of a load whose rate steps up at ``step_s``; the format follows from the name."""
    # Not through pyplot: a figure of its own needs no display and no global state.
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    latency, rate, batch, instances = figure.subplots(4, 1, sharex=True, height_ratios=(3, 2, 2, 1))
    _latency(latency, samples, ticks, slo_ms)
    _rate(rate, samples, rates)
    _server(batch, instances, ticks)
    for axes in (latency, rate, batch, instances):
        axes.axvline(step_s, color="0.7", linewidth=0.8, linestyle=":")
        axes.grid(axis="y", color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    figure.suptitle("An ensemble of three networks under a latency SLO")
    instances.set_xlabel("seconds")
    figure.savefig(path, dpi=110)


def _latency(axes: Any, samples: Samples, ticks: Sequence[Tick], slo_ms: float) -> None:
    good = samples.good
    axes.scatter(
        samples.intended[good], samples.latency_ms[good], s=2, color=_DOT, label="each request"
    )
    at = [tick.at_s for tick in ticks]
    axes.plot(at, [tick.p99_ms for tick in ticks], color=_MEASURED, label="p99, last 3 s")
    axes.plot(at, [_predicted(tick) for tick in ticks], color=_PREDICTED, label="p99 predicted")
    axes.axhline(slo_ms, color=_SLO, linewidth=1.2, label=f"SLO {slo_ms:g} ms")
    axes.set_ylabel("latency, ms")
    axes.set_yscale("log")
    axes.set_ylim(top=slo_ms * 4)


def _predicted(tick: Tick) -> float:
    value = tick.status.predicted_p99_ms if tick.status is not None else None
    return np.nan if value is None else value


def _rate(axes: Any, samples: Samples, rates: Rates) -> None:
    end = float(np.ceil(samples.intended.max())) if samples.intended.size else _BIN_S
    edges = np.arange(0.0, end + _BIN_S, _BIN_S)
    for times, label, style in (
        (samples.intended, "sent", {"color": "0.6", "linewidth": 2.5}),
        (samples.done[samples.good], "answered", {"color": _MEASURED, "linewidth": 1.0}),
    ):
        counts = np.histogram(times, edges)[0] / _BIN_S
        axes.stairs(counts, edges, label=label, **style)
    axes.axhline(rates.predicted_max, color=_PREDICTED, linewidth=1.2, label="predicted maximum")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("requests per second")


def _server(batch: Any, instances: Any, ticks: Sequence[Tick]) -> None:
    known = [(tick.at_s, tick.status.members) for tick in ticks if tick.status is not None]
    names = [member.name for member in known[-1][1]] if known else []
    at = [second for second, _ in known]
    for index, name in enumerate(names):
        members = [each[index] for _, each in known]
        color = _MEMBERS[index % len(_MEMBERS)]
        batches = [np.nan if m.mean_batch is None else m.mean_batch for m in members]
        batch.plot(at, batches, color=color, label=f"{name}, cap {members[-1].batch_cap}")
        # Lines of equal counts would hide each other.
        shifted = [m.instances + 0.06 * (index - len(names) // 2) for m in members]
        instances.step(at, shifted, color=color, where="post", label=name)
    batch.set_ylim(bottom=0)
    batch.set_ylabel("rows per batch")
    most = max((m.instances for _, members in known for m in members), default=1)
    instances.set_ylim(0, most + 1)
    instances.set_yticks(range(most + 2))
    instances.set_ylabel("instances")
