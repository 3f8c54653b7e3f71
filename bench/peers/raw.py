"""Peers without a binary tensor protocol: one row's bytes as the body, the answer's bytes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bench.peers.base import BATCH_CAP, ONE_THREAD, ROOT, Array, Ports, Request, Work


def raw_request(path: str, rows: Array) -> Request:
    headers = {"Content-Type": "application/octet-stream"}
    return Request(path, headers, rows.tobytes(), lambda body: np.frombuffer(body, "<f4")[None])


def app_environment(work: Work, models: Path, ports: Ports) -> dict[str, str]:
    """What the programs in ``apps`` read."""
    return ONE_THREAD | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "BENCH_MODELS": str(models),
        "BENCH_NETWORKS": ",".join(work.networks),
        "BENCH_SHAPE": ",".join(map(str, work.row_shape)),
        "BENCH_CAP": str(BATCH_CAP),
        "BENCH_PORT": str(ports.http),
    }
