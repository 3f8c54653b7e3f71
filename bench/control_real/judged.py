"""What is compared with what, over the same rounds, and what it has to reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.control_real.comparing import COMPARISON, SWEEP
from bench.control_real.policies import ABLATED, CLIPPER, DNNSCALER, STATIC, TESSERA
from bench.harness import Figures, Row

RATIOS, ABLATION = "tessera over others", "batching, multi-tenancy, both"
OF_STATIC = 0.9
LEAST_NOISE = 0.01


@dataclass(frozen=True, slots=True)
class Ratios:
    """Of one network at one load: goodput over that of others in the same rounds."""

    row: Row
    noise: float
    """How far the best static setting, which never changes, was from its own median in any round; relative."""

    @property
    def missed(self) -> list[str]:
        medians = self.row.medians
        reach = {STATIC: OF_STATIC, **dict.fromkeys((DNNSCALER, CLIPPER), 1 - self.noise)}
        where = f"{self.row.labels['network']} at {self.row.labels['load']}"
        return [
            f"{where}: {medians[other]:.3f} of {other}, to reach {least:.3f}"
            for other, least in reach.items()
            if not medians[other] >= least
        ]


def ratios(rows: Sequence[Row]) -> list[Ratios]:
    """For each network and load that was compared."""
    found = []
    for (network, load), by_policy in _compared(rows).items():
        ours = _good(by_policy[TESSERA])
        others = {name: _good(row) for name, row in by_policy.items() if name != TESSERA}
        repeats = tuple(
            {name: mine / max(good[turn], 1e-9) for name, good in others.items()}
            for turn, mine in enumerate(ours)
        )
        # Of shares: arrivals differ from round to round.
        steady = [repeat["share"] for repeat in by_policy[STATIC].repeats]
        middle = median(steady)
        noise = max(LEAST_NOISE, max(abs(each / middle - 1) for each in steady) if middle else 1.0)
        labels = {"case": RATIOS, "network": network, "load": load}
        found.append(Ratios(Row(labels, repeats), noise))
    return found


def ablations(rows: Sequence[Row]) -> list[Row]:
    """Goodput with one knob over that with both: of the best settings of the sweep, and of the policy."""
    compared = _compared(rows)
    found = []
    for (network, load), cells in _swept(rows).items():
        both = max(cells.values())
        one_instance = max(good for (_, count), good in cells.items() if count == 1)
        one_row = max(good for (cap, _), good in cells.items() if cap == 1)
        figures: Figures = {
            "static_batching": one_instance / both,
            "static_instances": one_row / both,
        }
        policies = compared.get((network, load), {})
        if TESSERA in policies:
            ours = policies[TESSERA].medians["good_per_s"]
            for name, figure in zip(ABLATED, ("policy_batching", "policy_instances"), strict=True):
                if name in policies:
                    figures[figure] = policies[name].medians["good_per_s"] / ours
        found.append(Row({"case": ABLATION, "network": network, "load": load}, (figures,)))
    return found


def _compared(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        of = row.labels
        if of["case"] == COMPARISON:
            found.setdefault((of["network"], of["load"]), {})[of["policy"]] = row
    return found


def _swept(rows: Sequence[Row]) -> dict[tuple[str, str], dict[tuple[int, int], float]]:
    """Shares in time by (cap, instances)."""
    found: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for row in rows:
        of = row.labels
        if of["case"] == SWEEP:
            cap, _, count = of["setting"].partition(" x ")
            cells = found.setdefault((of["network"], of["load"]), {})
            cells[int(cap), int(count)] = row.medians["share"]
    return found


def _good(row: Row) -> list[float]:
    return [repeat["good_per_s"] for repeat in row.repeats]
