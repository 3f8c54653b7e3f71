"""Continuous open-loop load while something breaks, and what became of every request of it.

Requests are sent at the times of a Poisson process, whatever became of those before: a server that stands still
is asked on, as by its users. Half go over HTTP, half over gRPC. Every answer is compared with the one it should be.
A client connects again when its connection has ended, and does not repeat a request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc
import numpy as np

from support.model_files import rows
from tessera_runtime.protocol.messages import SERVICE, ModelInferRequest, ModelInferResponse
from tessera_runtime.target import Ports

ANSWER_S = 25.0
"""A request without an answer or an end of its connection for so long hangs."""

SLO_S = 0.25

_LOST = "lost"
_HUNG = "hung"
_WRONG = "wrong"
_RIGHT = "right"


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the requests of one load."""

    sent: int
    right: int
    wrong: int
    failed: Mapping[str, int]
    """Answered with an error, by HTTP status or gRPC code."""
    lost: int
    """Their connection ended without an answer."""
    hung: int
    """Neither: no answer and no end."""
    late: int
    """Of the right ones: after the SLO."""
    outage_s: float
    """The longest time between two right answers."""

    def __str__(self) -> str:
        failed = ", ".join(f"{n} with {code}" for code, n in sorted(self.failed.items())) or "0"
        return (
            f"{self.sent} sent, {self.right} right, {self.wrong} wrong, failed: {failed}, "
            f"{self.lost} lost, {self.hung} hung, {self.late} late, "
            f"{self.outage_s:.2f} s longest without a right answer"
        )

    @property
    def nothing_but_right(self) -> bool:
        return self.right == self.sent


@dataclass(frozen=True, slots=True)
class _Ended:
    sent: float
    ended: float
    outcome: str


class FaultLoad:
    """Load from entry to exit of the ``with`` block; :meth:`counts` afterwards."""

    def __init__(
        self,
        ports: Ports,
        model: str,
        answer: Callable[[np.ndarray], np.ndarray],
        rate_per_s: float = 120.0,
        seed: int = 1,
    ) -> None:
        self._ports = ports
        self._model = model
        self._answer = answer
        self._rate = rate_per_s
        self._random = random.Random(seed)
        self._sent = 0
        self._ended: list[_Ended] = []
        self._outcomes: Counter[str] = Counter()
        self._moved = threading.Condition()
        self._stop = threading.Event()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="fault-load")

    def __enter__(self) -> FaultLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2 * ANSWER_S)
        assert not self._thread.is_alive(), "the load does not end"

    @property
    def in_flight(self) -> int:
        with self._moved:
            return self._sent - len(self._ended)

    def wait_right(self, more: int) -> None:
        """Until ``more`` right answers to requests that are sent from now on have come."""
        now = time.monotonic()
        with self._moved:
            seen = len(self._ended)
            found = 0
            give_up = now + ANSWER_S
            while found < more:
                assert self._moved.wait(max(0.0, give_up - time.monotonic())), (
                    f"{found} of {more} right answers came: {self._outcomes}"
                )
                news, seen = self._ended[seen:], len(self._ended)
                found += sum(each.outcome == _RIGHT and each.sent >= now for each in news)

    def counts(self) -> Counts:
        """Of the whole load; called when it has ended."""
        right = sorted(each.ended for each in self._ended if each.outcome == _RIGHT)
        failed = {
            name: number
            for name, number in self._outcomes.items()
            if name not in (_LOST, _HUNG, _WRONG, _RIGHT)
        }
        return Counts(
            sent=self._sent,
            right=self._outcomes[_RIGHT],
            wrong=self._outcomes[_WRONG],
            failed=failed,
            lost=self._outcomes[_LOST],
            hung=self._outcomes[_HUNG],
            late=sum(e.outcome == _RIGHT and e.ended - e.sent > SLO_S for e in self._ended),
            outage_s=max((b - a for a, b in itertools.pairwise(right)), default=0.0),
        )

    def _wait_ended(self) -> None:
        with self._moved:
            self._moved.wait_for(lambda: len(self._ended) == self._sent, 2 * ANSWER_S)

    def _end(self, sent: float, outcome: str) -> None:
        with self._moved:
            self._ended.append(_Ended(sent, time.monotonic(), outcome))
            self._outcomes[outcome] += 1
            self._moved.notify_all()

    def _judge(self, x: np.ndarray, y: np.ndarray) -> str:
        return _RIGHT if np.array_equal(y, self._answer(x)) else _WRONG

    async def _run(self) -> None:
        # A channel of its own: a load must not inherit the pauses of a connection that another one has lost.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
        channel = grpc.insecure_channel(f"127.0.0.1:{self._ports.grpc}", options)
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        asking: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while not self._stop.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += self._random.expovariate(self._rate)
            number = self._sent
            x = rows(number % 8000, 1 + number % 3)
            with self._moved:
                self._sent += 1
            if number % 2:
                self._ask_grpc(infer, x)
            else:
                task = asyncio.create_task(self._ask_http(x))
                asking.add(task)
                task.add_done_callback(asking.discard)
        if asking:
            await asyncio.wait(asking)
        await asyncio.to_thread(self._wait_ended)
        channel.close()
        for _, writer in self._idle:
            await _hang_up(writer)

    async def _ask_http(self, x: np.ndarray) -> None:
        sent = time.monotonic()
        writer = None
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await self._connected()
                given = {"name": "x", "shape": x.shape, "datatype": "FP32"}
                body = json.dumps({"inputs": [given | {"data": x.ravel().tolist()}]}).encode()
                head = f"POST /v2/models/{self._model}/infer HTTP/1.1\r\nHost: x\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                status, answered = await _read_answer(reader)
            if status == 200:
                [output] = json.loads(answered)["outputs"]
                y = np.array(output["data"], np.float32).reshape(output["shape"])
                outcome = self._judge(x, y)
            else:
                outcome = f"HTTP {status}"
        except TimeoutError:
            outcome = _HUNG
        except (OSError, EOFError):
            outcome = _LOST
        if writer is not None:
            if outcome in (_LOST, _HUNG):
                await _hang_up(writer)
            else:
                self._idle.append((reader, writer))
        self._end(sent, outcome)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing() and reader.exception() is None:
                return reader, writer
            await _hang_up(writer)
        return await asyncio.open_connection("127.0.0.1", self._ports.http)

    def _ask_grpc(self, infer: grpc.UnaryUnaryMultiCallable, x: np.ndarray) -> None:
        request = ModelInferRequest(model_name=self._model, raw_input_contents=[x.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=x.shape)
        sent = time.monotonic()

        def ended(call: grpc.Future) -> None:
            error = call.exception()
            if error is None:
                answer = ModelInferResponse.FromString(call.result())
                shape = tuple(answer.outputs[0].shape)
                y = np.frombuffer(answer.raw_output_contents[0], np.float32)
                outcome = self._judge(x, y.reshape(shape))
            elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                outcome = (
                    _HUNG  # no SLO of the tests is that long: the server would have said something
                )
            elif _of_the_connection(error):
                outcome = _LOST
            else:
                outcome = f"gRPC {error.code().name}"
            self._end(sent, outcome)

        call = infer.future(request.SerializeToString(), timeout=ANSWER_S, wait_for_ready=True)
        call.add_done_callback(ended)


_BROKEN = ("Socket closed", "recvmsg", "Connection reset", "Broken pipe", "Stream removed", "RST")


def _of_the_connection(error: grpc.RpcError) -> bool:
    """Whether the client's own library says so, and not the server."""
    text = str(error.details())
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN) and any(
        each in text for each in _BROKEN
    )


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    lengths = [line for line in lines if line.lower().startswith(b"content-length:")]
    body = await reader.readexactly(int(lengths[0].partition(b":")[2])) if lengths else b""
    return int(lines[0].split()[1]), body


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        pass
