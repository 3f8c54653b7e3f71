"""Adapters of external metrics: external.metrics.k8s.io behind the API server's aggregation, and one that says what a test says.

They run on this machine as adapters run in a pod: TLS by a certificate of their own, which the APIService carries, and only
for the API server, which proves itself by a certificate of the front proxy's authority.
"""

from __future__ import annotations

import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from e2e.chart import NAMESPACE as SYSTEM
from e2e.chart import Object
from e2e.native.certificates import Authority
from e2e.system.installation import Installation

_GROUP, _VERSION, _NAME = "external.metrics.k8s.io", "v1beta1", "external-metrics"
_ROOT = f"/apis/{_GROUP}/{_VERSION}"
ADAPTER = f"{_NAME}.{SYSTEM}.svc"
"""Whom the API server takes an adapter for: its certificate is to say so."""
_TIMEOUT_S = 10.0
_AVAILABLE_S = 60.0


@dataclass
class Metrics:
    """Values by name of the metric, each of them as the test set it last; as quantities."""

    values: dict[str, str]
    asked: set[tuple[str, str]] = field(default_factory=set)
    """Namespace and metric of what was answered."""


@contextmanager
def external_metrics(system: Installation, folder: Path, metrics: Metrics) -> Iterator[None]:
    """Serve ``metrics`` through the API server."""
    host = host_of(system)
    authority = Authority(folder / "adapter")
    certificate, key = authority.issue("adapter", hosts=(ADAPTER,))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(callers(system, folder))
    context.verify_mode = ssl.CERT_REQUIRED
    server = ThreadingHTTPServer((host, 0), _handler(metrics))
    server.daemon_threads = True
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, name="external metrics", daemon=True)
    thread.start()
    try:
        with aggregated(system, server.server_port, authority):
            yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def aggregated(system: Installation, port: int, authority: Authority) -> Iterator[None]:
    """Have the API server ask the adapter on this machine's ``port``, whose certificate is of ``authority``. Nothing of it is
    left, or no namespace could be deleted any more.
    """
    objects = _objects(host_of(system), port, authority.certificate)
    try:
        system.apply(*objects)
        system.wait("the adapter is available", lambda: _is_available(system), _AVAILABLE_S)
        yield
    finally:
        for each in reversed(objects):
            metadata = each["metadata"]
            where = f"--namespace={metadata.get('namespace', SYSTEM)}"
            system.kubectl("delete", each["kind"], metadata["name"], where, "--ignore-not-found")


def host_of(system: Installation) -> str:
    """By what the cluster reaches this machine."""
    host = system.cluster.host
    assert host is not None, "this machine is not in the cluster's network"
    return host


def callers(system: Installation, folder: Path) -> Path:
    """A file with the authority of those whom an adapter answers: the API server."""
    path = folder / "front-proxy.crt"
    path.write_text(_front_proxy(system))
    return path


def _front_proxy(system: Installation) -> str:
    """Whose certificates the API server shows to adapters, where every adapter looks for it."""
    path = r"--output=jsonpath={.data.requestheader-client-ca-file}"
    where = ("configmap", "extension-apiserver-authentication", "--namespace=kube-system")
    found = system.kubectl("get", *where, path)
    assert found, "the API server has no --requestheader-client-ca-file"
    return found


def _objects(host: str, port: int, authority: Path) -> tuple[Object, Object]:
    """The adapter is no pod: a Service that is only a name leads to it."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _NAME, "namespace": SYSTEM},
        "spec": {"type": "ExternalName", "externalName": host},
    }
    api = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{_VERSION}.{_GROUP}"},
        "spec": {
            "group": _GROUP,
            "version": _VERSION,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": {"name": _NAME, "namespace": SYSTEM, "port": port},
            "caBundle": b64encode(authority.read_bytes()).decode(),
        },
    }
    return service, api


def _is_available(system: Installation) -> bool:
    found = system.read("APIService", f"{_VERSION}.{_GROUP}")
    conditions = ((found or {}).get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Available" and each["status"] == "True" for each in conditions)


def _handler(metrics: Metrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _TIMEOUT_S

        def do_GET(self) -> None:
            found = _answer(metrics, self.path.partition("?")[0])
            body = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "code": 404}).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _answer(metrics: Metrics, path: str) -> dict[str, Any] | None:
    """None: there is no such thing."""
    if path == _ROOT:
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": f"{_GROUP}/{_VERSION}",
            "resources": [
                {
                    "name": name,
                    "singularName": "",
                    "namespaced": True,
                    "kind": "ExternalMetricValueList",
                    "verbs": ["get"],
                }
                for name in metrics.values
            ],
        }
    parts = path.removeprefix(f"{_ROOT}/namespaces/").split("/")
    if len(parts) != 2 or parts[1] not in metrics.values:
        return None
    namespace, name = parts
    metrics.asked.add((namespace, name))
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    item = {"metricName": name, "metricLabels": {}, "timestamp": now, "value": metrics.values[name]}
    return {
        "kind": "ExternalMetricValueList",
        "apiVersion": f"{_GROUP}/{_VERSION}",
        "metadata": {},
        "items": [item],
    }
