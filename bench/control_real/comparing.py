"""Every static setting of the grid, then policies beside the best one, on the same arrivals.

*Sweep.* One load; the settings take turns under it, forwards and then backwards, so that a slow moment of the machine
hits two of them and not one alone. Of those within NEAR of the best share the one is taken that finishes most rows.

*Comparison.* Each policy is first under that load for a while, to settle. Then all are measured in alternating rounds, in
each of them on the very same arrivals, and go on deciding meanwhile. The best setting is measured anew among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median

from bench.control_real.driving import Pilot, under_load
from bench.control_real.policies import ABLATED, COMPARED, STATIC, pilot, static
from bench.control_real.served import Measured, Server
from bench.harness import Figures, Row, Variant, alternate

from tessera_cli.loadgen import Phase
from tessera_core.control.setpoint import Setpoint
from tessera_core.perf import LatencyProfile

Sweep = dict[Setpoint, Figures]

SWEEP, COMPARISON = "static settings", "goodput"
NEAR = 0.01
WARM_S = 0.4
"""Of a measurement, at its beginning: not counted."""
LIKELY = 6
OVER = 1.3
TRIES = 6
NEARLY_ALL = 0.9


class Unmeasured(Exception):
    """There is nothing that loads could be shares of, or that settings could be told apart by; the message says why."""


@dataclass(frozen=True, slots=True)
class Size:
    rounds: int = 3
    seconds: float = 1.6
    """Of one measurement."""
    settle_s: float = 4.3
    turn_s: float = 0.3
    """Of a setting in the sweep, each time."""
    cell_s: float = 0.15
    """Of the profile, in each pass."""
    passes: int = 3
    """Over the profile."""


def capacity(server: Server, measured: Measured, turn_s: float) -> float:
    """Rows per second that are answered in time when more than can be comes: the unit of the loads.

    Tried with likely settings. A profile with stalls in it says too little: while nearly all is in time, more is tried.
    Raises Unmeasured where nothing is in time.
    """
    profile, slo_ms = measured.profile, server.task.slo_ms
    settings = likely(profile, server.place.grid, slo_ms)[:LIKELY]
    rate, most = profile.throughput(settings[0].cap, settings[0].instances), 0.0
    for seed in range(TRIES):
        rate *= OVER
        found = swept(server, settings, rate, turn_s, seed).values()
        most = max(most, max(seen["good_per_s"] for seen in found))
        if max(seen["share"] for seen in found) < NEARLY_ALL:
            break
    if not most:
        slow = profile.slow_line(server.place.at_once)
        raise Unmeasured(
            f"no row was answered within {slo_ms:g} ms at {rate:,.0f}/s. By its profile a row takes"
            f" {profile.service_ms(1):.1f} ms alone, and {slow.alpha_ms + slow.tau0_ms:.1f} ms where batches are slow, by which"
            " the server admits. Run it again where nothing else runs, or give the network a longer SLO"
        )
    return most


def likely(profile: LatencyProfile, grid: Sequence[Setpoint], slo_ms: float) -> list[Setpoint]:
    """Those first that finish most of what leaves half of the SLO to wait in, then those that leave most."""

    def order(each: Setpoint) -> tuple[float, float]:
        left = slo_ms / 2 / profile.service_ms(each.cap, each.instances)
        return min(1.0, left), profile.throughput(each.cap, each.instances)

    return sorted(grid, key=order, reverse=True)


def swept(
    server: Server, settings: Sequence[Setpoint], rate_per_s: float, turn_s: float, seed: int
) -> Sweep:
    """What each setting makes of ``rate_per_s``, within the SLO and within half of it.

    Requests that come within an SLO of a change are not counted: another setting has answered them, or left them behind.
    A turn of which a stall of the machine has left too little is not counted either. Raises Unmeasured where none is left.
    """
    slo_ms = server.task.slo_ms
    order = [*settings, *reversed(settings)]
    edge_s = slo_ms / 1e3
    length_s = turn_s + 2 * edge_s
    begun: list[float] = []

    def on_tick(at_s: float) -> None:
        if len(begun) < len(order):
            server.set(order[len(begun)], slo_ms)
            begun.append(at_s)

    seconds = length_s * len(order)
    answers = under_load(server, (Phase(rate_per_s, seconds),), seed, length_s, on_tick)
    ends = [*begun[1:], seconds]
    found: dict[Setpoint, list[Figures]] = {}
    for setpoint, start_s, end_s in zip(order, begun, ends, strict=False):
        from_s, to_s = start_s + edge_s, end_s - edge_s
        if to_s - from_s < turn_s / 2:
            continue
        half = answers.figures(from_s, to_s, slo_ms / 2)["share"]
        seen = answers.figures(from_s, to_s, slo_ms) | {"share_in_half": half}
        found.setdefault(setpoint, []).append(seen)
    if not found:
        raise Unmeasured(
            f"stalls have left less than {turn_s / 2:g} s of every turn. Run it again where nothing else runs"
        )
    return {
        setpoint: {name: median(each[name] for each in turns) for name in turns[0]}
        for setpoint, turns in found.items()
    }


def best_of(sweep: Sweep, measured: Measured, figure: str = "share") -> Setpoint:
    """Where ``figure`` is highest, or about."""
    top = max(seen[figure] for seen in sweep.values())
    near = [setpoint for setpoint, seen in sweep.items() if seen[figure] >= (1 - NEAR) * top]
    return max(near, key=lambda each: measured.profile.throughput(each.cap, each.instances))


def sweep_rows(network: str, load: float, sweep: Sweep) -> Iterator[Row]:
    labels = {"case": SWEEP, "network": network, "load": f"{load:g}"}
    for setpoint, seen in sweep.items():
        yield Row({**labels, "setting": f"{setpoint.cap} x {setpoint.instances}"}, (seen,))


def load_rows(
    server: Server, measured: Measured, load: float, unit_per_s: float, sweep: Sweep, size: Size
) -> Iterator[Row]:
    """One row for each policy: rounds on the same arrivals. Beyond the capacity those with one knob are among them."""
    place, slo_ms, rate = server.place, server.task.slo_ms, load * unit_per_s
    seed = round(1000 * load)
    pilots = {STATIC: static(best_of(sweep, measured), place, slo_ms)}
    for name in (*COMPARED, *(ABLATED if load > 1 else ())):
        pilots[name] = pilot(name, place, slo_ms, measured)
        pilots[name].fly(server, (Phase(rate, size.settle_s),), seed)
    variants = [
        Variant(
            {
                "case": COMPARISON,
                "network": server.task.name,
                "load": f"{load:g}",
                "policy": name,
            },
            _Repeated(server, each, rate, size.seconds, seed + 1),
        )
        for name, each in pilots.items()
    ]
    yield from alternate(variants, size.rounds)


class _Repeated:
    """Measures a pilot round after round: the seed of a round is that of all."""

    def __init__(
        self, server: Server, each: Pilot, rate_per_s: float, seconds: float, seed: int
    ) -> None:
        self._server = server
        self._pilot = each
        self._rate_per_s = rate_per_s
        self._seconds = seconds
        self._seeds = count(seed)

    def __call__(self) -> Figures:
        seconds = WARM_S + self._seconds
        phases = (Phase(self._rate_per_s, seconds),)
        answers = self._pilot.fly(self._server, phases, next(self._seeds))
        figures = answers.figures(WARM_S, seconds, self._server.task.slo_ms)
        now = self._pilot.setpoint
        return figures | {"cap": float(now.cap), "instances": float(now.instances)}
