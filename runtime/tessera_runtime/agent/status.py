"""The live state of a local server as `tessera status` shows it: a small JSON file, replaced every second."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

STATUS_FILE = "status.json"


class MemberStatus(msgspec.Struct, frozen=True):
    name: str
    device: str
    instances: int
    wanted: int
    batch_cap: int
    mean_batch: float | None
    """Rows per batch in the window; None when nothing ran."""
    queued_rows: int
    restarts: int
    problem: str = ""
    latency_ratio: float | None = None
    """Mean latency over what the profile says for the arrivals that came; None where nobody can say."""
    latency_unmet: str = ""
    """Why nobody can: what the exact mean assumes and was not so."""


class ServiceStatus(msgspec.Struct, frozen=True):
    name: str
    version: str
    ready: bool
    slo_ms: float
    percent: float
    window_s: float
    requests_per_second: float
    p50_ms: float | None
    p99_ms: float | None
    attainment: float | None
    """Of the SLO's own window."""
    good: int
    """Since the version was first served, as ``total``."""
    total: int
    predicted_p99_ms: float | None
    """At the measured rate, at the SLO's percentile. None: no profile, or the rate cannot be carried."""
    max_requests_per_second: float | None
    """Predicted largest rate within the SLO: of the members, or of the dispatcher where it is seen to
    carry less."""
    members: tuple[MemberStatus, ...]
    codes: dict[str, int]
    problem: str = ""


class LocalStatus(msgspec.Struct, frozen=True):
    updated: str
    """RFC 3339."""
    pid: int
    http: str
    grpc: str
    metrics: str
    ready: bool
    plan: str
    """Name of the plan that is served: the hash of its content."""
    services: tuple[ServiceStatus, ...]
    refused: tuple[str, ...] = ()
    """What could not be placed, and why."""


class NotServing(Exception):
    """No server writes its status there."""


def write_status(directory: Path, status: LocalStatus) -> None:
    """Replace the file atomically."""
    partial = directory / f"{STATUS_FILE}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(status), indent=1))
    os.replace(partial, directory / STATUS_FILE)


def read_status(directory: Path) -> LocalStatus:
    """The last status. Raises NotServing when there is none, or its server has ended."""
    path = directory / STATUS_FILE
    try:
        status = msgspec.json.decode(path.read_bytes(), type=LocalStatus)
    except FileNotFoundError as error:
        raise NotServing(f"no server keeps its state in {directory}") from error
    except msgspec.MsgspecError as error:
        raise NotServing(f"{path} is damaged: {error}") from error
    if not Path(f"/proc/{status.pid}").exists():
        raise NotServing(f"the server of {directory} (pid {status.pid}) has ended")
    return status
