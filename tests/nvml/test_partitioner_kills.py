"""A partitioner that is killed after any call of the driver's library goes on when it is called again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from support import nvml_kills
from support.nvml_stand_in import StandIn
from tessera_core.gpu.geometry import Placement
from tessera_core.gpu.tables import H100_80_SXM
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu

UUID = "GPU-00000000-0000-4000-8000-000000000001"


def left_by_kills(stand_in: StandIn, *wanted: str) -> list[str]:
    """What a process that was killed on the way to ``wanted`` left, each once; ``!``: unfinished."""
    ran = subprocess.run(
        [sys.executable, str(nvml_kills.__file__), UUID, *wanted],
        env={
            **os.environ,
            **stand_in.environment(),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    left: list[str] = json.loads(ran.stdout)
    return left


def test_killed_while_it_switches_mig_on_and_creates_the_next_ends_in_what_is_wanted(
    machine: Callable[..., StandIn],
) -> None:
    stand_in = machine(H100_80_SXM)
    left = left_by_kills(stand_in, "3g.40gb@4", "1g.10gb@0")
    assert left == [
        "",
        "1g.10gb@0 3g.40gb@4",
        "1g.10gb@0! 3g.40gb@4",
        "3g.40gb@4",
        "3g.40gb@4!",
    ]


def test_killed_while_it_destroys_the_next_ends_in_what_is_wanted(
    machine: Callable[..., StandIn],
) -> None:
    stand_in = machine(H100_80_SXM)
    with MigGpu(UUID) as gpu:
        cut(gpu, (Placement("3g.40gb", 0), Placement("3g.40gb", 4)), patience_s=10)
    left = left_by_kills(stand_in, "3g.40gb@4", "2g.20gb@0")
    assert left == [
        "2g.20gb@0 3g.40gb@4",
        "2g.20gb@0! 3g.40gb@4",
        "3g.40gb@0 3g.40gb@4",
        "3g.40gb@0! 3g.40gb@4",
        "3g.40gb@4",
    ]
