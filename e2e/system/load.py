"""Open-loop load as clients cause it: at its times whatever the server does, over old and new connections.

Requests take turns over four ways: HTTP and gRPC, each over connections that are kept and over one that is made for
it. Nothing is tried a second time, and every answer is compared with what the models say, so that what is counted
is what a client would see. Rates are meant to be low: it is failures that are counted here, not throughput.

What fails because this machine itself was taken away says nothing of the system on it, and is counted apart; see
:attr:`Result.excused`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

import aiohttp
import numpy as np
import tritonclient.grpc as grpc_client
from e2e.system.models import INPUT, OUTPUT, Array
from e2e.system.stolen import Reading, taken_away, within

KEPT_HTTP, NEW_HTTP, KEPT_GRPC, NEW_GRPC = "http", "http, new", "grpc", "grpc, new"
WAYS = (KEPT_HTTP, KEPT_GRPC, NEW_HTTP, NEW_GRPC)
_TOLERANCE = 1e-4
_SHOWN = 12
_WRONG = "wrong answer"
_CONNECT_S = 5.0
_POLL_S = 0.1
_LOOK_S = 0.5
"""Between two looks at what was stolen."""
_STALLED_S = 0.5
"""A request that fails is excused if the machine was away for so much of its time: what fails at once never is."""
_MOST_EXCUSED = 0.1
"""Of all requests: beyond it nothing was tested."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where clients find a service."""

    address: str
    """Its ClusterIP, or that of one pod."""
    host: str
    """The name that they call it by."""
    model: str
    """In the path of HTTP."""
    served_name: str
    """In messages of gRPC."""
    http: int = 80
    grpc: int = 8001


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one client saw."""

    way: str
    at_s: float
    """When the request was to be sent, since the load began."""
    seconds: float
    answer: str
    """Name of the expected answer that came; empty: none of them."""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """All outcomes, in the order of the requests."""

    outcomes: tuple[Outcome, ...]
    away: tuple[tuple[float, float], ...] = ()
    """From when to when this machine was taken away, in seconds since the load began."""

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(each for each in self.outcomes if each.problem and not self._excuses(each))

    @property
    def excused(self) -> tuple[Outcome, ...]:
        """What got no answer while the machine was taken away. A wrong answer is never excused."""
        return tuple(each for each in self.outcomes if each.problem and self._excuses(each))

    def _excuses(self, each: Outcome) -> bool:
        gone_s = within(self.away, each.at_s, each.at_s + each.seconds)
        return gone_s >= _STALLED_S and not each.problem.startswith(_WRONG)

    def answers(self, since_s: float = 0.0) -> set[str]:
        """Which answers came to requests of then and later."""
        return {each.answer for each in self.outcomes if each.answer and each.at_s >= since_s}

    def __str__(self) -> str:
        lines = []
        for way in WAYS:
            found = [each for each in self.outcomes if each.way == way]
            if not found:
                continue
            counts = Counter(each.answer or "FAILED" for each in found)
            good = sorted(1e3 * each.seconds for each in found if each.answer)
            spread = (
                f"p50 {good[len(good) // 2]:.1f} ms, p99 {good[int(len(good) * 0.99)]:.1f} ms, "
                f"most {good[-1]:.0f} ms"
                if good
                else ""
            )
            counted = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
            lines.append(f"{way:10} {counted}; {spread}")
        if self.away:
            gone_s = sum(last - first for first, last in self.away)
            lines.append(f"machine taken away for {gone_s:.1f} s; excused: {len(self.excused)}")
        return "\n".join(lines)


def zero_failures(result: Result) -> None:
    """Assert that every request was answered, and rightly; says what failed, and when."""
    print(result)
    failures = result.failures
    told = [
        f"  {each.at_s:7.2f} s, after {each.seconds:.2f} s, {each.way}: {each.problem}"
        for each in failures[:_SHOWN]
    ]
    kinds = Counter(each.problem[:100] for each in failures)
    assert not failures, "\n".join(
        [
            f"{len(failures)} of {len(result.outcomes)} requests failed",
            *told,
            *(f"  {count} x {problem}" for problem, count in kinds.most_common(_SHOWN)),
        ]
    )
    assert result.outcomes, "no request was sent"
    assert len(result.excused) <= _MOST_EXCUSED * len(result.outcomes), (
        f"the machine was taken away for so long that {len(result.excused)} of "
        f"{len(result.outcomes)} requests failed: nothing was tested"
    )


@dataclass
class Load:
    """Requests at a steady rate from entry to exit of the ``with`` block; then ``result``.

    ``expected``: right answers to ``x`` by name. ``longest_s``: it stops by itself after that.
    """

    target: Target
    x: Array
    expected: Mapping[str, Array]
    rate: float = 20.0
    longest_s: float = 180.0
    timeout_s: float = 20.0
    ways: tuple[str, ...] = WAYS
    result: Result = field(init=False)
    began_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._outcomes: list[tuple[int, Outcome]] = []
        self._away: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        document = {
            "name": INPUT,
            "shape": list(self.x.shape),
            "datatype": "FP32",
            "data": self.x.ravel().tolist(),
        }
        self._body = json.dumps({"inputs": [document]}).encode()

    def __enter__(self) -> Self:
        self.began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(self.timeout_s + _CONNECT_S + 10)
        assert not self._thread.is_alive(), "requests go on after their time"
        outcomes = tuple(each for _, each in sorted(self._outcomes, key=lambda o: o[0]))
        self.result = Result(outcomes, tuple(self._away))
        if error is not None:
            error.add_note(f"load until then:\n{self.result}")

    @property
    def now_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began_s

    def go_on_for(self, seconds: float) -> None:
        """Return when requests were sent for ``seconds`` more: what goes wrong after a change needs time to show."""
        until_s = self.now_s + seconds
        while self._thread.is_alive() and self.now_s < until_s:
            self._thread.join(min(_POLL_S, seconds))

    def _run(self) -> None:
        asyncio.run(self._drive())

    async def _drive(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self.timeout_s, connect=_CONNECT_S)
        kept = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=64))
        fresh = aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(limit=64, force_close=True)
        )
        channel = self._channel()
        requests: set[asyncio.Task[None]] = set()
        watching = asyncio.create_task(self._watch())
        try:
            number = 0
            while not self._stop.is_set() and number < self.rate * self.longest_s:
                due_s = number / self.rate
                await asyncio.sleep(max(0.0, due_s - self.now_s))
                way = self.ways[number % len(self.ways)]
                ask = {
                    KEPT_HTTP: partial(self._http, kept),
                    NEW_HTTP: partial(self._http, fresh),
                    KEPT_GRPC: partial(self._grpc, channel),
                    NEW_GRPC: self._new_grpc,
                }[way]
                request = asyncio.create_task(self._one(number, way, due_s, ask))
                requests.add(request)
                request.add_done_callback(requests.discard)
                number += 1
            await asyncio.gather(*requests)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await kept.close()
            await fresh.close()
            channel.close()

    async def _watch(self) -> None:
        """Until cancelled, and then once more: a request that failed just now is to find its excuse."""
        before, since_s = Reading.now(), self.now_s
        ending = False
        while not ending:
            try:
                await asyncio.sleep(_LOOK_S)
            except asyncio.CancelledError:
                ending = True
            after, until_s = Reading.now(), self.now_s
            if taken_away(before, after, until_s - since_s):
                self._away.append((since_s, until_s))
            before, since_s = after, until_s

    async def _one(self, number: int, way: str, due_s: float, ask: Any) -> None:
        answer, problem = "", ""
        try:
            answer, problem = self._judge(await ask())
        except Exception as error:  # whatever a client library makes of it, it is a failed request
            problem = f"{type(error).__name__}: {error}"[:300]
        outcome = Outcome(way, due_s, self.now_s - due_s, answer, problem)
        self._outcomes.append((number, outcome))

    def _judge(self, found: Array) -> tuple[str, str]:
        for name, expected in self.expected.items():
            if found.shape == expected.shape and np.allclose(found, expected, atol=_TOLERANCE):
                return name, ""
        return "", f"{_WRONG} {found.ravel()[:4]}"

    async def _http(self, session: aiohttp.ClientSession) -> Array:
        url = f"http://{self.target.address}:{self.target.http}/v2/models/{self.target.model}/infer"
        headers = {"Host": self.target.host, "Content-Type": "application/json"}
        async with session.post(url, data=self._body, headers=headers) as answer:
            body = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {body[:200].decode(errors='replace')}")
        (output,) = (each for each in json.loads(body)["outputs"] if each["name"] == OUTPUT)
        return np.array(output["data"], np.float32).reshape(output["shape"])

    async def _new_grpc(self) -> Array:
        channel = self._channel()
        try:
            return await self._grpc(channel)
        finally:
            channel.close()

    async def _grpc(self, channel: grpc_client.InferenceServerClient) -> Array:
        given = grpc_client.InferInput(INPUT, self.x.shape, "FP32")
        given.set_data_from_numpy(self.x)
        done: Future[Array] = Future()

        def answered(result: Any, error: Exception | None) -> None:
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result.as_numpy(OUTPUT))

        channel.async_infer(
            self.target.served_name, [given], callback=answered, client_timeout=self.timeout_s
        )
        return await asyncio.wrap_future(done)

    def _channel(self) -> grpc_client.InferenceServerClient:
        return grpc_client.InferenceServerClient(
            f"{self.target.address}:{self.target.grpc}",
            channel_args=[
                ("grpc.default_authority", self.target.host),
                # Or channels to one address share connections, and none is new.
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
