"""The load in a process of its own, seen from the process that wants it.

Messages travel over the child's standard input and output as a 4-byte length and MessagePack. The child ends
by itself when its load is over or its parent is gone.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import IO

import msgspec

from tessera_cli.loadgen.drive import run_load
from tessera_cli.loadgen.plan import (
    Broke,
    Finished,
    LoadFailed,
    LoadPlan,
    Message,
    Progress,
    Started,
)
from tessera_cli.loadgen.samples import Samples

_LENGTH = struct.Struct("<Q")
_END_GRACE_S = 5.0


class LoadProcess:
    """A running load; a context manager, so that no load outlives whoever looks at it."""

    def __init__(self, plan: LoadPlan) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tessera_cli.loadgen"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._plan = plan
        self._samples: Samples | None = None

    def __enter__(self) -> LoadProcess:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        if self._process.poll() is None and self._samples is None:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(_END_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def messages(self) -> Iterator[Started | Progress]:
        """Send the plan, then yield what the load reports, until it has finished. Raises LoadFailed."""
        assert self._process.stdin is not None, "a pipe"
        assert self._process.stdout is not None, "a pipe"
        _write(self._process.stdin, msgspec.msgpack.encode(self._plan))
        while document := _read(self._process.stdout):
            match msgspec.msgpack.decode(document, type=Message):
                case Broke(reason):
                    raise LoadFailed(reason)
                case Finished() as finished:
                    self._samples = Samples.of(finished)
                    return
                case Started() | Progress() as message:
                    yield message
        raise LoadFailed(
            f"the load's process ended with status {self._process.wait()} and no result"
        )

    def samples(self) -> Samples:
        """The result; reads :meth:`messages` to their end where nobody has. Raises LoadFailed."""
        if self._samples is None:
            for _ in self.messages():
                pass
        assert self._samples is not None, "messages end with Finished or raise"
        return self._samples


def serve_parent(parent: IO[bytes], reports: IO[bytes]) -> None:
    """The child: one plan in, messages out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent decides
    plan = msgspec.msgpack.decode(_read(parent), type=LoadPlan)
    if plan.cores:
        os.sched_setaffinity(0, plan.cores)

    def emit(message: Message) -> None:
        _write(reports, msgspec.msgpack.encode(message))

    try:
        run_load(plan, emit)
    except LoadFailed as error:
        emit(Broke(str(error)))
    except BrokenPipeError:
        pass  # the parent is gone, and with it the reason for this load


def _write(stream: IO[bytes], document: bytes) -> None:
    stream.write(_LENGTH.pack(len(document)) + document)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    """One document; nothing at the end of the stream."""
    prefix = stream.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        return b""
    size = _LENGTH.unpack(prefix)[0]
    document = stream.read(size)
    return document if len(document) == size else b""
