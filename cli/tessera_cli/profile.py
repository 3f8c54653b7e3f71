"""`tessera profile`: measure the members of ModelServices on this machine, and keep the result."""

from __future__ import annotations

import argparse
import asyncio

from rich.table import Table

from tessera_cli.files import FileInvalid
from tessera_cli.output import add_output_argument, emit, fail
from tessera_cli.serve import (
    Bars,
    ServeFailed,
    add_state_dir,
    core_counts,
    running_server,
)
from tessera_cli.services import read_services
from tessera_core.api import ModelProfile
from tessera_core.plan.state import Policy
from tessera_runtime import mps, server_options
from tessera_runtime.agent.local import LocalAgent, Options
from tessera_runtime.agent.profiles import EngineMissing, engine_version
from tessera_runtime.control import ControlError
from tessera_runtime.devices.inventory import inventory
from tessera_runtime.models.errors import FetchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--file", action="append", required=True, help="ModelService YAML, or a directory"
    )
    add_state_dir(parser)
    server_options.add(parser, *server_options.CONFINEMENT)
    parser.add_argument("--cpu-cores", default="1", metavar="N,…", help="sizes of core sets")
    parser.add_argument(
        "--instances", default="1", metavar="N,…", help="instances at once per CPU device"
    )
    parser.add_argument(
        "--no-code", action="store_true", help="refuse TorchScript and Python models"
    )
    mps.add_options(parser)
    parser.add_argument("--again", action="store_true", help="measure also what is known already")
    add_output_argument(parser)
    parser.set_defaults(
        host="127.0.0.1",
        http=0,
        grpc=0,
        metrics=0,
        hang_timeout=60.0,
        drain_timeout=1.0,
        log_level="warning",
    )


def run(arguments: argparse.Namespace) -> int:
    try:
        profiles = asyncio.run(_measure(arguments))
    except (ServeFailed, FileInvalid, FetchError, EngineMissing, ControlError) as error:
        return fail("profile", str(error))
    except (OSError, ValueError) as error:
        return fail("profile", str(error))
    emit(arguments.output, [profile.to_dict() for profile in profiles], lambda: _table(profiles))
    return 0


async def _measure(arguments: argparse.Namespace) -> tuple[ModelProfile, ...]:
    services = read_services(arguments.file, allow_code=not arguments.no_code)
    formats = {member.model.format for service in services for member in service.spec.placed}
    libraries = {engine_version(each).split("-")[0] for each in formats} - {"python"}
    options = Options(
        state_dir=arguments.state_dir,
        policy=Policy(),
        cpu_cores=core_counts("--cpu-cores", arguments.cpu_cores),
        instances=core_counts("--instances", arguments.instances),
        allow_code=not arguments.no_code,
        hang_s=arguments.hang_timeout,
        mps=mps.processes(arguments),
    )
    async with running_server(arguments, tuple(sorted(libraries))) as (control, _):
        with Bars() as bars:
            agent = LocalAgent(services, inventory(), control, options, bars.callbacks)
            await agent.fetch()
            return await agent.measure((), again=arguments.again)


def _table(profiles: tuple[ModelProfile, ...]) -> Table:
    table = Table(title="service time per batch, gather and answer included")
    for column in (
        "model",
        "device",
        "engine",
        "instances",
        "batch",
        "p50 ms",
        "p99 ms",
        "rows /s",
    ):
        table.add_column(
            column, justify="left" if column in ("model", "device", "engine") else "right"
        )
    for profile in profiles:
        spec = profile.spec
        head = [spec.model_digest.removeprefix("sha256:")[:12], str(spec.device_class), spec.engine]
        for i, row in enumerate(profile.status.rows):
            table.add_row(
                *(head if i == 0 else [""] * 3),
                str(row.instances),
                str(row.batch),
                f"{row.p50_ms:.2f}",
                f"{row.p99_ms:.2f}",
                f"{row.throughput:.0f}",
                end_section=i == len(profile.status.rows) - 1,
            )
    return table
