"""KEDA as it is, beside the cluster: its operator and its adapter of external metrics, and a Prometheus that says what a
test says.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml
from e2e.chart import NAMESPACE as SYSTEM
from e2e.chart import Object
from e2e.native.build import KEDA, module
from e2e.native.certificates import Authority
from e2e.native.control_plane import answers
from e2e.native.processes import Process, free_ports
from e2e.system.external_metrics import ADAPTER, aggregated, callers, host_of
from e2e.system.installation import Installation

_LOOPBACK = "127.0.0.1"
_READY_S = 60.0
_TIMEOUT_S = 10.0


@contextmanager
def keda(system: Installation, built: Path, folder: Path) -> Iterator[None]:
    """Its CRDs, and both programs of ``built``. What a test made of its kinds has to be gone before the end."""
    authority = Authority(folder / "keda")
    certificates = _certificates(authority, folder / "keda-certificates")
    metrics, health, calls, port, other = free_ports(5)
    environment = {
        "KUBECONFIG": str(system.cluster.kubeconfig),
        "POD_NAMESPACE": SYSTEM,
        "KEDA_CLUSTER_OBJECT_NAMESPACE": SYSTEM,
        "WATCH_NAMESPACE": "",  # all of them
    }
    operator: list[str | Path] = [
        built / "operator",
        f"--metrics-bind-address={_LOOPBACK}:{metrics}",
        f"--health-probe-bind-address={_LOOPBACK}:{health}",
        f"--metrics-service-bind-address={_LOOPBACK}:{calls}",
        f"--cert-dir={certificates}",
    ]
    adapter: list[str | Path] = [
        built / "adapter",
        f"--bind-address={host_of(system)}",
        f"--secure-port={port}",
        f"--port={other}",
        f"--metrics-service-address={_LOOPBACK}:{calls}",
        f"--cert-dir={certificates}",
        f"--tls-cert-file={certificates / 'tls.crt'}",
        f"--tls-private-key-file={certificates / 'tls.key'}",
        f"--requestheader-client-ca-file={callers(system, folder)}",
        *(
            f"--{what}-kubeconfig={system.cluster.kubeconfig}"
            for what in ("lister", "authentication", "authorization")
        ),
    ]
    crds = _crds()
    names = [each["metadata"]["name"] for each in crds]
    try:
        # Server-side: what a client would note of them is too long for an annotation.
        system.kubectl("apply", "--server-side", "--filename=-", stdin=yaml.safe_dump_all(crds))
        system.kubectl("wait", "--for=condition=Established", "crd", *names)
        with (
            Process("keda-operator", operator, folder / "keda-operator.log", environment) as one,
            Process("keda-adapter", adapter, folder / "keda-adapter.log", environment),
        ):
            one.wait_until(lambda: answers(f"http://{_LOOPBACK}:{health}/readyz"), _READY_S)
            with aggregated(system, port, authority):
                yield
    finally:
        system.kubectl("delete", "crd", *names, "--ignore-not-found")


@dataclass
class Prometheus:
    """One that knows one series, whatever it is asked for."""

    url: str
    value: str


@contextmanager
def prometheus(value: str) -> Iterator[Prometheus]:
    """On loopback, with ``value`` to begin with."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S

        def do_GET(self) -> None:
            sample = {"metric": {}, "value": [time.time(), found.value]}
            data = {"resultType": "vector", "result": [sample]}
            body = json.dumps({"status": "success", "data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((_LOOPBACK, 0), Handler)
    server.daemon_threads = True
    found = Prometheus(f"http://{_LOOPBACK}:{server.server_port}", value)
    thread = threading.Thread(target=server.serve_forever, name="prometheus", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _crds() -> list[Object]:
    folder = module(*KEDA) / "config" / "crd" / "bases"
    return [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.yaml"))]


def _certificates(authority: Authority, folder: Path) -> Path:
    """What KEDA's parts show each other, and the adapter to the API server."""
    folder.mkdir()
    files = authority.issue("keda", hosts=(_LOOPBACK, ADAPTER), calls=True)
    for source, name in zip(
        (authority.certificate, *files), ("ca.crt", "tls.crt", "tls.key"), strict=True
    ):
        shutil.copy(source, folder / name)
    return folder
