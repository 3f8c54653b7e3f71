"""Runs in LoadGen's environment: MLPerf's Server scenario against a server on loopback, over HTTP.

Started with a folder: ``plan.json``, the requests as bytes, and room for LoadGen's logs. A query goes to
whichever connection is free; the standard library only, so that nothing has to be installed beside LoadGen.
"""

from __future__ import annotations

import json
import queue
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import mlperf_loadgen

CONNECTIONS = 64


class Connection(threading.Thread):
    """One request at a time; ends at None."""

    def __init__(self, port: int, requests: list[bytes], waiting: queue.SimpleQueue[Any]) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = requests
        self._waiting = waiting

    def run(self) -> None:
        while (sample := self._waiting.get()) is not None:
            self._socket.sendall(self._requests[sample.index])
            self._receive()
            answer = mlperf_loadgen.QuerySampleResponse(sample.id, 0, 0)
            mlperf_loadgen.QuerySamplesComplete([answer])

    def _receive(self) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(
                f"not an answer: {head[:100]!r}"
            )  # the query stays open: LoadGen cannot be VALID
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
        left = int(fields[b"content-length"]) - len(body)
        while left > 0:
            left -= len(self._more())

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 16)
        if not data:
            sys.exit("the server hung up")
        return data


def main() -> None:
    folder = Path(sys.argv[1])
    plan = json.loads((folder / "plan.json").read_text())
    requests = [(folder / f"request{n}").read_bytes() for n in range(plan["requests"])]
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    connections = [Connection(plan["port"], requests, waiting) for _ in range(CONNECTIONS)]
    for connection in connections:
        connection.start()

    def issue(samples: list[Any]) -> None:
        for sample in samples:
            waiting.put(sample)

    settings = mlperf_loadgen.TestSettings()
    settings.scenario = mlperf_loadgen.TestScenario.Server
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = plan["rate_per_s"]
    settings.server_target_latency_ns = int(plan["bound_ms"] * 1e6)
    settings.server_target_latency_percentile = 0.99
    settings.min_duration_ms = int(plan["seconds"] * 1e3)
    settings.min_query_count = plan["queries"]
    outputs = mlperf_loadgen.LogOutputSettings()
    outputs.outdir = str(folder)
    logs = mlperf_loadgen.LogSettings()
    logs.log_output = outputs
    logs.enable_trace = False
    sut = mlperf_loadgen.ConstructSUT(issue, lambda: None)
    library = mlperf_loadgen.ConstructQSL(
        len(requests), len(requests), lambda _: None, lambda _: None
    )
    mlperf_loadgen.StartTestWithLogSettings(sut, library, settings, logs)
    for _ in connections:
        waiting.put(None)


if __name__ == "__main__":
    main()
