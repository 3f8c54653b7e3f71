"""etcd and the API server: what a client of the Kubernetes API needs, without nodes.

Clients name themselves by tokens of a file, so no certificates are made: the API server signs its own.
"""

from __future__ import annotations

import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from e2e.native.processes import Process, free_ports

_ADMIN = "system:masters"
_READY_S = 120.0


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach an API server as somebody."""

    url: str
    ca: Path
    token: str

    def kubeconfig(self, path: Path) -> Path:
        """Write this access for kubectl and client libraries."""
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "e2e",
                    "clusters": [
                        {
                            "name": "e2e",
                            "cluster": {"server": self.url, "certificate-authority": str(self.ca)},
                        }
                    ],
                    "users": [{"name": "e2e", "user": {"token": self.token}}],
                    "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
                }
            )
        )
        return path


@contextmanager
def control_plane(binaries: Path, folder: Path) -> Iterator[Access]:
    """A fresh API server with its data and logs in ``folder``; the access is an administrator's."""
    with ExitStack() as stack:
        client, peer, port = free_ports(3)
        etcd_url = f"http://127.0.0.1:{client}"
        peer_url = f"http://127.0.0.1:{peer}"
        etcd = stack.enter_context(
            Process(
                "etcd",
                [
                    binaries / "etcd",
                    f"--data-dir={folder / 'etcd'}",
                    "--unsafe-no-fsync",
                    f"--listen-client-urls={etcd_url}",
                    f"--advertise-client-urls={etcd_url}",
                    f"--listen-peer-urls={peer_url}",
                    f"--initial-advertise-peer-urls={peer_url}",
                    f"--initial-cluster=default={peer_url}",
                ],
                folder / "etcd.log",
            )
        )
        etcd.wait_until(lambda: _answers(f"{etcd_url}/readyz"), _READY_S)
        token = secrets.token_hex(16)
        tokens = folder / "tokens.csv"
        tokens.write_text(f'{token},admin,admin,"{_ADMIN}"\n')
        key = folder / "service-accounts.key"
        key.write_bytes(_new_key())
        certificates = folder / "certificates"
        access = Access(f"https://127.0.0.1:{port}", certificates / "apiserver.crt", token)
        server = stack.enter_context(
            Process(
                "kube-apiserver",
                [
                    binaries / "kube-apiserver",
                    f"--etcd-servers={etcd_url}",
                    "--bind-address=127.0.0.1",
                    "--advertise-address=127.0.0.1",
                    f"--secure-port={port}",
                    f"--cert-dir={certificates}",
                    f"--token-auth-file={tokens}",
                    "--authorization-mode=Node,RBAC",
                    "--allow-privileged",
                    "--endpoint-reconciler-type=none",
                    "--service-cluster-ip-range=10.96.0.0/16",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-account-key-file={key}",
                    f"--service-account-signing-key-file={key}",
                ],
                folder / "kube-apiserver.log",
            )
        )
        server.wait_until(lambda: _ready(access), _READY_S)
        yield access


def _new_key() -> bytes:
    pem: bytes = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return pem


def _ready(access: Access) -> bool:
    return access.ca.exists() and _answers(f"{access.url}/readyz", access)


def _answers(url: str, access: Access | None = None) -> bool:
    request = urllib.request.Request(url)
    context = None
    if access is not None:
        request.add_header("Authorization", f"Bearer {access.token}")
        context = ssl.create_default_context(cafile=access.ca)
    try:
        with urllib.request.urlopen(request, timeout=2, context=context) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
