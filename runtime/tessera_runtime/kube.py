"""A node's few requests to the API server: its own RuntimeNode, its Lease, Secrets. The one module with HTTP.

Nothing waits without a bound. The token is read for every request, since the kubelet replaces it within the
hour; the certificate authority when its file changes. How long to wait after a failure is the caller's matter,
who is told what the server asked for.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp

from tessera_core.api.meta import API_VERSION

REQUEST_S = 10.0
WATCH_S = 300
"""After which the server ends a watch, and it is asked anew."""

CONNECT_S = 5.0
MAX_EVENT = 16 << 20
"""Bytes of one watch event: etcd keeps objects below 2 MiB."""

_NODES = f"/apis/{API_VERSION}/runtimenodes"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

Document = dict[str, Any]


class KubeError(Exception):
    """The API server refused, or did not answer (``status`` 0). The text holds no token."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Expired(KubeError):
    """410: the version to watch from is no longer known; read the object again."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is, and who asks."""

    url: str
    token_file: Path | None
    ca_file: Path | None

    @staticmethod
    def add_options(parser: ArgumentParser) -> None:
        """Those that ``of`` understands, for a process outside a pod."""
        parser.add_argument("--api-server", metavar="URL", help="default: as in a pod")
        parser.add_argument("--token-file", type=Path)
        parser.add_argument("--ca-file", type=Path)

    @classmethod
    def of(cls, options: Namespace) -> Access:
        """As the options say, or as in a pod. Raises KubeError where neither says it."""
        if options.api_server:
            return cls(options.api_server, options.token_file, options.ca_file)
        return cls.in_cluster()

    @classmethod
    def in_cluster(cls, environment: Mapping[str, str] = os.environ) -> Access:
        """As every pod is told. Raises KubeError outside a cluster."""
        host = environment.get("KUBERNETES_SERVICE_HOST")
        port = environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise KubeError(0, "KUBERNETES_SERVICE_HOST is not set: give --api-server")
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}", _ACCOUNT / "token", _ACCOUNT / "ca.crt")


class Kube:
    """A client for one event loop. As a context: closes its connections at the end."""

    def __init__(self, access: Access, manager: str) -> None:
        """``manager``: field manager of everything that is written."""
        self._access = access
        self._manager = manager
        self._session: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | None = None
        self._context_of = 0

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REQUEST_S, sock_connect=CONNECT_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def node(self, name: str) -> Document | None:
        """The RuntimeNode, or None while there is none. Raises KubeError."""
        try:
            return await self._request("GET", f"{_NODES}/{name}")
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def watch_node(self, name: str, version: str) -> AsyncIterator[Document | None]:
        """The RuntimeNode after every change that follows ``version``, None when it was deleted; ends when the
        server ends the watch. Raises KubeError; Expired when ``version`` is too old.
        """
        query = {
            "watch": "1",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_S),
            "allowWatchBookmarks": "true",
        }
        # Bookmarks come every minute, so a longer silence is a connection that is dead.
        timeout = aiohttp.ClientTimeout(
            total=WATCH_S + 2 * REQUEST_S, sock_connect=CONNECT_S, sock_read=120.0
        )
        try:
            async with self._open("GET", f"{_NODES}?{urlencode(query)}", timeout=timeout) as answer:
                await _check(answer)
                async for line in _lines(answer.content):
                    event = json.loads(line)
                    match event["type"]:
                        case "ADDED" | "MODIFIED":
                            yield event["object"]
                        case "DELETED":
                            yield None
                        case "ERROR":
                            raise _refusal(event["object"], None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
            raise _unanswered(error) from error

    async def write_status(self, name: str, status: object) -> None:
        """Apply ``status`` (server-side, the whole of what this manager owns). Raises KubeError."""
        document = {
            "apiVersion": API_VERSION,
            "kind": "RuntimeNode",
            "metadata": {"name": name},
            "status": status,
        }
        await self._apply(f"{_NODES}/{name}/status", document)

    async def renew(
        self, namespace: str, name: str, holder: str, duration_s: int, now: str
    ) -> None:
        """Say that ``holder`` is alive at ``now`` (RFC 3339 with microseconds). Raises KubeError."""
        document = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": duration_s,
                "renewTime": now,
            },
        }
        path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"
        await self._apply(path, document)

    async def secret(self, namespace: str, name: str) -> dict[str, str]:
        """The values of a Secret that are text. Raises KubeError."""
        found = await self._request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
        values: dict[str, str] = {}
        for key, value in (found.get("data") or {}).items():
            try:
                values[key] = base64.b64decode(value).decode().strip()
            except ValueError:
                continue  # bytes are no credential of any store
        return values

    async def _apply(self, path: str, document: Document) -> None:
        query = urlencode({"fieldManager": self._manager, "force": "true"})
        await self._request("PATCH", f"{path}?{query}", document)

    async def _request(self, method: str, path: str, body: Document | None = None) -> Document:
        headers = {} if body is None else {"Content-Type": "application/apply-patch+yaml"}
        data = None if body is None else json.dumps(body).encode()
        try:
            async with self._open(method, path, data=data, headers=headers) as answer:
                await _check(answer)
                found: Document = await answer.json()
                return found
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _unanswered(error) from error

    def _open(self, method: str, path: str, **options: Any) -> Any:
        """A request as an aiohttp context. Raises OSError where the token or the authority cannot be read."""
        assert self._session is not None, "used outside its context"
        headers = {"Accept": "application/json", **options.pop("headers", {})}
        if self._access.token_file is not None:
            headers["Authorization"] = f"Bearer {self._access.token_file.read_text().strip()}"
        return self._session.request(
            method,
            self._access.url + path,
            headers=headers,
            ssl=self._authority(),
            allow_redirects=False,
            **options,
        )

    def _authority(self) -> ssl.SSLContext | bool:
        file = self._access.ca_file
        if file is None:
            return True
        changed = file.stat().st_mtime_ns
        if self._context is None or changed != self._context_of:
            self._context = ssl.create_default_context(cafile=file)
            self._context_of = changed
        return self._context


async def _check(answer: aiohttp.ClientResponse) -> None:
    if answer.status < 300:
        return
    try:
        said = await answer.json(content_type=None)
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    raise _refusal(
        {"code": answer.status, "message": said.get("message") or answer.reason or ""},
        answer.headers.get("Retry-After"),
    )


def _refusal(status: Document, retry_after: str | None) -> KubeError:
    code, message = int(status.get("code") or 500), str(status.get("message") or "")[:1000]
    if code == 410:
        return Expired(code, message)
    wait_s = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
    return KubeError(code, f"the API server says {code}: {message}", wait_s)


def _unanswered(error: Exception) -> KubeError:
    reason = str(error).partition("\n")[0][:200] or type(error).__name__
    return KubeError(0, f"the API server does not answer: {reason}")


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a stream, each at most MAX_EVENT bytes. Raises ValueError beyond."""
    held = bytearray()
    async for block in content.iter_any():
        held += block
        *lines, rest = held.split(b"\n")
        held = bytearray(rest)
        if len(held) > MAX_EVENT:
            raise ValueError(f"a watch event of over {MAX_EVENT} bytes")
        for line in lines:
            if line:
                yield bytes(line)
