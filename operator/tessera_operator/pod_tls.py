"""TLS of the servers of runtime pods: Secrets that are mounted, options that name their files, and where probes go.

Probes cannot show a certificate, and what a server shows them is none of their business: with TLS they go to the port
of the metrics, which stays in clear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SERVER_FOLDER, CLIENT_FOLDER = "/etc/tessera/tls", "/etc/tessera/client-ca"


@dataclass(frozen=True, slots=True)
class Tls:
    """What runtime pods are told of it."""

    secret: str
    """Of type kubernetes.io/tls, with ``ca.crt``: the authority that other runtime pods are checked by."""
    client_ca_secret: str = ""
    """Its ``ca.crt`` are the authorities of clients; empty: clients need no certificate."""
    peer_name: str = "tessera-runtime"
    """That is in the certificate: pods call each other by addresses."""


def options(tls: Tls | None) -> list[str]:
    """Of the server."""
    if tls is None:
        return []
    found = [
        f"--tls-cert={SERVER_FOLDER}/tls.crt",
        f"--tls-key={SERVER_FOLDER}/tls.key",
        f"--peer-ca={SERVER_FOLDER}/ca.crt",
        f"--peer-name={tls.peer_name}",
    ]
    if tls.client_ca_secret:
        found.append(f"--tls-client-ca={CLIENT_FOLDER}/ca.crt")
    return found


def mounts(tls: Tls | None) -> list[dict[str, Any]]:
    """Of the server's container; nobody else in the pod sees the key."""
    return [
        {"name": name, "mountPath": folder, "readOnly": True} for name, folder, _ in _secrets(tls)
    ]


def volumes(tls: Tls | None) -> list[dict[str, Any]]:
    """Of the pod. Whole folders: files of a subPath would never be replaced."""
    return [
        {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}
        for name, _, secret in _secrets(tls)
    ]


def probe(path: str, tls: Tls | None) -> dict[str, Any]:
    """Asks the server for ``path``."""
    return {"httpGet": {"path": path, "port": "http" if tls is None else "metrics"}}


def _secrets(tls: Tls | None) -> list[tuple[str, str, str]]:
    """Volume, folder and Secret."""
    if tls is None:
        return []
    found = [("tls", SERVER_FOLDER, tls.secret)]
    if tls.client_ca_secret:
        found.append(("client-ca", CLIENT_FOLDER, tls.client_ca_secret))
    return found
