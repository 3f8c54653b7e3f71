"""Health and metrics of the operator over HTTP."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

STUCK_S = 300.0
"""A leader without a round for so long is stuck: the kubelet restarts it."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A probe that has waited long enough hangs up: who asks will ask again.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Health:
    """What probes and Prometheus are told. Thread-safe."""

    def __init__(self, port: int) -> None:
        self._registry = registry = CollectorRegistry()
        self._leader = Gauge("tessera_operator_leader", "1 while this one leads", registry=registry)
        self._seconds = Histogram(
            "tessera_operator_plan_seconds",
            "Length of a round: observe, plan, write",
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60),
        )
        self._age = Gauge(
            "tessera_operator_plan_age_seconds", "Since the last round", registry=registry
        )
        self._age.set_function(lambda: time.monotonic() - self._last_s)
        self._devices = Gauge(
            "tessera_devices",
            "Devices by what their agents say of them",
            ["pool", "health"],
            registry=registry,
        )
        self._errors = Counter(
            "tessera_operator_apply_errors", "Writes that failed", registry=registry
        )
        self._last_s = time.monotonic()
        self._leads = False
        health = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                elif self.path in ("/healthz", "/readyz"):
                    ok = health.is_well
                    self._answer(200 if ok else 503, b"ok\n" if ok else b"stuck\n", "text/plain")
                else:
                    self._answer(404, b"found: /healthz, /readyz, /metrics\n", "text/plain")

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("", port), Handler)

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens; 0 asks for any that is free."""
        return self._server.server_port

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def leads(self) -> None:
        self._last_s = time.monotonic()
        self._leads = True
        self._leader.set(1)

    def show(self, more: Collector) -> None:
        """Have the metrics of ``more`` among the others."""
        self._registry.register(more)

    def round_ended(self, seconds: float, errors: int) -> None:
        self._last_s = time.monotonic()
        self._seconds.observe(seconds)
        self._errors.inc(errors)

    def devices(self, counts: Mapping[tuple[str, str], int]) -> None:
        """``counts``: by pool and health; what is not among them is gone."""
        self._devices.clear()
        for labels, count in counts.items():
            self._devices.labels(*labels).set(count)

    @property
    def is_well(self) -> bool:
        """One that waits for the lease is as well as one that leads."""
        return not self._leads or time.monotonic() - self._last_s < STUCK_S
