"""Prometheus metrics, read from the dispatcher's counters when somebody asks.

Nothing is counted twice: the hot path keeps its own plain counters, and a scrape turns them into metrics.
The snapshot is taken on the event loop, where nothing changes meanwhile; HTTP and formatting happen on the
exporter's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tessera_core.perf.histogram import BOUNDS_S, Histogram
from tessera_runtime.devices.usage import gpu_usage, process_usage
from tessera_runtime.devices.watch import gpu_slowdowns
from tessera_runtime.dispatch.dispatcher import Dispatcher
from tessera_runtime.dispatch.service import Service
from tessera_runtime.protocol.listen import PortTaken

SNAPSHOT_TIMEOUT_S = 5.0

EXPORTED = tuple(range(0, len(BOUNDS_S), 8))
"""Bounds that are exported: one per octave, since each is a time series per service."""


class MetricsServer:
    """The exporter: its own thread and port. Health is told there too, for probes that cannot show a certificate."""

    def __init__(
        self, dispatcher: Dispatcher, copied: Callable[[], int], host: str, port: int
    ) -> None:
        registry = CollectorRegistry()
        registry.register(_Collector(dispatcher, copied, asyncio.get_running_loop()))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
            self._server.set_app(
                _with_health(make_wsgi_app(registry), dispatcher, asyncio.get_running_loop())
            )
        except OSError as error:
            raise PortTaken(
                error.errno or 0, f"cannot listen on port {port} of {host}: {error.strerror}"
            ) from error
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def start_metrics(
    dispatcher: Dispatcher, copied: Callable[[], int], host: str, port: int
) -> MetricsServer:
    """Serve ``/metrics``; ``copied``: bytes of inputs that front ends copied. Raises PortTaken."""
    return MetricsServer(dispatcher, copied, host, port)


def _with_health(
    metrics: WSGIApplication, dispatcher: Dispatcher, loop: asyncio.AbstractEventLoop
) -> WSGIApplication:
    """``metrics``, and what Kubernetes asks for: answered by the loop that serves, so that its hanging shows."""
    asked = {"/v2/health/live": dispatcher.live, "/v2/health/ready": dispatcher.ready}

    async def ask(question: Callable[[], bool]) -> bool:
        return question()

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        question = asked.get(environ["PATH_INFO"])
        if question is None:
            return metrics(environ, start_response)
        try:
            said = asyncio.run_coroutine_threadsafe(ask(question), loop).result(SNAPSHOT_TIMEOUT_S)
        except TimeoutError:
            said = False
        start_response("200 OK" if said else "503 Service Unavailable", [("Content-Length", "0")])
        return ()

    return answer


class _Collector(Collector):
    def __init__(
        self,
        dispatcher: Dispatcher,
        copied: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._dispatcher = dispatcher
        self._copied = copied
        self._loop = loop

    def describe(self) -> Iterable[Metric]:
        return ()  # names are fixed; asking for them must not need the loop

    def collect(self) -> Iterator[Metric]:
        snapshot = asyncio.run_coroutine_threadsafe(self._snapshot(), self._loop)
        yield from snapshot.result(SNAPSHOT_TIMEOUT_S)
        yield from _usage([w.pid for w in list(self._dispatcher.workers.living.values())])

    async def _snapshot(self) -> list[Metric]:
        services = list(self._dispatcher.serving.values())
        return [
            *_requests(services),
            *_latencies(services),
            *_batches(services),
            *_instances(services),
            *_peers(services),
            *_held(self._dispatcher),
            _refused(self._dispatcher),
            *_mps(self._dispatcher),
            *_arena(self._dispatcher),
            _copies(services, self._copied()),
        ]


def _requests(services: Sequence[Service]) -> Iterator[Metric]:
    codes = CounterMetricFamily(
        "tessera_requests", "Requests by HTTP status.", labels=["service", "version", "code"]
    )
    good = CounterMetricFamily(
        "tessera_slo_good_requests",
        "Requests answered within the SLO.",
        labels=["service", "version"],
    )
    total = CounterMetricFamily(
        "tessera_slo_requests",
        "Valid requests, whatever became of them; attainment is good / this.",
        labels=["service", "version"],
    )
    attainment = GaugeMetricFamily(
        "tessera_slo_attainment_ratio",
        "Share of all valid requests of this version that were answered within the SLO.",
        labels=["service", "version"],
    )
    partial = CounterMetricFamily(
        "tessera_partial_answers", "Answers without all members.", labels=["service", "version"]
    )
    for service in services:
        own = [service.name, service.version]
        statistics = service.statistics
        for code, count in statistics.codes.items():
            codes.add_metric([*own, str(code)], count)
        good.add_metric(own, statistics.good)
        total.add_metric(own, statistics.total)
        partial.add_metric(own, statistics.partial)
        if statistics.total:
            attainment.add_metric(own, statistics.good / statistics.total)
    yield from (codes, good, total, attainment, partial)


def _latencies(services: Sequence[Service]) -> Iterator[Metric]:
    whole = HistogramMetricFamily(
        "tessera_request_seconds",
        "Arrival to answer, of answered requests.",
        labels=["service", "version"],
    )
    stages = HistogramMetricFamily(
        "tessera_stage_seconds",
        "Time per stage: queue per request, preprocess (gather into the batch) and inference per batch, "
        "combine per request or per batch where the members run as one.",
        labels=["service", "version", "member", "stage"],
    )
    for service in services:
        own = [service.name, service.version]
        _add(whole, own, service.statistics.latency)
        if len(service.members) > 1:
            _add(stages, [*own, "", "combine"], service.statistics.combine)
        for member in service.members:
            _add(stages, [*own, member.name, "queue"], member.queue_times())
            _add(stages, [*own, member.name, "preprocess"], member.statistics.gather)
            _add(stages, [*own, member.name, "inference"], member.statistics.inference)
    yield from (whole, stages)


def _add(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    buckets: list[tuple[str, float]] = []
    cumulative = first = 0
    for bound in EXPORTED:
        cumulative += sum(histogram.counts[first : bound + 1])
        first = bound + 1
        buckets.append((f"{BOUNDS_S[bound]:.6g}", cumulative))
    buckets.append(("+Inf", histogram.count))
    family.add_metric(labels, buckets, histogram.total_s)


def _batches(services: Sequence[Service]) -> Iterator[Metric]:
    labels = ["service", "version", "member"]
    sizes = HistogramMetricFamily("tessera_batch_rows", "Rows per batch.", labels=labels)
    failed = CounterMetricFamily(
        "tessera_failed_batches", "Batches in which the model raised.", labels=labels
    )
    for service in services:
        for member in service.members:
            own = [service.name, service.version, member.name]
            failed.add_metric(own, member.statistics.failed_batches)
            by_size = sorted(member.statistics.by_size.items())
            buckets: list[tuple[str, float]] = []
            bound = 1
            while True:
                at_most = sum(times.batches for size, times in by_size if size <= bound)
                buckets.append((str(bound), at_most))
                if not by_size or bound >= by_size[-1][0]:
                    break
                bound *= 2
            buckets.append(("+Inf", member.statistics.batches))
            sizes.add_metric(own, buckets, member.statistics.rows)
    yield from (sizes, failed)


def _instances(services: Sequence[Service]) -> Iterator[Metric]:
    labels = ["service", "version", "member"]
    queued = GaugeMetricFamily("tessera_queued_rows", "Rows waiting.", labels=labels)
    ready = GaugeMetricFamily("tessera_instances", "Instances that are ready.", labels=labels)
    active = GaugeMetricFamily(
        "tessera_active_instances", "Instances that take batches; others stand by.", labels=labels
    )
    cap = GaugeMetricFamily("tessera_batch_cap", "Most rows per batch now.", labels=labels)
    restarts = CounterMetricFamily(
        "tessera_instance_restarts", "Instances whose process ended.", labels=labels
    )
    joined = GaugeMetricFamily(
        "tessera_joined_instances",
        "Processes in which all members of an ensemble run as one.",
        labels=labels[:2],
    )
    for service in services:
        if service.gang is not None:
            joined.add_metric([service.name, service.version], len(service.gang.lanes))
        for member in service.members:
            own = [service.name, service.version, member.name]
            queued.add_metric(own, member.queued_rows)
            ready.add_metric(own, len(member.lanes))
            active.add_metric(own, len(member.lanes.staying))
            cap.add_metric(own, member.cap)
            restarts.add_metric(own, member.statistics.restarts)
    yield from (queued, ready, active, joined, cap, restarts)


def _peers(services: Sequence[Service]) -> Iterator[Metric]:
    """Calls between servers. They are no requests: the server that the client asked counts those."""
    labels = ["service", "version", "member"]
    forwarded = CounterMetricFamily(
        "tessera_forwarded_calls", "Calls to peers for one member.", labels=labels
    )
    retried = CounterMetricFamily(
        "tessera_forward_retries",
        "Calls to peers after which another place was tried.",
        labels=[*labels, "reason"],
    )
    received = CounterMetricFamily(
        "tessera_received_calls",
        "Calls from peers for one member, by HTTP status.",
        labels=[*labels, "code"],
    )
    for service in services:
        for member in service.members:
            own = [service.name, service.version, member.name]
            statistics = member.statistics
            forwarded.add_metric(own, statistics.forwarded)
            for reason, count in statistics.forward_retries.items():
                retried.add_metric([*own, reason], count)
            for code, count in statistics.received.items():
                received.add_metric([*own, str(code)], count)
    yield from (forwarded, retried, received)


def _held(dispatcher: Dispatcher) -> Iterator[Metric]:
    held = GaugeMetricFamily(
        "tessera_held_requests",
        "Requests that wait for the first instance or peer.",
        labels=["service"],
    )
    for name in dispatcher.serving:
        held.add_metric([name], dispatcher.holds.waiting(name))
    yield held


def _refused(dispatcher: Dispatcher) -> Metric:
    refused = CounterMetricFamily(
        "tessera_unauthorized_requests",
        "Requests for a model that asks for a key, without one of its keys.",
        labels=["service"],
    )
    for name, count in dispatcher.gates.refused().items():
        refused.add_metric([name], count)
    return refused


def _mps(dispatcher: Dispatcher) -> Iterator[Metric]:
    """Where MPS is wanted, and only there."""
    labels = ["device", "namespace"]
    runs = GaugeMetricFamily(
        "tessera_mps_running",
        "1 where an MPS daemon takes clients, 0 where none is needed, or the place does without.",
        labels=labels,
    )
    failures = CounterMetricFamily(
        "tessera_mps_failures",
        "MPS daemons that did not start, or ended by themselves.",
        labels=labels,
    )
    for key, seat in dispatcher.workers.mps:
        runs.add_metric(key, seat.runs)
        failures.add_metric(key, seat.failed)
    yield from (runs, failures)


def _arena(dispatcher: Dispatcher) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "tessera_arena_used_bytes", "Input arena held by requests.", dispatcher.arena.in_use
    )
    yield GaugeMetricFamily(
        "tessera_arena_size_bytes", "Size of the input arena.", dispatcher.arena.size
    )


def _copies(services: Sequence[Service], received: int) -> Metric:
    copied = CounterMetricFamily(
        "tessera_input_copied_bytes",
        "Inputs copied after the socket's own copy: by front ends on the way into the arena, and from there into "
        "batches.",
        labels=["step"],
    )
    copied.add_metric(["receive"], received)
    members = [member for service in services for member in service.members]
    copied.add_metric(["gather"], sum(member.statistics.gathered_bytes for member in members))
    return copied


def _usage(workers: Sequence[int]) -> Iterator[Metric]:
    """Memory and utilisation of the devices: processes on a CPU, NVML's figures on GPUs."""
    memory = GaugeMetricFamily(
        "tessera_worker_memory_bytes", "Private memory of a worker process.", labels=["pid"]
    )
    cpu = CounterMetricFamily(
        "tessera_worker_cpu_seconds", "Processor time of a worker process.", labels=["pid"]
    )
    for pid in workers:
        usage = process_usage(pid)
        if usage is not None:
            memory.add_metric([str(pid)], usage.private_bytes)
            cpu.add_metric([str(pid)], usage.cpu_seconds)
    used = GaugeMetricFamily(
        "tessera_gpu_memory_used_bytes",
        "Memory in use, of a GPU or of each slice that it is cut into.",
        labels=["uuid"],
    )
    busy = GaugeMetricFamily(
        "tessera_gpu_utilisation_ratio",
        "Share of time with a kernel running, as NVML has it. Near 1 at a tenth of a batching server's "
        "capacity: scale on attainment and queueing, not on this.",
        labels=["uuid"],
    )
    held_down = GaugeMetricFamily(
        "tessera_gpu_clocks_held_down",
        "1 for each reason why clocks are lower than they could be under load, as NVML has it.",
        labels=["uuid", "reason"],
    )
    for uuid, reasons in gpu_slowdowns().items():
        for reason in sorted(reasons):
            held_down.add_metric([uuid, reason], 1)
    for gpu in gpu_usage():
        used.add_metric([gpu.uuid], gpu.memory_used_bytes)
        if gpu.utilisation is not None:
            busy.add_metric([gpu.uuid], gpu.utilisation)
    yield from (memory, cpu, used, busy, held_down)
