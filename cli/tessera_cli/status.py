"""`tessera status`: what a local server does right now."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from rich.table import Table

from tessera_cli.output import add_output_argument, emit, fail
from tessera_runtime.agent.status import LocalStatus, NotServing, read_status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from tessera_cli.serve import add_state_dir

    add_state_dir(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    directory: Path = arguments.state_dir
    try:
        status = read_status(directory)
    except NotServing as error:
        return fail("status", str(error))
    emit(arguments.output, msgspec.to_builtins(status), lambda: status_table(status))
    return 0 if status.ready else 1


def status_table(status: LocalStatus) -> Table:
    """One row per service, one below it per member."""
    table = Table(title=f"{status.http}  {status.updated}")
    for column in (
        "service",
        "ready",
        "rate /s",
        "max /s",
        "p50 ms",
        "p99 ms",
        "predicted",
        "SLO ms",
    ):
        table.add_column(column, justify="left" if column == "service" else "right")
    table.add_column("in SLO", justify="right")
    table.add_column("batch (cap)", justify="right")
    table.add_column("instances", justify="right")
    table.add_column("latency / profile", justify="right")
    for service in status.services:
        table.add_row(
            service.name,
            "yes" if service.ready else "no",
            f"{service.requests_per_second:.1f}",
            _number(service.max_requests_per_second, ".0f"),
            _number(service.p50_ms),
            _number(service.p99_ms),
            _number(service.predicted_p99_ms),
            f"{service.slo_ms:g}",
            _number(service.attainment, ".2%"),
            end_section=not service.members,
        )
        for i, member in enumerate(service.members):
            batch = f"{_number(member.mean_batch)} ({member.batch_cap})"
            instances = f"{member.instances}/{member.wanted}"
            blanks = [""] * 8
            last = i == len(service.members) - 1
            ratio = _number(member.latency_ratio, ".2f")
            table.add_row(f"  {member.name}", *blanks, batch, instances, ratio, end_section=last)
    return table


def _number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)
