"""`tessera tune`: find the fastest way to run models on a share of this machine, for `tessera serve` to use."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from tessera_cli.files import FileInvalid
from tessera_cli.output import add_output_argument, emit, fail, stderr
from tessera_cli.serve import Bars, ServeFailed, add_state_dir, running_server
from tessera_cli.services import read_services
from tessera_cli.tables import table
from tessera_core.api import ModelService
from tessera_core.api.members import Member
from tessera_core.api.modelservice import TuningMode
from tessera_core.gpu.devices import cpu_class
from tessera_core.tuning.verdict import Verdict
from tessera_runtime import server_options
from tessera_runtime.agent.choices import Choice, Choices
from tessera_runtime.agent.profiles import EngineMissing, engine_version
from tessera_runtime.agent.translate import LocalModel
from tessera_runtime.agent.tune_local import CELL_S, Place, choice, paired, places, tune
from tessera_runtime.control import ControlError
from tessera_runtime.devices.inventory import inventory
from tessera_runtime.models.cache import ModelCache
from tessera_runtime.models.errors import FetchError
from tessera_runtime.target import TuneOutcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="+", help="ModelService YAML, or a directory")
    parser.add_argument("--member", help="only the members called so")
    parser.add_argument(
        "--cores",
        type=int,
        default=1,
        metavar="N",
        help="the share that serves: cores of an instance",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="K",
        help="variants tried at once, on cores of their own",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=CELL_S,
        metavar="S",
        help="of measuring, per size of batch, share and variant",
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out variants that take minutes to build"
    )
    add_state_dir(parser)
    server_options.add(parser, *server_options.CONFINEMENT)
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


@dataclass(frozen=True, slots=True)
class _Tuned:
    service: str
    member: str
    tried: tuple[tuple[Verdict, TuneOutcome], ...]
    place: Place
    choice: Choice


def run(arguments: argparse.Namespace) -> int:
    try:
        tuned = asyncio.run(_tune(arguments))
    except (ServeFailed, FileInvalid, FetchError, EngineMissing, ControlError) as error:
        return fail("tune", str(error))
    except (OSError, ValueError) as error:
        return fail("tune", str(error))
    emit(arguments.output, [_document(each) for each in tuned], lambda: _table(tuned))
    return 0


async def _tune(arguments: argparse.Namespace) -> tuple[_Tuned, ...]:
    services = read_services(arguments.file, allow_code=False)
    work = [
        (service, member)
        for service in services
        for member in service.spec.members
        if arguments.member in (None, member.name)
    ]
    if not work:
        raise ValueError(f"--member: no member is called {arguments.member!r}")
    seen = inventory()
    where = places(seen.cores, arguments.cores, arguments.workers, seen.memory_mib)
    libraries = {engine_version(member.model.format).split("-")[0] for _, member in work}
    cache = ModelCache(arguments.state_dir / "models", max_bytes=64 << 30)
    choices = Choices(arguments.state_dir / "variants", seen.processor)
    place = cpu_class(arguments.cores, seen.memory_mib)
    tuned: list[_Tuned] = []
    async with running_server(arguments, tuple(sorted(libraries))) as (control, _):
        for service, member in work:
            with (
                Bars() as bars,
                await asyncio.to_thread(
                    cache.fetch, member.model.uri, member.model.digest
                ) as model,
            ):
                tried = await tune(
                    control,
                    member,
                    service.spec,
                    LocalModel(str(model.path), model.digest),
                    where,
                    lambda variant, done, of: bars.measuring(variant, "tuning", done, of),
                    compiling=not arguments.no_compile,
                    cell_s=arguments.seconds,
                )
                chosen = choice(model.digest, str(place), tried)
            choices.keep(chosen, place)
            tuned.append(_Tuned(service.served_name, member.name, tried, where[0], chosen))
            _warn(service, member)
    return tuple(tuned)


def _warn(service: ModelService, member: Member) -> None:
    if service.spec.tuning.mode is TuningMode.OFF:
        stderr.print(
            f"note: {service.served_name}/{member.name}: spec.tuning.mode is Off, so that it is served untuned",
            highlight=False,
        )


def _document(tuned: _Tuned) -> dict[str, Any]:
    return {
        "service": tuned.service,
        "member": tuned.member,
        "deviceClass": tuned.choice.place,
        "variant": tuned.choice.variant,
        "tried": [
            {
                "variant": verdict.variant,
                "promote": verdict.promote,
                "reason": verdict.reason.value,
                "words": verdict.words,
                "error": outcome.error,
                "buildSeconds": outcome.build_s,
                "cells": [
                    {
                        "share": cell.share,
                        "batch": cell.batch,
                        "p99": cell.variant.p99_ms,
                        "untunedP99": cell.untuned.p99_ms,
                        "throughput": cell.variant.throughput,
                        "untunedThroughput": cell.untuned.throughput,
                    }
                    for cell in paired(outcome, tuned.place.shares)
                ],
            }
            for verdict, outcome in tuned.tried
        ],
    }


def _table(tuned: tuple[_Tuned, ...]) -> Table:
    """Ratios over the untuned model, by share: p99, then throughput."""
    shares = sorted(tuned[0].place.shares)
    headings = tuple(f"p99, rows/s at {share:g}x" for share in shares)
    shown = table(
        "variants beside the untuned model",
        ("member", "variant"),
        ("error", *headings),
        ("verdict",),
    )
    for each in tuned:
        for verdict, outcome in each.tried:
            ratios = []
            for share in shares:
                cells = [c for c in paired(outcome, each.place.shares) if c.share == share]
                ratios.append(
                    ", ".join(
                        (
                            f"{sum(c.p99_ratio for c in cells) / len(cells):.2f}",
                            f"{sum(c.throughput_ratio for c in cells) / len(cells):.2f}",
                        )
                    )
                    if cells
                    else "-"
                )
            mark = "serves: " if verdict.variant == each.choice.variant else ""
            shown.add_row(
                f"{each.service}/{each.member}",
                verdict.variant,
                f"{outcome.error:.1e}" if outcome.error >= 0 else "-",
                *ratios,
                f"{mark}{verdict.words}",
            )
    return shown
