"""Train, export, serve under a latency SLO, load, check: ``make demo``, at most three minutes.

Three small networks learn handwritten digits and are served as one ensemble by `tessera serve`. Numbers of eight
held-out digits arrive at random times over HTTP and gRPC, and halfway the rate steps up. Then a ramp looks
for the largest rate that keeps the SLO.

Exit status 0 only if every served answer equals what the same files give in this process, the SLO was kept over
both phases, and no request was lost.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python examples/digits/demo.py` as well as -m
os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # ONNX Runtime's wheel reports its use otherwise

from examples.digits.check import Check, Compared, Expected, accuracy, compare, expect
from examples.digits.load import (
    IMAGES,
    PROTOCOLS,
    Maximum,
    Rates,
    Tick,
    choose_rates,
    grouped,
    maximum,
    ramp,
    run,
    targets,
    two_phases,
)
from examples.digits.networks import NETWORKS
from examples.digits.picture import draw
from examples.digits.serving import ServeFailed, Serving
from examples.digits.show import Show, number
from examples.digits.train import EPOCHS, ONNX, Digits, export, read_digits, train
from rich.console import Console
from rich.table import Table

from tessera_cli.loadgen import LoadFailed, LoadPlan, Samples, Summary, summarise

SLO_MS, PERCENT = 150.0, 99.0
PHASE_S = 20.0


@dataclass(frozen=True, slots=True)
class Measured:
    """All that the load brought."""

    rates: Rates
    phases: Samples
    ticks: tuple[Tick, ...]
    ramp: Samples
    maximum: Maximum
    server_status: int
    """With which `tessera serve` ended when it was asked to."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve three digit readers under a latency SLO.")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="what it writes")
    parser.add_argument("--seconds", type=float, default=PHASE_S, help="length of each phase")
    parser.add_argument("--seed", type=int, default=7, help="of training and arrivals")
    arguments = parser.parse_args()
    console = Console()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    training, held_out = read_digits(arguments.seed)
    files = train_and_export(console, training, arguments.seed, out)
    expected = expect(files, held_out.images)
    try:
        measured = serve_and_load(console, held_out, out, arguments.seconds, arguments.seed)
    except (ServeFailed, LoadFailed) as error:
        console.print(f"[red]FAILED[/red]: {error}")
        return 1
    return report(console, measured, expected, held_out, arguments.seconds, out)


def train_and_export(console: Console, digits: Digits, seed: int, out: Path) -> Mapping[str, Path]:
    """Write the exported networks and the ModelService that serves them; the file of each member."""
    files = {}
    for name in NETWORKS:
        with console.status(f"training {name}") as status:
            network, losses = train(name, digits, seed, status.update)
            status.update(f"exporting {name}")
            files[name] = export(name, network, out)
        console.print(
            f"{name}: loss {losses[0]:.3f} → {losses[-1]:.3f} in {EPOCHS} epochs, "
            f"exported to {files[name].name}",
            highlight=False,
        )
    (out / "modelservice.yaml").write_text(model_service(files))
    return files


def model_service(files: Mapping[str, Path]) -> str:
    """The ModelService of the ensemble, as YAML."""
    members = "".join(
        f"  - name: {name}\n"
        f'    model: {{uri: "{path.as_uri()}", format: {"ONNX" if name in ONNX else "TorchExport"}}}\n'
        "    batch: {max: 64}\n"
        for name, path in files.items()
    )
    return (
        "# Written by examples/digits/demo.py.\n"
        "apiVersion: tessera.dev/v1alpha1\n"
        "kind: ModelService\n"
        "metadata:\n"
        "  name: digits\n"
        "spec:\n"
        f"  members:\n{members}"
        "  ensemble:\n"
        "    combine: Mean\n"
        "  slo:\n"
        "    objectives:\n"
        f'    - {{target: {SLO_MS:g}ms, percent: "{PERCENT:g}"}}\n'
        f"  traffic: {{requestsPerSecond: 50, itemsPerRequest: {IMAGES}}}\n"
    )


def serve_and_load(
    console: Console, held_out: Digits, out: Path, seconds: float, seed: int
) -> Measured:
    """Serve, send the two phases and the ramp, stop. Raises ServeFailed, LoadFailed."""
    console.rule("tessera serve")
    with Serving(out / "modelservice.yaml", out / "state") as server:
        address = server.until_ready()
        status = server.status()
        if status is None or not status.max_requests_per_second:
            raise ServeFailed("the plan predicts no rate within the SLO on this machine")
        rates = choose_rates(status.max_requests_per_second)
        aimed = targets(address, held_out.images)
        console.rule("load")
        title = (
            f"Poisson arrivals, {rates.base:.0f}/s for {seconds:g} s, then {rates.step:.0f}/s; "
            f"{IMAGES} images each; HTTP and gRPC in turn"
        )
        plan = LoadPlan(aimed, two_phases(rates, seconds, seed), keep_answers=True)
        with Show(console, title, SLO_MS) as show:
            samples, ticks = run(plan, server.status, show.tick)
        shape = ramp(rates, seed + 1)
        first, last = shape.phases[0].rate_per_s, shape.phases[-1].rate_per_s
        title = f"Ramp from {first:.0f}/s to {last:.0f}/s: where does the SLO break?"
        with Show(console, title, SLO_MS) as show:
            ramped, _ = run(LoadPlan(aimed, shape, keep_answers=True), server.status, show.tick)
        found = maximum(ramped, shape, SLO_MS, PERCENT)
        ended = server.stop()
    return Measured(rates, samples, ticks, ramped, found, ended)


def report(
    console: Console,
    measured: Measured,
    expected: Expected,
    held_out: Digits,
    seconds: float,
    out: Path,
) -> int:
    """Print the summary, save the picture, and judge; the exit status."""
    wanted = grouped(expected.ensemble)
    compared = compare(measured.phases, PROTOCOLS, wanted)
    ramped = compare(measured.ramp, PROTOCOLS, wanted)
    phases = [
        summarise(measured.phases, turn * seconds, (turn + 1) * seconds, SLO_MS) for turn in (0, 1)
    ]
    console.rule("summary")
    console.print(accuracy_table(expected, compared, held_out))
    console.print(load_table(measured, phases, seconds))
    for name, phase in zip(("base", "step"), phases, strict=True):
        if phase.failed or phase.lost:
            console.print(f"{name}: {phase.statuses}", highlight=False)
    picture = out / "demo.png"
    draw(measured.phases, measured.ticks, measured.rates, SLO_MS, seconds, picture)
    console.print(f"picture: {picture}", highlight=False, soft_wrap=True)
    checks = judge(measured, phases, compared, ramped)
    for check in checks:
        mark = "[green]ok[/green]    " if check.holds else "[red]FAILED[/red]"
        console.print(f"{mark} {check.name}: {check.found}", highlight=False, soft_wrap=True)
    return 0 if all(check.holds for check in checks) else 1


def accuracy_table(expected: Expected, compared: Compared, held_out: Digits) -> Table:
    table = Table(title=f"Accuracy on {len(held_out.images)} held-out images")
    table.add_column("who")
    table.add_column("accuracy", justify="right")
    for name, probabilities in expected.members.items():
        table.add_row(name, f"{accuracy(probabilities, held_out.labels):.2%}")
    served = compared.served.reshape(expected.ensemble.shape)
    table.add_row("ensemble, as served", f"{accuracy(served, held_out.labels):.2%}")
    return table


def load_table(measured: Measured, phases: list[Summary], seconds: float) -> Table:
    table = Table(title="Load, as the client saw it")
    for name in ("phase", "sent", "rate /s", "p50 ms", "p99 ms", "predicted", "in SLO", "late"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for turn, (name, phase) in enumerate(zip(("base", "step"), phases, strict=True)):
        # The server's window ends with the phase: its prediction is for the phase's own rate.
        ticks = [t for t in measured.ticks if t.at_s <= (turn + 1) * seconds and t.status]
        status = ticks[-1].status if ticks else None
        table.add_row(
            name,
            str(phase.requests),
            f"{phase.rate_per_s:.0f}",
            number(phase.p50_ms),
            number(phase.p99_ms),
            number(status.predicted_p99_ms if status is not None else None),
            number(phase.attainment, ".2%"),
            str(phase.late),
        )
    found = measured.maximum
    sign = "≥ " if found.reached_end else ""
    table.caption = (
        f"maximum rate within the SLO: predicted {measured.rates.predicted_max:.0f}/s, "
        f"measured {sign}{found.rate_per_s:.0f}/s (ramp)"
    )
    return table


def judge(
    measured: Measured, phases: list[Summary], compared: Compared, ramped: Compared
) -> tuple[Check, ...]:
    """What has to hold for exit status 0."""
    answers, different = compared.answers + ramped.answers, compared.different + ramped.different
    worst = max(compared.worst, ramped.worst)
    within = sum(phase.attainment * phase.requests for phase in phases if phase.requests)
    attained = within / max(1, sum(phase.requests for phase in phases))
    lost = measured.phases.lost + measured.ramp.lost
    sent = len(measured.phases.status) + len(measured.ramp.status)
    return (
        Check(
            "every answer equals the in-process result",
            different == 0 and answers > 0,
            f"{different} of {answers} differ; largest difference of a probability {worst:.1e}",
        ),
        Check(
            f"{PERCENT:g} % within {SLO_MS:g} ms over both phases, as the client saw it",
            attained * 100 >= PERCENT,
            f"{attained:.2%}",
        ),
        Check("no request was lost", lost == 0, f"{lost} of {sent}"),
        Check(
            "the server drained and ended",
            measured.server_status == 0,
            f"exit status {measured.server_status}",
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
