"""What a worker does in its life, done once in the zygote with models that do next to nothing.

A first load imports modules behind the scenes, fills caches and writes to thousands of pages; a first batch
does so again. Done before the fork, workers inherit it: they start several times sooner, and the pages that
they only read are there once for all of them.
"""

from __future__ import annotations

import math
import socket
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tessera_runtime.datatypes import element_size
from tessera_runtime.engines.base import (
    EngineDevice,
    ModelFile,
    RunFailed,
    Signature,
    TensorMeta,
)
from tessera_runtime.engines.loading import load_engine
from tessera_runtime.engines.preload import write_example
from tessera_runtime.memory import create_region, map_readonly
from tessera_runtime.worker import messages as m
from tessera_runtime.worker.lane import Lane
from tessera_runtime.worker.part import Part

ARENA_BYTES = 1 << 12
BATCHES = (1, 2)


def rehearse(libraries: Iterable[str]) -> None:
    """Load and run an example of a Python model and of each of ``libraries``.

    What goes wrong is told and no more: it costs nothing but the time that it was to save.
    """
    for library in ("python", *libraries):
        try:
            with tempfile.TemporaryDirectory(prefix="tessera-rehearsal-") as directory:
                example = write_example(library, Path(directory))
                if example is not None:
                    _act(example)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            print(f"tessera-zygote: rehearsal of {library} failed: {reason}", file=sys.stderr)


def _act(example: ModelFile) -> None:
    engine = load_engine(example, EngineDevice("cpu", threads=1))
    fd, arena = create_region("tessera-rehearsal", ARENA_BYTES)
    ours, theirs = m.pair()
    with ours, arena:
        inputs = map_readonly(fd, ARENA_BYTES)
        part = Part(memoryview(inputs), engine.signature, engine.lane(BATCHES[-1]))
        lane = Lane(theirs, 0, [part])
        lane.warm(BATCHES, {})
        for batch, rows in enumerate(BATCHES + BATCHES):
            m.send(ours, _run(batch, rows, engine.signature))
        ours.shutdown(socket.SHUT_WR)
        lane.serve()  # until what was sent is answered
        inbox = m.Inbox()
        while data := inbox.receive(ours)[0]:
            answer = m.decode_from_lane(data)
            if isinstance(answer, m.Failed):
                raise RunFailed(answer.reason)
    engine.close()


def _run(batch: int, rows: int, signature: Signature) -> m.Run:
    """A batch of requests of one row each, all of the same zeros."""
    inputs = tuple(
        m.Input(t.name, t.row_shape, (0,) * rows, (_row_bytes(t),) * rows) for t in signature.inputs
    )
    return m.Run(batch, (1,) * rows, inputs)


def _row_bytes(meta: TensorMeta) -> int:
    return math.prod(meta.row_shape) * element_size(meta.datatype)
