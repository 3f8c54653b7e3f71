"""``tessera simulate``: plan a state, put its services under simulated load, compare with the prediction.

Without a state, one member on one queue: ``--alpha-ms --tau0-ms --cap --instances --rate --slo-ms``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from math import isfinite
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from tessera_cli.files import FileInvalid, add_state_argument, read_state
from tessera_cli.output import add_output_argument, emit, fail, stderr
from tessera_cli.replay import Outcome, Queue, Scenario, Servers, replay, scenarios
from tessera_cli.tables import table
from tessera_core.perf import ServiceModel, latency_percentile
from tessera_core.plan import plan, plan_to_dict

_QUICK = ("alpha_ms", "tau0_ms", "cap", "rate", "slo_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit code: 0 when every service is placed and keeps its SLO in the simulation, 1 when one does "
        "not, or the file is not a state."
    )
    add_state_argument(parser, required=False)
    load = parser.add_argument_group("load")
    load.add_argument(
        "--rate-factor",
        type=_number(0, 1e6),
        default=1.0,
        metavar="X",
        help="times the expected rates",
    )
    load.add_argument(
        "--burstiness",
        type=_number(0, 1e4),
        metavar="CV2",
        help="squared variation of the gaps between requests, 1 is Poisson; default: each service's own",
    )
    load.add_argument(
        "--requests",
        type=_whole(1000, 2_000_000),
        default=200_000,
        metavar="N",
        help="simulated per service, on average; default: 200000",
    )
    load.add_argument(
        "--seed", type=_whole(0, 2**63 - 1), default=0, metavar="N", help="same seed, same result"
    )
    quick = parser.add_argument_group("one member, without a state")
    quick.add_argument(
        "--alpha-ms", type=_number(0, 1e6), metavar="MS", help="ms that a row adds to a batch"
    )
    quick.add_argument(
        "--tau0-ms", type=_number(0, 1e6, zero=True), metavar="MS", help="ms of every batch"
    )
    quick.add_argument(
        "--cap", type=_whole(1, 65_536), metavar="N", help="rows of the largest batch"
    )
    quick.add_argument(
        "--instances", type=_whole(1, 1024), default=1, metavar="N", help="on one queue"
    )
    quick.add_argument("--rate", type=_number(0, 1e7), metavar="R", help="requests per second")
    quick.add_argument("--slo-ms", type=_number(0, 3.6e6), metavar="MS", help="latency target")
    quick.add_argument(
        "--percentile", type=_number(1, 99.999), default=99.0, metavar="P", help="of the target"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw the latencies; needs matplotlib")
    add_output_argument(parser)
    parser.set_defaults(refuse=parser.error)


def run(arguments: argparse.Namespace) -> int:
    given = [name for name in _QUICK if getattr(arguments, name) is not None]
    if arguments.file and given:
        arguments.refuse(f"{_flag(given[0])}: not with -f, where the state says it")
    if not arguments.file and len(given) < len(_QUICK):
        missing = ", ".join(_flag(name) for name in _QUICK if name not in given)
        arguments.refuse(f"give a state with -f, or one member: {missing} missing")
    if arguments.plot and find_spec("matplotlib") is None:
        return fail("simulate", "--plot: matplotlib is not installed; pip install matplotlib")
    refused: list[dict[str, Any]] = []
    if arguments.file:
        try:
            state = read_state(arguments.file)
        except FileInvalid as error:
            return fail("simulate", str(error))
        with stderr.status("planning"):
            planned = plan(state)
        refused = plan_to_dict(planned)["refused"]
        found = scenarios(planned, state, arguments.rate_factor, arguments.burstiness)
    else:
        found = (_one_member(arguments),)
    try:
        outcomes = _replay_all(found, arguments.requests, arguments.seed)
    except ValueError as error:
        return fail("simulate", str(error))
    if arguments.plot:
        from tessera_cli.picture import draw

        try:
            draw(outcomes, arguments.plot)
        except (OSError, ValueError) as error:  # ValueError: a format that is not known
            return fail("simulate", f"--plot {arguments.plot}: {error}")
    data = {
        "requests": arguments.requests,
        "seed": arguments.seed,
        "services": [_plain(each) for each in outcomes],
        "refused": refused,
    }
    emit(arguments.output, data, lambda: _table(outcomes, refused))
    return 1 if refused or not all(each.met for each in outcomes) else 0


def _one_member(arguments: argparse.Namespace) -> Scenario:
    model = ServiceModel(arguments.alpha_ms, arguments.tau0_ms, arguments.cap, arguments.instances)
    rate = arguments.rate * arguments.rate_factor
    burstiness = 1.0 if arguments.burstiness is None else arguments.burstiness
    predicted = latency_percentile(model, rate, arguments.percentile, burstiness)
    return Scenario(
        service="one member",
        rate_per_s=rate,
        target_ms=arguments.slo_ms,
        percentile=arguments.percentile,
        members=((Queue("member", ("one queue",), (Servers(model, arguments.cap),)),),),
        predicted_ms=predicted if isfinite(predicted) else None,
        burstiness=burstiness,
    )


def _replay_all(found: Sequence[Scenario], requests: int, seed: int) -> list[Outcome]:
    """All scenarios, each with a random stream of its own: one more service changes no other's result."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    outcomes = []
    with Progress(
        *columns, console=stderr, transient=True, disable=not stderr.is_terminal
    ) as progress:
        bar = progress.add_task("simulating", total=sum(len(each.members) for each in found))
        for scenario in found:
            rng = np.random.default_rng([seed, *scenario.service.encode()])
            outcomes.append(replay(scenario, requests, rng, lambda: progress.advance(bar)))
    return outcomes


def _plain(each: Outcome) -> dict[str, Any]:
    scenario = each.scenario
    p50, tail = (each.percentile_ms(q) for q in (50, scenario.percentile))
    return {
        "service": scenario.service,
        "requestsPerSecond": _rounded(scenario.rate_per_s),
        "burstiness": scenario.burstiness,
        "percentile": scenario.percentile,
        "targetMs": _rounded(scenario.target_ms),
        "predicted": {"latencyMs": _rounded(scenario.predicted_ms)},
        "simulated": {"p50Ms": _rounded(p50), "latencyMs": _rounded(tail)},
        "within": round(each.within, 6),
        "met": each.met,
        "queues": [
            {
                "member": load.queue.member,
                "where": list(load.queue.where),
                "meanBatch": _rounded(load.mean_batch),
                "utilisation": _rounded(load.utilisation),
            }
            for load in each.loads
        ],
    }


def _table(outcomes: Sequence[Outcome], refused: Sequence[dict[str, Any]]) -> Table:
    numbers = ("req/s", "p50", "tail", "target", "batch", "busy", "within")
    shown = table(
        "Latency in ms, tails predicted / simulated, and the busiest queue", ("service",), numbers
    )
    for each in outcomes:
        scenario, busiest = each.scenario, each.busiest
        shown.add_row(
            scenario.service,
            f"{scenario.rate_per_s:.4g}",
            f"{each.percentile_ms(50):.3g}",
            f"p{scenario.percentile:g} {_tail(each)}",
            f"{scenario.target_ms:g}",
            f"{busiest.mean_batch:.3g}",
            f"{busiest.utilisation:.0%}",
            Text(f"{each.within:.2%}", "green" if each.met else "red"),
        )
    for one in refused:
        shown.add_row(Text(f"{one['service']}/{one['member']}: {one['reason']}", "red"))
    return shown


def _tail(each: Outcome) -> str:
    predicted = each.scenario.predicted_ms
    shown = "overload" if predicted is None else f"{predicted:.3g}"
    return f"{shown} / {each.percentile_ms(each.scenario.percentile):.3g}"


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _number(above: float, most: float, zero: bool = False) -> Callable[[str], float]:
    allowed = f"a number {'from' if zero else 'above'} {above:g} to {most:g}"

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not (above < number <= most or (zero and number == above)):
            raise argparse.ArgumentTypeError(f"found {text[:64]!r}, allowed: {allowed}")
        return number

    return read


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            allowed = f"a whole number from {least} to {most}"
            raise argparse.ArgumentTypeError(f"found {text[:64]!r}, allowed: {allowed}")
        return number

    return read
