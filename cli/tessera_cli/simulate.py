"""``tessera simulate``: plan a state, put its services under simulated load, compare with the prediction.

Without a state, one member on one queue: ``--alpha-ms --tau0-ms --cap --instances --rate --slo-ms``. Requests come as
a trace says: drawn by ``--trace``, or recorded in a file of ``--replay``. With ``--cluster`` a fleet over a year
(``simulate_fleet``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tessera_cli.files import FileInvalid, add_state_argument, read_state
from tessera_cli.output import add_output_argument, emit, fail, stderr
from tessera_cli.simulate_fleet import add_cluster_arguments, run_cluster
from tessera_cli.simulate_load import Load, LoadInvalid, add_load_arguments, load_of, number, whole
from tessera_cli.simulate_svg import svg
from tessera_cli.simulate_tables import as_document, device_table, service_table
from tessera_core.perf import ServiceModel, latency_percentile
from tessera_core.plan import plan, plan_to_dict
from tessera_core.simulate.cluster import NoRequest, Result, replay
from tessera_core.simulate.devices import DeviceLoad, device_loads
from tessera_core.simulate.scenarios import Queue, Scenario, Servers, scenarios

_QUICK = ("alpha_ms", "tau0_ms", "cap", "rate", "slo_ms")

_ELSEWHERE = (
    *("file", "service", *_QUICK, "instances", "percentile", "rate_factor", "burstiness"),
    *("trace", "replay", "duration", "requests", "seed", "keep_late"),
)
"""Options that say nothing of a fleet."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit code: 0 when every service is placed and keeps its SLO in the simulation, of a fleet under the first "
        "policy, 1 when one does not, or the file is not a state or a fleet."
    )
    add_state_argument(parser, required=False)
    parser.add_argument("--service", metavar="NAME", help="of the state, and no other")
    add_load_arguments(parser)
    quick = parser.add_argument_group("one member, without a state")
    quick.add_argument(
        "--alpha-ms", type=number(0, 1e6), metavar="MS", help="ms that a row adds to a batch"
    )
    quick.add_argument(
        "--tau0-ms", type=number(0, 1e6, zero=True), metavar="MS", help="ms of every batch"
    )
    quick.add_argument(
        "--cap", type=whole(1, 65_536), metavar="N", help="rows of the largest batch"
    )
    quick.add_argument(
        "--instances", type=whole(1, 1024), default=1, metavar="N", help="on one queue"
    )
    quick.add_argument("--rate", type=number(0, 1e7), metavar="R", help="requests per second")
    quick.add_argument("--slo-ms", type=number(0, 3.6e6), metavar="MS", help="latency target")
    quick.add_argument(
        "--percentile", type=number(1, 99.999), default=99.0, metavar="P", help="of the target"
    )
    add_cluster_arguments(parser)
    parser.add_argument(
        "--plot", metavar="FILE.svg", help="draw the latencies; .png and others need matplotlib"
    )
    add_output_argument(parser)
    parser.set_defaults(refuse=parser.error, default=parser.get_default)


def run(arguments: argparse.Namespace) -> int:
    wrong = _usage(arguments)
    if wrong:
        arguments.refuse(wrong)
    if arguments.cluster:
        return run_cluster(arguments)
    other = arguments.plot and not arguments.plot.endswith(".svg")
    if other and find_spec("matplotlib") is None:
        missing = "matplotlib is not installed; pip install matplotlib, or draw a .svg"
        return fail("simulate", f"--plot: {missing}")
    try:
        load = load_of(arguments)
        if not arguments.file:
            return _show(arguments, load, _simulated((_one_member(arguments, load),), load), [], ())
        state = read_state(arguments.file)
        with stderr.status("planning"):
            planned = plan(state)
        found = scenarios(planned, state, load.rate_factor, load.burstiness)
        refused = plan_to_dict(planned)["refused"]
        if arguments.service is not None:
            named = [each for each in found if each.service == arguments.service]
            refused = [each for each in refused if each["service"] == arguments.service]
            if not named and not refused:
                names = ", ".join(each.service for each in found) or "none"
                message = f"--service: found {arguments.service!r}, allowed: {names}"
                return fail("simulate", message)
            found = tuple(named)
        known = {each.served_name for each in state.services}
        results = _simulated(load.asked(found, known), load)
        return _show(arguments, load, results, refused, device_loads(planned, state, results))
    except (FileInvalid, LoadInvalid, NoRequest) as error:
        return fail("simulate", str(error))


def _usage(arguments: argparse.Namespace) -> str:
    """What is wrong with the options together; empty when nothing is."""
    if arguments.cluster:
        changed = [
            name for name in _ELSEWHERE if getattr(arguments, name) != arguments.default(name)
        ]
        return f"{_flag(changed[0])}: not with --cluster, whose file says it" if changed else ""
    for name in ("policy", "check"):
        if getattr(arguments, name) != arguments.default(name):
            return f"{_flag(name)}: only with --cluster"
    given = [name for name in _QUICK if getattr(arguments, name) is not None]
    if arguments.file:
        return f"{_flag(given[0])}: not with -f, where the state says it" if given else ""
    if arguments.service is not None:
        return "--service: only with -f"
    # A recorded trace has a rate.
    needed = [name for name in _QUICK if name != "rate" or not arguments.replay]
    missing = ", ".join(_flag(name) for name in needed if name not in given)
    return f"give a state with -f, or one member: {missing} missing" if missing else ""


def _show(
    arguments: argparse.Namespace,
    load: Load,
    results: Sequence[Result],
    refused: list[dict[str, Any]],
    devices: Sequence[DeviceLoad],
) -> int:
    if arguments.plot:
        try:
            _draw(results, arguments.plot)
        except (OSError, ValueError) as error:  # ValueError: a format that is not known
            return fail("simulate", f"--plot {arguments.plot}: {error}")
    data = as_document(load, results, refused, devices)
    emit(arguments.output, data, lambda: service_table(results, refused))
    if devices and arguments.output == "table":
        emit("table", None, lambda: device_table(devices))
    return 1 if refused or not all(each.met for each in results) else 0


def _draw(results: Sequence[Result], file: str) -> None:
    if file.endswith(".svg"):
        Path(file).write_text(svg(results), encoding="utf-8")
        return
    from tessera_cli.picture import draw

    draw(results, file)


def _one_member(arguments: argparse.Namespace, load: Load) -> Scenario:
    model = ServiceModel(arguments.alpha_ms, arguments.tau0_ms, arguments.cap, arguments.instances)
    load.check_alone()
    rate = load.recorded_rate() if arguments.rate is None else arguments.rate * load.rate_factor
    burstiness = 1.0 if load.burstiness is None else load.burstiness
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


def _simulated(found: Sequence[Scenario], load: Load) -> list[Result]:
    """All scenarios, each with a random stream of its own: one more service changes no other's result."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    results = []
    with Progress(
        *columns, console=stderr, transient=True, disable=not stderr.is_terminal
    ) as progress:
        bar = progress.add_task(
            "simulating", total=sum(len(each.members) + bool(each.stage) for each in found)
        )
        for scenario in found:
            rng = np.random.default_rng([load.seed, *scenario.service.encode()])
            arrivals = load.arrivals_ms(scenario, rng)
            outcome = replay(scenario, arrivals, rng, load.as_served, lambda: progress.advance(bar))
            results.append(outcome.result())
    return results


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
