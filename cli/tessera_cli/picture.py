"""The picture of a simulation: how many requests take longer than a time, against the targets.

The only module that needs matplotlib; it is imported when a picture is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from tessera_cli.simulate_svg import MOST_SERVICES
from tessera_core.simulate.cluster import POINTS, Result


def draw(results: Sequence[Result], file: str) -> None:
    """Save the first ``MOST_SERVICES`` services; the format follows from the name of ``file``.

    Latency is shown in multiples of the target. A service keeps its SLO where its line passes left of its
    dot: as late a share of the requests as the SLO allows, at the target. Raises OSError and ValueError.
    """
    # Not through pyplot: a figure of its own needs no display and no global state.
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for each in results[:MOST_SERVICES]:
        scenario = each.scenario
        latency = np.array(each.curve_ms) / scenario.target_ms
        (line,) = axes.semilogy(latency, 1 - POINTS, label=scenario.service)
        axes.plot(1, 1 - scenario.percentile / 100, "o", color=line.get_color())
    axes.axvline(1, color="grey", linestyle=":")
    axes.set(xlabel="latency / target", ylabel="share of requests that take longer", xlim=(0, 2))
    if results:
        axes.legend()
    figure.savefig(file, dpi=120)
