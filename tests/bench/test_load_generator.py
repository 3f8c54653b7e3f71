"""The load generator against the real front ends, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from support.front_ends import FrontEnds
from support.served_models import served_plane
from tessera_cli.loadgen import (
    ClosedLoop,
    Finished,
    LoadFailed,
    LoadPlan,
    LoadProcess,
    OpenLoop,
    Phase,
    Protocol,
    Samples,
    Started,
    Target,
    summarise,
)
from tessera_cli.loadgen.drive import arrivals_s, run_load
from tessera_cli.loadgen.plan import Message
from tessera_cli.loadgen.status import DISCONNECTED, UNANSWERED, status_name
from tessera_cli.loadgen.wire import decode, encode

MODEL = "test.identity"


@pytest.fixture
def fronts() -> Iterator[FrontEnds]:
    with FrontEnds(served_plane()) as running:
        yield running


def port(fronts: FrontEnds, protocol: Protocol) -> int:
    return fronts.http.port if protocol is Protocol.HTTP else fronts.grpc.port


def inputs(seed: int, rows: int = 1, width: int = 16) -> dict[str, np.ndarray]:
    return {"INPUT0": np.random.default_rng(seed).random((rows, width), dtype=np.float32)}


def target(
    protocol: Protocol, at: int, requests: tuple[bytes, ...], connections: int = 4
) -> Target:
    return Target(protocol, "127.0.0.1", at, requests, connections)


def send(plan: LoadPlan) -> tuple[Samples, list[Message]]:
    messages: list[Message] = []
    run_load(plan, messages.append)
    finished = messages.pop()
    assert isinstance(finished, Finished)
    return Samples.of(finished), messages


def test_an_open_loop_gets_each_requests_own_answer_over_both_protocols(fronts: FrontEnds) -> None:
    values = [inputs(seed) for seed in range(5)]
    targets = tuple(
        target(
            protocol,
            port(fronts, protocol),
            tuple(encode(protocol, MODEL, value) for value in values),
        )
        for protocol in Protocol
    )
    plan = LoadPlan(targets, OpenLoop((Phase(200, 0.3), Phase(400, 0.3)), 1), keep_answers=True)
    samples, messages = send(plan)
    assert isinstance(messages[0], Started)
    assert samples.lost == 0
    assert samples.good.all()
    assert len(samples.answers) > 100
    for number, body in enumerate(samples.answers):
        turn, which = divmod(number, 2)
        outputs = decode(tuple(Protocol)[which], body)
        assert np.array_equal(outputs["OUTPUT0"], values[turn % 5]["INPUT0"])


@pytest.mark.parametrize("protocol", Protocol)
def test_a_closed_loop_counts_what_it_sends(fronts: FrontEnds, protocol: Protocol) -> None:
    requests = (encode(protocol, MODEL, inputs(0)),)
    plan = LoadPlan((target(protocol, port(fronts, protocol), requests),), ClosedLoop(6, 0.3, 0.1))
    samples, _ = send(plan)
    assert samples.good.all()
    assert (samples.intended < 0).any(), "warm-up is there, before the start"
    order = np.argsort(np.concatenate((samples.intended, samples.done)), kind="stable")
    steps = np.where(order < len(samples.intended), 1, -1)
    assert np.cumsum(steps).max() <= 6 + 1, "an answer and the next request share a moment"


@pytest.mark.parametrize("protocol", Protocol)
def test_requests_larger_than_the_windows_arrive_whole(
    fronts: FrontEnds, protocol: Protocol
) -> None:
    given = {"INPUT0": inputs(3, rows=40, width=8000)["INPUT0"]}
    requests = (encode(protocol, "echo.FP32", given),)
    plan = LoadPlan(
        (target(protocol, port(fronts, protocol), requests, 1),),
        ClosedLoop(3, 0.2, 0.0),
        keep_answers=True,
    )
    samples, _ = send(plan)
    assert samples.good.all()
    assert all(
        np.array_equal(decode(protocol, body)["OUTPUT0"], given["INPUT0"])
        for body in samples.answers
    )


@pytest.mark.parametrize(
    ("protocol", "model", "status"),
    [
        (Protocol.HTTP, "test.busy", "429"),
        (Protocol.GRPC, "test.busy", "RESOURCE_EXHAUSTED"),
        (Protocol.HTTP, "test.down", "503"),
        (Protocol.GRPC, "test.down", "UNAVAILABLE"),
        (Protocol.HTTP, "no.such", "404"),
        (Protocol.GRPC, "no.such", "NOT_FOUND"),
    ],
)
def test_a_refused_request_failed_and_is_not_lost(
    fronts: FrontEnds, protocol: Protocol, model: str, status: str
) -> None:
    requests = (encode(protocol, model, inputs(0)),)
    shape = OpenLoop((Phase(100, 0.2),), 1)
    samples, _ = send(LoadPlan((target(protocol, port(fronts, protocol), requests),), shape))
    summary = summarise(samples, 0.0, 0.2, slo_ms=1000.0)
    assert set(summary.statuses) == {status}
    assert summary.failed == summary.requests > 0
    assert summary.lost == 0
    assert summary.attainment == 0


@contextmanager
def misbehaving(
    converse: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> Iterator[int]:
    """A server on loopback whose every connection is ``converse``; its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(converse, "127.0.0.1", 0)

    async def stop() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def statuses_from(at: int) -> Samples:
    requests = (encode(Protocol.HTTP, MODEL, inputs(0)),)
    shape = OpenLoop((Phase(100, 0.2),), 1)
    plan = LoadPlan((target(Protocol.HTTP, at, requests),), shape, answer_timeout_s=0.2)
    return send(plan)[0]


def test_a_server_that_never_answers_loses_every_request() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(-1)
        finally:
            writer.close()

    with misbehaving(silent) as at:
        samples = statuses_from(at)
    assert set(samples.status.tolist()) == {UNANSWERED}
    assert samples.lost == len(samples.status) > 0


def test_a_connection_that_ends_within_the_answer_loses_its_request_and_is_replaced() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    with misbehaving(half) as at:
        samples = statuses_from(at)
    assert (samples.status == DISCONNECTED).sum() > 4, "more requests than first connections"
    assert samples.lost == len(samples.status)


def test_nobody_listening_is_an_error_and_no_result() -> None:
    with misbehaving(lambda reader, writer: asyncio.sleep(0)) as at:
        pass
    with pytest.raises(LoadFailed, match="cannot connect"):
        statuses_from(at)


def test_a_load_in_its_own_process_reports_progress_and_result(fronts: FrontEnds) -> None:
    requests = (encode(Protocol.HTTP, MODEL, inputs(0)),)
    plan = LoadPlan(
        (target(Protocol.HTTP, fronts.http.port, requests),),
        OpenLoop((Phase(100, 0.4),), 1),
        progress_s=0.1,
    )
    with LoadProcess(plan) as load:
        messages = list(load.messages())
        samples = load.samples()
    assert isinstance(messages[0], Started)
    assert len(messages) >= 3
    assert samples.good.all()


def test_a_load_that_cannot_start_says_why_across_the_process() -> None:
    with misbehaving(lambda reader, writer: asyncio.sleep(0)) as at:
        pass
    plan = LoadPlan((target(Protocol.HTTP, at, (b"x",)),), OpenLoop((Phase(10, 0.1),), 1))
    with LoadProcess(plan) as load, pytest.raises(LoadFailed, match=str(at)):
        load.samples()


def test_times_are_drawn_in_advance_by_the_seed() -> None:
    shape = OpenLoop((Phase(50, 10), Phase(200, 10)), seed=3)
    times = arrivals_s(shape)
    assert np.array_equal(times, arrivals_s(shape))
    assert (np.diff(times) >= 0).all()
    first = (times < 10).sum()
    assert 400 < first < 600
    assert 1800 < len(times) - first < 2200
    assert not np.array_equal(times, arrivals_s(OpenLoop(shape.phases, seed=4)))


def samples_of(rows: list[tuple[float, float, float, int]]) -> Samples:
    intended, sent, done, status = (np.array(column) for column in zip(*rows, strict=True))
    return Samples(intended, sent, done, status.astype(np.int32), ())


def test_latency_counts_from_the_intended_moment_and_lateness_is_told() -> None:
    samples = samples_of([(0.0, 0.0, 0.010, 200), (0.1, 0.3, 0.310, 200)])
    summary = summarise(samples, 0.0, 1.0, slo_ms=50.0)
    assert summary.worst_ms == pytest.approx(210)
    assert summary.late == 1
    assert summary.attainment == 0.5
    assert summary.rate_per_s == 2


def test_a_summary_tells_failed_from_lost_and_keeps_to_its_stretch() -> None:
    nan = float("nan")
    samples = samples_of(
        [
            (-0.5, -0.5, -0.4, 200),
            (0.1, 0.1, 0.2, 200),
            (0.2, 0.2, 0.3, 429),
            (0.3, 0.3, nan, UNANSWERED),
            (1.5, 1.5, 1.6, 200),
        ]
    )
    summary = summarise(samples, 0.0, 1.0)
    assert (summary.requests, summary.failed, summary.lost) == (3, 1, 1)
    assert summary.statuses == {"200": 1, "429": 1, "unanswered": 1}
    assert summary.p50_ms == pytest.approx(100)
    assert np.isnan(summary.attainment)


def test_an_empty_stretch_has_no_figures() -> None:
    summary = summarise(samples_of([(5.0, 5.0, 5.1, 200)]), 0.0, 1.0, slo_ms=10)
    assert summary.requests == 0
    assert np.isnan(summary.p99_ms)
    assert np.isnan(summary.attainment)


@pytest.mark.parametrize(
    ("status", "name"), [(200, "200"), (1000, "OK"), (1014, "UNAVAILABLE"), (1, "disconnected")]
)
def test_statuses_have_names(status: int, name: str) -> None:
    assert status_name(status) == name
