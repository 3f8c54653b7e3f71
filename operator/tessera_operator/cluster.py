"""The API server, as far as the operator needs it: list, watch, apply, delete; objects as plain documents.

The Kubernetes client brings configuration, TLS and tokens that are renewed; its typed models would copy every
object twice. Errors are ``ApiError`` with the HTTP status, or ``Unreachable``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config

from tessera_operator.kinds import KINDS, Document, Key, Kind, key_of

FIELD_MANAGER = "tessera-operator"
_CONNECT_S, _READ_S, _SILENCE_S = 5.0, 30.0, 130.0
_PAGE = 500
"""Objects of one answer to a list."""
_MOST_PAGES = 2000
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


class ClusterError(Exception):
    """A call failed: ``Unreachable`` | ``ApiError``."""


class Unreachable(ClusterError):
    """No answer: the connection failed, broke, or timed out."""


class ApiError(ClusterError):
    """The API server said no."""

    def __init__(self, status: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.retry_after_s = retry_after_s


def connect(kubeconfig: str | None) -> client.ApiClient:
    """By a kubeconfig, or inside a cluster as the pod's account."""
    configuration = client.Configuration()
    # One connection for each watch, and some for the loop and the lease.
    configuration.connection_pool_maxsize = 32
    if kubeconfig:
        config.load_kube_config(kubeconfig, client_configuration=configuration)
    else:
        config.load_incluster_config(client_configuration=configuration)
    return client.ApiClient(configuration)


class Cluster:
    """One API server. Thread-safe."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self._host = api.configuration.host

    def list(
        self, kind: Kind, namespace: str = "", labels: str = ""
    ) -> tuple[list[dict[str, Any]], str]:
        """All objects, and the resource version that they are of. Raises ClusterError."""
        found: list[dict[str, Any]] = []
        query = {"limit": str(_PAGE), "labelSelector": labels}
        for _ in range(_MOST_PAGES):
            page = self._json("GET", kind.folder(namespace), query)
            for item in page.get("items") or ():
                found.append({"apiVersion": kind.api_version, "kind": kind.name, **item})
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return found, metadata["resourceVersion"]
            query["continue"] = metadata["continue"]
        raise ApiError(500, f"a list of {kind.plural} that does not end")

    def watch(
        self, kind: Kind, namespace: str, labels: str, version: str, timeout_s: int
    ) -> Iterator[dict[str, Any]]:
        """Changes after ``version`` until the server ends the stream. Raises ClusterError."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(timeout_s),
            "labelSelector": labels,
        }
        # Bookmarks come about every minute: silence for longer is a connection that died.
        response = self._send("GET", kind.folder(namespace), query, read_s=_SILENCE_S)
        try:
            rest = b""
            for chunk in response.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line:
                        yield json.loads(line)
        except (urllib3.exceptions.HTTPError, OSError) as failed:
            raise Unreachable(str(failed)) from failed
        finally:
            response.close()

    def apply(
        self, document: Document, subresource: str = "", manager: str = FIELD_MANAGER
    ) -> dict[str, Any]:
        """Server-side apply: fields of other managers stay, conflicts are won. Raises ClusterError."""
        query = {"fieldManager": manager, "force": "true"}
        path = _path(document, subresource)
        return self._json("PATCH", path, query, document, _APPLY)

    def merge(self, document: Document) -> dict[str, Any]:
        """Change the given fields of an object that exists. Raises ClusterError."""
        query = {"fieldManager": FIELD_MANAGER}
        return self._json("PATCH", _path(document), query, document, _MERGE)

    def scale(self, key: Key, replicas: int) -> None:
        """Set ``spec.replicas`` of an object through its scale subresource. Raises ClusterError."""
        kind, namespace, name = key
        path = f"{KINDS[kind].path(namespace, name)}/scale"
        change = {"spec": {"replicas": replicas}}
        self._json("PATCH", path, {"fieldManager": FIELD_MANAGER}, change, _MERGE)

    def create(self, document: Document) -> dict[str, Any]:
        """Raises ClusterError."""
        kind, namespace, _ = key_of(document)
        return self._json("POST", KINDS[kind].folder(namespace), {}, document)

    def delete(self, document: Document) -> None:
        """What is gone already is no error. Raises ClusterError."""
        try:
            self._json("DELETE", _path(document), {"propagationPolicy": "Background"})
        except ApiError as error:
            if error.status != 404:
                raise

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Document | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        response = self._send(method, path, query, body, content_type)
        try:
            found: dict[str, Any] = json.loads(response.read(decode_content=True))
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as failed:
            raise Unreachable(str(failed)) from failed
        finally:
            response.release_conn()
        return found

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Document | None = None,
        content_type: str = "application/json",
        read_s: float = _READ_S,
    ) -> Any:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        try:
            response = self._api.rest_client.pool_manager.request(
                method,
                f"{self._host}{path}?{urlencode({k: v for k, v in query.items() if v})}",
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=urllib3.Timeout(connect=_CONNECT_S, read=read_s),
                retries=False,
                preload_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as failed:
            raise Unreachable(str(failed)) from failed
        if response.status >= 400:
            raise _error(response)
        return response


def _path(document: Document, subresource: str = "") -> str:
    kind, namespace, name = key_of(document)
    path = KINDS[kind].path(namespace, name)
    return f"{path}/{subresource}" if subresource else path


def _error(response: Any) -> ApiError:
    try:
        data = response.read(decode_content=True)
        message = json.loads(data).get("message") or response.reason
    except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError):
        message = response.reason
    finally:
        response.release_conn()
    retry_after = response.headers.get("Retry-After", "")
    return ApiError(response.status, message, float(retry_after) if retry_after.isdigit() else 0.0)
