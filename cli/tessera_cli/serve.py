"""`tessera serve`: ModelServices from files, served on this machine until a signal."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tessera_cli.files import FileInvalid
from tessera_cli.output import fail, stderr, stdout
from tessera_cli.services import read_services
from tessera_cli.status import status_table
from tessera_core.api import ModelProfile, ModelService
from tessera_core.plan.decision import Plan, Why
from tessera_core.plan.explain import explain
from tessera_core.plan.state import Goal, Policy
from tessera_runtime import mps, server_options
from tessera_runtime.agent.local import LocalAgent, Options
from tessera_runtime.agent.local import Progress as AgentProgress
from tessera_runtime.agent.profiles import EngineMissing, engine_version, read_profiles
from tessera_runtime.agent.status import LocalStatus
from tessera_runtime.control import ControlClient, ControlError
from tessera_runtime.devices.inventory import Inventory, inventory
from tessera_runtime.models.errors import FetchError
from tessera_runtime.supervisor import control_path

READY_TIMEOUT_S = 300.0
DEFAULT_STATE_DIR = Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "tessera"


class ServeFailed(Exception):
    """Serving did not start; the message is for the user."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--file", action="append", required=True, help="ModelService YAML, or a directory"
    )
    server_options.add(parser, *server_options.ADDRESSES)
    parser.add_argument(
        "--profile",
        type=Path,
        action="append",
        default=[],
        help="ModelProfile JSON to use instead of measuring (repeatable)",
    )
    add_state_dir(parser)
    server_options.add(parser, *server_options.TLS_FILES)
    parser.add_argument(
        "--objective",
        choices=("rate", "cost"),
        default="rate",
        help="use all of this machine, or as little of it as the expected rate needs",
    )
    parser.add_argument(
        "--cpu-cores",
        default="1",
        metavar="N,…",
        help="sizes of core sets that instances may get; each is measured",
    )
    parser.add_argument(
        "--reserve-cores",
        type=int,
        default=None,
        help="cores kept for the dispatcher (default: one, where there are several)",
    )
    parser.add_argument(
        "--no-code",
        action="store_true",
        help="refuse TorchScript and Python models: they are programs",
    )
    parser.add_argument(
        "--gpus-on-cores",
        action="store_true",
        help="run on processor cores what is placed on GPUs: for trials without any",
    )
    mps.add_options(parser)
    server_options.add(parser, *server_options.CONFINEMENT)
    server_options.add(parser, "hang-timeout", "drain-timeout", "log-level")
    parser.set_defaults(log_level="warning")
    parser.add_argument("--live", action="store_true", help="draw the state every second")


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=DEFAULT_STATE_DIR,
        help="models, profiles, plan and status",
    )


def run(arguments: argparse.Namespace) -> int:
    try:
        prepared = _prepare(arguments)
        asyncio.run(_serve(arguments, prepared))
    except ServeFailed as error:
        fail("serve", str(error))
        return error.code
    except (FileInvalid, FetchError, EngineMissing, ControlError, OSError, ValueError) as error:
        return fail("serve", str(error))  # a SpecInvalid is a ValueError
    return 0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What can be known, and refused, before any process is started."""

    services: tuple[ModelService, ...]
    profiles: tuple[ModelProfile, ...]
    seen: Inventory
    options: Options
    libraries: tuple[str, ...]
    """That the models need."""


def _prepare(arguments: argparse.Namespace) -> _Prepared:
    allow_code = not arguments.no_code
    services = read_services(arguments.file, allow_code=allow_code)
    formats = {member.model.format for service in services for member in service.spec.placed}
    libraries = {engine_version(each).split("-")[0] for each in formats}
    seen = inventory()
    reserved = arguments.reserve_cores
    if reserved is None:
        reserved = 1 if len(seen.cores) > 1 and not seen.gpus else 0
    if not 0 <= reserved < len(seen.cores):
        raise ValueError(
            f"--reserve-cores: found {reserved}, this machine has {len(seen.cores)} cores"
        )
    objective = Goal.MAXIMISE_RATE if arguments.objective == "rate" else Goal.MINIMISE_COST
    state_dir: Path = arguments.state_dir
    state_dir.mkdir(parents=True, exist_ok=True)
    return _Prepared(
        services=services,
        profiles=read_profiles(arguments.profile),
        seen=seen,
        options=Options(
            state_dir=state_dir,
            host=arguments.host,
            tls=arguments.tls_cert is not None,
            policy=Policy(objective=objective, reserved_cores=reserved),
            cpu_cores=core_counts("--cpu-cores", arguments.cpu_cores),
            allow_code=allow_code,
            hang_s=arguments.hang_timeout,
            gpus_on_cores=arguments.gpus_on_cores,
            mps=mps.processes(arguments),
        ),
        libraries=tuple(sorted(libraries - {"python"})),
    )


def core_counts(option: str, text: str) -> tuple[int, ...]:
    """Ascending positive integers from ``1,2,4``. Raises ValueError that names ``option``."""
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        counts = ()
    if not counts or counts[0] < 1:
        raise ValueError(f"{option}: found {text!r}, allowed: positive numbers such as 1 or 1,2")
    return counts


async def _serve(arguments: argparse.Namespace, prepared: _Prepared) -> None:
    """Until a signal comes or the server ends."""
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    async with running_server(arguments, prepared.libraries) as (control, server):
        bring_up = _bring_up_and_run(arguments, prepared, control)
        serving = asyncio.create_task(bring_up)
        ended = asyncio.create_task(server.wait())
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({serving, ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()  # raises why it could not go on
        serving.cancel()
        if ended.done() and not stop.done():
            raise ServeFailed(f"the server ended with status {ended.result()}")
        stop.cancel()


async def _bring_up_and_run(
    arguments: argparse.Namespace, prepared: _Prepared, control: ControlClient
) -> None:
    with Bars() as bars:
        agent = LocalAgent(
            prepared.services, prepared.seen, control, prepared.options, bars.callbacks
        )
        await agent.fetch()
        plan = await _placed(agent, prepared.profiles)
        _check_placed(plan)
        await agent.apply()
        status = await _until_ready(agent)
    for explanation in explain(plan, agent.state):
        stdout.print(explanation.service, highlight=False)
        for line in explanation.lines:
            stdout.print(f"  {line}", highlight=False)
    if prepared.options.gpus_on_cores and prepared.seen.gpus:
        stderr.print("warning: --gpus-on-cores: no GPU is used, and latencies are those of cores")
    served = ", ".join(service.served_name for service in prepared.services)
    stdout.print(f"ready: {served} on {status.http} and grpc {status.grpc}", highlight=False)
    await agent.run(_draw if arguments.live else _ignore)


async def _placed(agent: LocalAgent, given: Sequence[ModelProfile]) -> Plan:
    """What one bad moment of this machine made too slow is measured once more before it is refused."""
    await agent.measure(given)
    plan = agent.replan()
    if not (agent.relies_on_earlier and any(r.why is Why.INFEASIBLE for _, _, r in plan.refused)):
        return plan
    stderr.print(
        "warning: too slow for its target by what an earlier run measured; measuring again",
        highlight=False,
    )
    await agent.measure(given, again=True)
    return agent.replan()


async def _until_ready(agent: LocalAgent) -> LocalStatus:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not (status := await agent.report()).ready:
                for service in status.services:
                    if service.problem:
                        raise ServeFailed(f"{service.name}: {service.problem}")
                await asyncio.sleep(0.05)
            return status
    except TimeoutError as error:
        raise ServeFailed(f"not ready within {READY_TIMEOUT_S:.0f} s") from error


def _check_placed(plan: Plan) -> None:
    if plan.refused:
        lines = [f"{s}/{m}: {r.why.value}: {r.detail}" for s, m, r in plan.refused]
        raise ServeFailed("cannot be placed on this machine:\n  " + "\n  ".join(lines))
    for service in plan.services:
        if service.short is not None:
            stderr.print(
                f"warning: {service.service}: {service.short.why.value}: {service.short.detail}",
                highlight=False,
            )


@asynccontextmanager
async def running_server(
    arguments: argparse.Namespace, libraries: tuple[str, ...]
) -> AsyncIterator[tuple[ControlClient, Process]]:
    """The server as a child process that answers on its control socket. Raises ServeFailed."""
    with tempfile.TemporaryDirectory(prefix="tessera-") as directory:
        server = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tessera_runtime.supervisor",
            "--plain-names",
            f"--run-dir={directory}",
            f"--preload={','.join(libraries)}",
            f"--parent={os.getpid()}",
            f"--artefacts={arguments.state_dir.absolute() / 'models' / 'tuned'}",
            *server_options.again(arguments),
            start_new_session=True,  # Ctrl-C reaches this process alone, and the server is let drain
        )
        control = ControlClient(str(control_path(Path(directory))))
        try:
            await _answering(control, server)
            yield control, server
        finally:
            await control.close()
            if server.returncode is None:
                server.terminate()
                await server.wait()


async def _answering(control: ControlClient, server: Process) -> None:
    for _ in range(600):
        if server.returncode is not None:
            if server.returncode == os.EX_CONFIG:
                raise ServeFailed(
                    "the server cannot work with its settings (see above)", os.EX_CONFIG
                )
            raise ServeFailed(f"the server did not start: status {server.returncode}")
        try:
            await control.report()
        except ControlError:
            await asyncio.sleep(0.1)
        else:
            return
    raise ServeFailed("the server does not answer on its control socket")


class Bars:
    """Progress of fetching and measuring, on standard error."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=stderr
        )
        self._fetching: dict[str, TaskID] = {}
        self._measuring: TaskID | None = None
        self.callbacks = AgentProgress(self.fetching, self.measuring)

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def fetching(self, member: str, done: int, total: int | None) -> None:
        task = self._fetching.get(member)
        if task is None:
            task = self._fetching[member] = self._progress.add_task(f"fetch {member}", total=total)
        self._progress.update(task, completed=done, total=total)

    def measuring(self, member: str, place: str, done: int, total: int) -> None:
        text = f"measure {member} on {place}" if member else "measured"
        if self._measuring is None:
            self._measuring = self._progress.add_task(text, total=total)
        self._progress.update(self._measuring, completed=done, total=total, description=text)


def _draw(status: LocalStatus) -> None:
    stdout.print(status_table(status))


def _ignore(status: LocalStatus) -> None:
    del status
