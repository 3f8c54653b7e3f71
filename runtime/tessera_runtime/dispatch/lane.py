"""The dispatcher's side of one instance: the batch it is running, and its answers."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tessera_core.batching.policy import Padded
from tessera_runtime.datatypes import DATATYPES, decode_bytes
from tessera_runtime.dispatch.probation import Probation
from tessera_runtime.dispatch.request import InputNames, Work
from tessera_runtime.dispatch.workers import OpenedLane
from tessera_runtime.memory import UntrustedMemory, map_readonly
from tessera_runtime.worker import messages as m

if TYPE_CHECKING:
    from tessera_runtime.dispatch.member import Member

log = logging.getLogger(__name__)

HANG_FACTOR = 20.0
"""A batch is hung after this many times its expected time, and never before the configured time-out."""

MOST_VIEWS = 64


class Lane:
    """One instance, and the batch it is running."""

    def __init__(
        self,
        member: Member,
        opened: OpenedLane,
        outputs: Sequence[Sequence[m.Tensor]],
        hang_timeout_s: float,
    ) -> None:
        """``outputs``: what each of its models has announced that it answers."""
        self.worker = opened.worker
        self.device = opened.worker.place.device
        self.batch: tuple[Work, ...] = ()
        """What it is running; empty while it is free."""
        self.rows = 0
        """Of what it ran last."""
        self.work = 0.0
        """The same in rows of the mean length."""
        self.shape: Hashable = None
        """What its inputs were padded to, where lengths vary."""
        self.began = 0.0
        """When it was sent that, monotonic seconds."""
        self.leaving = False
        """Whether it ends soon, so that others have to serve what waits."""
        self.probations: tuple[Probation | None, ...] = ()
        """Of each of its models, where one of them is a variant; empty where none is."""
        self._member = member
        self.output_names = [[output.name for output in each] for each in outputs]
        """Of each model."""
        self._announced = [(output.name, output.datatype) for each in outputs for output in each]
        self._sock = opened.sock
        self._inbox = m.Inbox()
        self._region = opened.region
        self._batch_id = 0
        self._hang_timeout_s = hang_timeout_s
        self._due = math.inf
        """When what it is running has taken too long."""
        self._watchdog: asyncio.TimerHandle | None = None
        self._looked_at = math.inf
        """When the watchdog looks next: a timer for each batch would cost more than the batch's message."""
        self._views: dict[tuple[m.Output, ...], list[np.ndarray]] = {}
        """Of the region, for answers that came before and were as announced."""
        self._loop = asyncio.get_running_loop()
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock.fileno(), self._on_packet)

    def watch(self, probations: tuple[Probation | None, ...]) -> None:
        """Tell these what becomes of batches: one for each model, None for one that is as it was loaded."""
        if any(each is not None for each in probations):
            self.probations = probations

    def saw(self, outputs: Sequence[np.ndarray]) -> None:
        """A batch came back."""
        first = 0
        for names, probation in zip(self.output_names, self.probations, strict=True):
            last = first + len(names)
            if probation is not None:
                probation.answered(outputs[first:last])
            first = last

    def failed(self, model: int, why: str) -> None:
        """A batch failed for a reason that lies with a model."""
        probation = self.probations[model]
        if probation is not None:
            probation.failed(why)

    def send(
        self,
        batch: tuple[Work, ...],
        inputs: tuple[m.Input, ...],
        now: float,
        expected_s: float,
    ) -> None:
        """Run ``batch`` from ``now`` on. A worker that is gone is noticed by its pidfd, not here."""
        self._batch_id += 1
        self.batch = batch
        limit = max(self._hang_timeout_s, HANG_FACTOR * expected_s)
        self.began = now
        self._due = now + limit
        if self._due < self._looked_at:
            self._watch(limit)
        run = m.Run(self._batch_id, tuple(work.request.rows for work in batch), inputs)
        try:
            m.send(self._sock, run)
        except OSError as error:
            log.warning("worker %d takes no batch: %s", self.worker.incarnation, error)
            self.worker.kill()

    def settle(self) -> tuple[Work, ...]:
        """The batch is over, one way or the other; its work is the caller's."""
        batch, self.batch = self.batch, ()
        self._due = math.inf
        if self.worker.domain.suspect is self:
            self.worker.domain.acquit()
        return batch

    def close(self) -> None:
        """Stop listening; the worker sees the end of the conversation and frees the instance."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        # A suspect lane and its worker know each other: what is mapped goes now, not when that cycle is found.
        self._views.clear()
        self._region = memoryview(b"")

    def _on_packet(self) -> None:
        fds: list[int] = []
        try:
            data, fds = self._inbox.receive(self._sock)
            if not data:
                self._loop.remove_reader(self._sock.fileno())
                self.worker.kill()
                return
            message = m.decode_from_lane(data)
            if message.incarnation != self.worker.incarnation:
                raise msgspec.ValidationError(f"incarnation {message.incarnation}")
            match message:
                case m.Region():
                    self._views.clear()
                    self._region = memoryview(map_readonly(fds.pop(), message.region_size))
                case m.Ran() if (
                    message.batch == self._batch_id
                    and self.batch
                    and len(message.infer_ns) == len(self.output_names)
                ):
                    self._member.ran(self, message, self._take(message.outputs))
                case m.Failed() if (
                    message.batch == self._batch_id
                    and self.batch
                    and 0 <= message.model < len(self.output_names)
                ):
                    self._member.batch_failed(self, message)
                case _:
                    raise msgspec.ValidationError(f"batch {message.batch}")
        except BlockingIOError:
            return
        except ConnectionResetError:  # it ended before it had read all that it was told
            self._loop.remove_reader(self._sock.fileno())
            self.worker.kill()
        except (OSError, ValueError, IndexError, KeyError, UntrustedMemory) as error:
            # msgspec's errors are ValueErrors. A worker that breaks the protocol is not listened to again.
            log.error("worker %d broke the protocol: %s", self.worker.incarnation, error)
            self._loop.remove_reader(self._sock.fileno())
            self.worker.kill()
        finally:
            for fd in fds:
                os.close(fd)

    def _take(self, outputs: tuple[m.Output, ...]) -> list[np.ndarray]:
        """Copy the answers out of the region, which the next batch will overwrite, in the announced order.

        Raises ValueError for anything but the announced outputs with a row for each of the batch's.
        """
        views = self._views.get(outputs)
        if views is None or outputs[0].shape[0] != self.rows:
            self._check(outputs)
            if any(output.datatype == "BYTES" for output in outputs):
                return [self._elements(output) for output in outputs]
            views = [self._view(output) for output in outputs]
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            self._views[outputs] = views
        return [view.copy() for view in views]

    def _check(self, outputs: Sequence[m.Output]) -> None:
        """Raises ValueError."""
        if [(output.name, output.datatype) for output in outputs] != self._announced or any(
            output.shape[:1] != (self.rows,) for output in outputs
        ):
            raise ValueError(f"answers {outputs!r:.200} for {self.rows} rows of {self._announced}")

    def _elements(self, output: m.Output) -> np.ndarray:
        if output.datatype != "BYTES":
            return self._view(output).copy()
        data = self._region[output.offset : output.offset + output.nbytes]
        return decode_bytes(data, math.prod(output.shape)).reshape(output.shape)

    def _view(self, output: m.Output) -> np.ndarray:
        data = self._region[output.offset : output.offset + output.nbytes]
        return np.frombuffer(data, DATATYPES[output.datatype]).reshape(output.shape)

    def _watch(self, wait_s: float) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._looked_at = time.monotonic() + wait_s
        self._watchdog = self._loop.call_later(wait_s, self._look)

    def _look(self) -> None:
        """End a worker that hangs; look again when what it is running now would be late."""
        self._watchdog = None
        self._looked_at = math.inf
        now = time.monotonic()
        if self._due <= now:
            log.error("worker %d takes too long for one batch: killed", self.worker.incarnation)
            self.worker.kill()
        elif self._due < math.inf:
            self._watch(self._due - now)


def descriptors_of(
    batch: Sequence[Work], names: InputNames, shape: Hashable
) -> tuple[m.Input, ...]:
    """Where the inputs of ``batch`` lie. All of its requests have the same row shapes, or are padded to ``shape``."""
    row_shapes = shape.row_shapes if isinstance(shape, Padded) else batch[0].request.row_shapes
    inputs: list[m.Input] = []
    for position, name in names:
        row_shape = row_shapes[position]
        tensors = [work.request.inputs[position] for work in batch]
        exact = [tensor.shape[1:] for tensor in tensors]
        inputs.append(
            m.Input(
                name,
                row_shape,
                tuple([tensor.slot.offset + tensor.start for tensor in tensors]),
                tuple([tensor.nbytes for tensor in tensors]),
                () if all(each == row_shape for each in exact) else tuple(exact),
            )
        )
    return tuple(inputs)
