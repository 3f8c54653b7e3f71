"""Third parties that measure the same server: NVIDIA's perf_analyzer, and MLPerf LoadGen's Server scenario.

perf_analyzer reads the server's own statistics before and after, so those have to be right. LoadGen sends
Poisson arrivals and calls a run VALID when the 99th percentile keeps to its bound and the run was long enough.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.dataplane.running import Running
from bench.peers.base import ENVIRONMENTS, HOST, Array, Wire, environment_python, not_installed
from bench.processes import on_cores

DRIVER = Path(__file__).with_name("loadgen_driver.py")
TIMEOUT_S = 120.0

LEAST_QUERIES = 700
"""LoadGen's early stopping calls no run of less than 662 queries VALID at a 99th percentile."""


class JudgeBroke(Exception):
    """It gave no verdict; the message has its last words."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A closed loop of ``concurrency`` requests, or Poisson arrivals."""

    concurrency: int = 0
    poisson_per_s: float = 0.0

    def __str__(self) -> str:
        if self.concurrency:
            return f"c={self.concurrency}"
        return f"Poisson {self.poisson_per_s:,.0f}/s"


@dataclass(frozen=True, slots=True)
class Judged:
    """What perf_analyzer says of one setting."""

    at: float
    """Concurrency, or requests per second."""
    rate_per_s: float
    p50_ms: float
    p99_ms: float


def perf_analyzer_missing() -> str:
    if why := not_installed("perf_analyzer"):
        return why
    return "" if list(_site("perf_analyzer").glob("**/perf_analyzer")) else "no binary in its wheel"


def perf_analyzer(
    server: Running,
    wire: Wire,
    model: str,
    cores: Sequence[int],
    setting: Setting,
    quick: bool = False,
) -> Judged:
    """Raises JudgeBroke."""
    work = server.work
    shape = ",".join(map(str, work.row_shape))
    with tempfile.TemporaryDirectory(prefix="bench-judge-") as name:
        table = Path(name) / "table.csv"
        program = next(_site("perf_analyzer").glob("**/bin/perf_analyzer"), None) or next(
            _site("perf_analyzer").glob("**/perf_analyzer")
        )
        argv = [
            *(str(program), "-m", model, "-u", f"{HOST}:{server.port(wire)}"),
            *("-i", wire.value, "--shape", f"{work.input}:{shape}", "-b", "1"),
            *("--percentile", "99", "-f", str(table)),
        ]
        if setting.poisson_per_s:
            argv += ["--async", "--request-rate-range", f"{setting.poisson_per_s:.0f}"]
            argv += ["--request-distribution", "poisson", "--max-threads", "4"]
            argv += ["--measurement-interval", "500" if quick else "2000", "-r", "3", "-s", "999"]
        else:
            # Windows by count: with windows by time it keeps every sample of a fast server.
            argv += [
                "--concurrency-range",
                str(setting.concurrency),
                "--measurement-mode",
                "count_windows",
            ]
            argv += ["--measurement-request-count", "500" if quick else "5000"]
            argv += ["-r", "3", "-s", "999"]
        cudart = next(_site("perf_analyzer").glob("**/libcudart.so.12"), None)
        libraries = {"LD_LIBRARY_PATH": str(cudart.parent)} if cudart else {}
        output = _run(argv, cores, libraries)
        if not table.exists():
            raise JudgeBroke(f"perf_analyzer: {output.strip()[-300:]}")
        return parse_perf_analyzer(table.read_text())


def parse_perf_analyzer(table: str) -> Judged:
    """The last line of its CSV, microseconds. Raises JudgeBroke."""
    lines = list(csv.DictReader(table.splitlines()))
    if not lines:
        raise JudgeBroke("perf_analyzer wrote an empty table")
    last = lines[-1]
    at = last.get("Concurrency") or last["Request Rate"]
    return Judged(
        float(at),
        float(last["Inferences/Second"]),
        float(last["p50 latency"]) / 1e3,
        float(last["p99 latency"]) / 1e3,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What LoadGen says of one rate."""

    valid: bool
    target_per_s: float
    scheduled_per_s: float
    p99_ms: float


def loadgen_missing() -> str:
    return not_installed("loadgen")


def loadgen(
    server: Running,
    rows: Array,
    rate_per_s: float,
    bound_ms: float,
    seconds: float,
    cores: Sequence[int],
) -> Verdict:
    """The Server scenario over HTTP. Its driver is Python: good to some 2,000 queries/s. Raises JudgeBroke."""
    with tempfile.TemporaryDirectory(prefix="bench-judge-") as name:
        directory = Path(name)
        requests = [server.peer.request(server.work, Wire.HTTP, row[None]).raw_http for row in rows]
        for number, request in enumerate(requests):
            (directory / f"request{number}").write_bytes(request)
        plan = {
            "port": server.ports.http,
            "requests": len(requests),
            "rate_per_s": rate_per_s,
            "bound_ms": bound_ms,
            "seconds": seconds,
            "queries": LEAST_QUERIES,
        }
        (directory / "plan.json").write_text(json.dumps(plan))
        output = _run([str(environment_python("loadgen")), str(DRIVER), name], cores, {})
        summary = directory / "mlperf_log_summary.txt"
        if not summary.exists():
            raise JudgeBroke(f"LoadGen: {output.strip()[-300:]}")
        return parse_loadgen(summary.read_text())


def parse_loadgen(summary: str) -> Verdict:
    """Of ``mlperf_log_summary.txt``. Raises JudgeBroke."""

    def field(pattern: str) -> str:
        found = re.search(rf"^\s*{pattern}\s*:\s*(\S+)", summary, re.MULTILINE)
        if found is None:
            raise JudgeBroke(f"LoadGen's summary has no line {pattern!r}")
        return found[1]

    return Verdict(
        valid=field("Result is") == "VALID",
        target_per_s=float(field("target_qps")),
        scheduled_per_s=float(field("Scheduled samples per second")),
        p99_ms=float(field(r"99.00 percentile latency \(ns\)")) / 1e6,
    )


def _site(name: str) -> Path:
    return ENVIRONMENTS / name


def _run(argv: Sequence[str], cores: Sequence[int], environment: dict[str, str]) -> str:
    with on_cores(cores):
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                env=os.environ | environment,
            )
        except subprocess.TimeoutExpired as error:
            raise JudgeBroke(f"{Path(argv[0]).name}: no result in {TIMEOUT_S:.0f} s") from error
    return done.stdout + done.stderr
