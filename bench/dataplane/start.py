"""From the fork of a worker to its first answer, beside a plain start of the same.

The zygote has imported torch; a new service is applied and asked for until it answers. The plain start is a
new process that imports torch, loads the network and runs it once, on the same core.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.dataplane.running import Running, ServerFailed
from bench.peers.base import ONE_THREAD, ROOT, Array, Wire, Work, v2_request
from bench.peers.tessera import apply, model_name, model_paths, service
from bench.processes import on_cores

ANSWER_TIMEOUT_S = 30.0
_POLL_S = 0.002

_PLAIN = """\
import sys
from pathlib import Path
import numpy as np
from bench.models.served import load
load(Path(sys.argv[1]), sys.argv[2].split(","))(np.zeros(eval(sys.argv[3]), "f4"))
"""


def plain_start_s(work: Work, models: Path, cores: tuple[int, ...]) -> float:
    argv = [sys.executable, "-c", _PLAIN, str(models), ",".join(work.networks)]
    with on_cores(cores):
        begin = time.perf_counter()
        subprocess.run(
            [*argv, repr((1, *work.row_shape))],
            env=ONE_THREAD | {"PYTHONPATH": str(ROOT)},
            check=True,
        )
        return time.perf_counter() - begin


def first_answer_s(server: Running, models: Path, row: Array, number: int) -> float:
    """From telling ``server`` of a further service of its work to that service's first answer."""
    name = f"bench.further{number}"
    request = v2_request(name, server.work, Wire.HTTP, row)
    own = service(model_name(server.work), model_paths(server.work, models))
    further = service(name, model_paths(server.work, models))
    began = time.perf_counter()
    apply(server.directory, (own, further))
    while time.perf_counter() - began < ANSWER_TIMEOUT_S:
        try:
            server.ask(Wire.HTTP, request)
            return time.perf_counter() - began
        except ServerFailed:
            time.sleep(_POLL_S)
    raise ServerFailed(f"no answer in {ANSWER_TIMEOUT_S:.0f} s")
