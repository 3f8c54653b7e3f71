"""etcd and the API server: what a client of the Kubernetes API needs, without nodes.

Clients name themselves by tokens of a file; certificates are for the server's side of TLS and for its calls to
kubelets.
"""

from __future__ import annotations

import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from e2e.native.certificates import Authority, new_key
from e2e.native.cgroups import Cgroup
from e2e.native.processes import Process, free_ports

ADMIN = "admin"
MASTERS = "system:masters"
_FRONT_PROXY = "front-proxy-client"
_LOOPBACK = "127.0.0.1"
_READY_S = 120.0
_PATIENCE_S = 2.0  # it would wait for clients that watch until their watches end


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


class ControlPlane:
    """etcd and an API server that can be stopped and started again at the same address with the same data.

    ``address`` is what both clients and pods reach it by; ``users`` maps names to their groups; ``options`` are
    further ones of the API server. The service account key pair is ``service_accounts``, the authority of all
    certificates ``ca``.
    """

    def __init__(
        self,
        binaries: Path,
        folder: Path,
        *,
        address: str = _LOOPBACK,
        services: str = "10.96.0.0/16",
        hosts: tuple[str, ...] = (),
        users: Mapping[str, tuple[str, ...]] | None = None,
        group: Cgroup | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self._binaries, self._folder, self._group = binaries, folder, group
        client, self._peer, self.port = free_ports(3)
        self.etcd_url = f"http://{_LOOPBACK}:{client}"
        everybody = {ADMIN: (MASTERS,), **(users or {})}
        self._tokens = {name: secrets.token_hex(16) for name in everybody}
        rows = [
            f'{self._tokens[name]},{name},{name},"{",".join(everybody[name])}"\n'
            for name in everybody
        ]
        tokens = folder / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text("".join(rows))
        authority = Authority(folder / "certificates")
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
        served = authority.issue("kube-apiserver", hosts=(*names, address, *hosts))
        calls = authority.issue("kube-apiserver-kubelet-client", groups=(MASTERS,))
        # An authority of its own: whom it signs for may speak in anybody's name to what is aggregated.
        front = Authority(folder / "front-proxy")
        proxies = front.issue(_FRONT_PROXY)
        self.ca = authority.certificate
        self.service_accounts = new_key(folder / "certificates" / "service-accounts.key")
        self._url = f"https://{address}:{self.port}"
        self._command: list[str | Path] = [
            binaries / "kube-apiserver",
            f"--etcd-servers={self.etcd_url}",
            f"--bind-address={address}",
            f"--advertise-address={address}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={served[0]}",
            f"--tls-private-key-file={served[1]}",
            f"--client-ca-file={self.ca}",
            f"--kubelet-client-certificate={calls[0]}",
            f"--kubelet-client-key={calls[1]}",
            "--kubelet-preferred-address-types=InternalIP",  # names of nodes are in no DNS
            f"--requestheader-client-ca-file={front.certificate}",
            f"--requestheader-allowed-names={_FRONT_PROXY}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={proxies[0]}",
            f"--proxy-client-key-file={proxies[1]}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged",
            # Loopback is no address for pods: then nothing stands behind the Service `kubernetes`.
            f"--endpoint-reconciler-type={'none' if address == _LOOPBACK else 'lease'}",
            f"--service-cluster-ip-range={services}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.service_accounts}",
            f"--service-account-signing-key-file={self.service_accounts}",
            *options,
        ]
        self._server: Process | None = None

    def access(self, user: str = ADMIN) -> Access:
        """How ``user`` reaches the API server; KeyError for one that was not announced."""
        return Access(self._url, self.ca, self._tokens[user])

    @contextmanager
    def running(self) -> Iterator[None]:
        """Both are started on entry, and ended on exit if they still run."""
        peer_url = f"http://{_LOOPBACK}:{self._peer}"
        etcd = Process(
            "etcd",
            [
                self._binaries / "etcd",
                f"--data-dir={self._folder / 'etcd'}",
                "--unsafe-no-fsync",
                f"--listen-client-urls={self.etcd_url}",
                f"--advertise-client-urls={self.etcd_url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=default={peer_url}",
            ],
            self._folder / "etcd.log",
            group=self._group,
        )
        with etcd:
            etcd.wait_until(lambda: answers(f"{self.etcd_url}/readyz"), _READY_S)
            try:
                self.start_api_server()
                yield
            finally:
                self.stop_api_server()

    def start_api_server(self) -> None:
        """Returns when it is ready; nothing happens where it runs."""
        if self._server is None:
            log = self._folder / "kube-apiserver.log"
            self._server = Process("kube-apiserver", self._command, log, group=self._group)
            self._server.wait_until(lambda: _ready(self.access()), _READY_S)

    def stop_api_server(self) -> None:
        """Returns when it has ended; nothing happens where it does not run."""
        if self._server is not None:
            self._server.stop(_PATIENCE_S)
            self._server = None


@contextmanager
def control_plane(binaries: Path, folder: Path) -> Iterator[Access]:
    """A fresh API server on loopback with its data and logs in ``folder``; the access is an administrator's."""
    plane = ControlPlane(binaries, folder)
    with plane.running():
        yield plane.access()


def _ready(access: Access) -> bool:
    return answers(f"{access.url}/readyz", access)


def answers(url: str, access: Access | None = None) -> bool:
    """Whether a GET of ``url`` succeeds, as the user of ``access`` or as nobody."""
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
