"""Closed loops by programs in C, so that the client does not hide the server: wrk for HTTP, h2load for gRPC.

Both keep one request in flight on each of ``connections`` connections.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.peers.base import HOST, Request, Wire
from bench.processes import on_cores

PROGRAMS = {Wire.HTTP: "wrk", Wire.GRPC: "h2load"}
_EMPTY_TRIES = 3
_GRACE_S = 30.0


class LoadBroke(Exception):
    """The load says nothing about the server: requests failed, or the program did."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a closed loop saw."""

    requests: int
    """Answered well."""
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int = 0
    """Answered with an error, where that was allowed; percentiles are of both."""


def missing_programs() -> str:
    """Names of those that are not installed."""
    return " ".join(name for name in PROGRAMS.values() if shutil.which(name) is None)


def closed_loop(
    request: Request,
    wire: Wire,
    port: int,
    connections: int,
    seconds: float,
    cores: Sequence[int],
    answer_bytes: int,
    refusals: bool = False,
) -> Loaded:
    """Load for ``seconds``. ``answer_bytes`` is the size of a good answer; with ``refusals``, HTTP errors are
    counted and no failure. Raises LoadBroke.
    """
    with tempfile.TemporaryDirectory(prefix="bench-load-") as name:
        directory = Path(name)
        (directory / "body").write_bytes(request.body)
        if wire is Wire.HTTP:
            return _wrk(request, port, connections, seconds, cores, directory, refusals)
        for _ in range(_EMPTY_TRIES):
            found = _h2load(request, port, connections, seconds, cores, answer_bytes, directory)
            if found.requests:
                return found
        raise LoadBroke("h2load: not one request was answered")


_WRK_SCRIPT = """\
wrk.method = "POST"
wrk.body = io.open("{body}", "rb"):read("*a")
{headers}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{{"requests": %d, "us": %d, "p50_us": %f, "p99_us": %f, "errors": '
    .. '{{"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.status, e.timeout))
end
"""


def _wrk(
    request: Request,
    port: int,
    connections: int,
    seconds: float,
    cores: Sequence[int],
    directory: Path,
    refusals: bool,
) -> Loaded:
    headers = "\n".join(f'wrk.headers["{k}"] = "{v}"' for k, v in request.headers.items())
    script = directory / "request.lua"
    script.write_text(_WRK_SCRIPT.format(body=directory / "body", headers=headers))
    # wrk takes whole seconds; what it sent in them is counted.
    whole = max(1, round(seconds))
    argv = [
        *("wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "10s", "-s", str(script)),
        f"http://{HOST}:{port}{request.path}",
    ]
    return parse_wrk(_run(argv, cores, seconds), refusals)


def parse_wrk(output: str, refusals: bool = False) -> Loaded:
    """Of the line that the script above prints at the end. Raises LoadBroke."""
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if not lines:
        raise LoadBroke(f"wrk printed no result: {output[-300:]!r}")
    said = json.loads(lines[-1])
    errors = {kind: count for kind, count in said["errors"].items() if count}
    refused = errors.pop("status", 0) if refusals else 0
    if errors or said["requests"] <= refused:
        raise LoadBroke(f"wrk: {errors or 'only refusals'} in {said['requests']} requests")
    return Loaded(
        said["requests"] - refused,
        said["us"] / 1e6,
        said["p50_us"] / 1e3,
        said["p99_us"] / 1e3,
        refused,
    )


def _h2load(
    request: Request,
    port: int,
    connections: int,
    seconds: float,
    cores: Sequence[int],
    answer_bytes: int,
    directory: Path,
) -> Loaded:
    log = directory / "requests.tsv"
    log.unlink(missing_ok=True)
    headers = [part for k, v in request.headers.items() for part in ("-H", f"{k}: {v}")]
    argv = [
        *("h2load", f"-c{connections}", "-m1", "-t1", "-D", f"{seconds * 1e3:.0f}ms"),
        *("-d", str(directory / "body"), *headers, f"--log-file={log}"),
        f"http://{HOST}:{port}{request.path}",
    ]
    output = _run(argv, cores, seconds)
    return parse_h2load(output, log.read_text() if log.exists() else "", seconds, answer_bytes)


_REQUESTS = re.compile(r"requests: \d+ total, .* (\d+) succeeded, (\d+) failed")
_DATA = re.compile(r"traffic: .*\((\d+)\) data")


def parse_h2load(output: str, log: str, seconds: float, answer_bytes: int) -> Loaded:
    """Of its summary and log (start µs, status, µs). It takes any HTTP status 200 for an answer, and gRPC's
    errors are such: they have no message, which the volume of data tells. Raises LoadBroke.
    """
    requests, data = _REQUESTS.search(output), _DATA.search(output)
    if requests is None or data is None:
        raise LoadBroke(f"h2load printed no result: {output[-300:]!r}")
    succeeded, failed = map(int, requests.groups())
    entries = [line.split("\t") for line in log.splitlines()]
    took = np.array([int(us) for _, status, us in entries if status == "200"])
    if failed or any(status not in ("200", "-1") for _, status, _ in entries):
        raise LoadBroke(f"h2load: {failed} of {succeeded + failed} requests failed")
    if not succeeded or not took.size:
        return Loaded(0, seconds, float("nan"), float("nan"))
    if int(data[1]) < 0.95 * succeeded * answer_bytes:
        raise LoadBroke(
            f"h2load: {int(data[1])} bytes in {succeeded} answers of {answer_bytes}: calls failed"
        )
    p50, p99 = np.percentile(took, (50, 99)) / 1e3
    return Loaded(succeeded, seconds, float(p50), float(p99))


def _run(argv: Sequence[str], cores: Sequence[int], seconds: float) -> str:
    with on_cores(cores):
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=seconds + _GRACE_S, check=False
        )
    if done.returncode:
        raise LoadBroke(f"{argv[0]}: status {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout
