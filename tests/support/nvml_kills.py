"""Cut a stand-in's GPU in processes that are killed after one call of the driver's library each: the first, the second …

Run as a program with the environment of :meth:`support.nvml_stand_in.StandIn.environment` and, as arguments, the GPU's UUID
and the wanted geometry (``3g.40gb@0``). After each kill the cut is repeated, and what it ends in is compared; then the
machine's file is put back. Prints as a JSON list what the kills left, each geometry once; ``!``: unfinished.

Forks, because an interpreter for each call would take minutes; the parent has NVML shut down whenever it does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from itertools import count
from pathlib import Path

from tessera_core.gpu.geometry import Geometry, Placement, canonical
from tessera_runtime.partitioner.cut import cut
from tessera_runtime.partitioner.gpu import MigGpu

PATIENCE_S = 60.0


def main(uuid: str, wanted: Geometry) -> None:
    machine = Path(os.environ["NVML_STAND_IN_STATE"])
    as_it_was = machine.read_bytes() if machine.exists() else b""
    left: set[str] = set()
    for calls in count(1):
        machine.write_bytes(as_it_was)
        killed = _cut_until(calls, uuid, wanted)
        with MigGpu(uuid) as gpu:
            left.add(
                " ".join(f"{each.placement}{'' if each.uuid else '!'}" for each in gpu.slices())
            )
            found = canonical(
                each.placement for each in cut(gpu, wanted, patience_s=PATIENCE_S) if each.uuid
            )
        if found != canonical(wanted):
            sys.exit(f"killed after {calls} calls and called again: {found}, wanted {wanted}")
        if not killed:
            print(json.dumps(sorted(left)))
            return


def _cut_until(calls: int, uuid: str, wanted: Geometry) -> bool:
    """Whether the child was killed by its last call; False when it came to the end of its work."""
    child = os.fork()
    if child == 0:
        os.environ["NVML_STAND_IN_FAULTS"] = f"* {calls} {calls} kill 0"
        try:
            with MigGpu(uuid) as gpu:
                cut(gpu, wanted, patience_s=PATIENCE_S)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status != 0:
        sys.exit(f"the child of {calls} calls failed")
    return False


def _placement(text: str) -> Placement:
    profile, _, start = text.partition("@")
    return Placement(profile, int(start))


if __name__ == "__main__":
    main(sys.argv[1], tuple(map(_placement, sys.argv[2:])))
