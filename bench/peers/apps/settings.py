"""What the bench tells a peer's program through its environment."""

from __future__ import annotations

import os
from pathlib import Path

from bench.models.served import Model, load

CAP = int(os.environ["BENCH_CAP"])
PORT = int(os.environ["BENCH_PORT"])
ROW_SHAPE = tuple(int(size) for size in os.environ["BENCH_SHAPE"].split(","))
NETWORKS = tuple(filter(None, os.environ["BENCH_NETWORKS"].split(",")))

WAIT_MS = 1
"""For a batch to fill, of the peers that cannot do without; as their measurements elsewhere have it."""


def model(networks: tuple[str, ...] = NETWORKS) -> Model:
    return load(Path(os.environ["BENCH_MODELS"]), networks)
