"""A small client for tests: objects as plain dicts, refusals as one exception with the server's words."""

from __future__ import annotations

import json
import ssl
from http.client import HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from e2e.native.control_plane import Access

Object = dict[str, Any]

_TIMEOUT_S = 30
_PLURALS = {
    "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "ModelProfile": ("apis/tessera.dev/v1alpha1", "modelprofiles"),
    "ModelService": ("apis/tessera.dev/v1alpha1", "modelservices"),
    "Namespace": ("api/v1", "namespaces"),
    "PlacementPlan": ("apis/tessera.dev/v1alpha1", "placementplans"),
    "RuntimeNode": ("apis/tessera.dev/v1alpha1", "runtimenodes"),
    "RuntimePool": ("apis/tessera.dev/v1alpha1", "runtimepools"),
}
_NAMESPACED = ("ModelProfile", "ModelService")


class Refused(Exception):
    """The API server said no; ``code`` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Api:
    """An API server as seen by one user, over one connection."""

    def __init__(self, access: Access) -> None:
        self.access = access
        url = urlsplit(access.url)
        assert url.hostname is not None
        context = ssl.create_default_context(cafile=access.ca)
        self._connection = HTTPSConnection(
            url.hostname, url.port, timeout=_TIMEOUT_S, context=context
        )

    def close(self) -> None:
        """End the connection; the next call opens another one."""
        self._connection.close()

    def create(self, document: Object) -> Object:
        """What the server made of a new object. Raises Refused."""
        return self._call("POST", _folder(document), document)

    def admits(self, document: Object) -> str | None:
        """Why the server would refuse a new object, unknown fields included; None when it would not."""
        try:
            self._call("POST", f"{_folder(document)}?dryRun=All&fieldValidation=Strict", document)
        except Refused as refused:
            return str(refused)
        return None

    def replace(self, document: Object) -> Object:
        """What the server made of an object that exists, whoever wrote it last. Raises Refused."""
        return self._put(_path(document), document)

    def replace_status(self, document: Object) -> Object:
        """The same for its status alone, which the server takes in no other way. Raises Refused."""
        return self._put(f"{_path(document)}/status", document)

    def _put(self, path: str, document: Object) -> Object:
        present = self.read(document)
        version = {"resourceVersion": present["metadata"]["resourceVersion"]}
        metadata = {**document["metadata"], **version}
        return self._call("PUT", path, {**document, "metadata": metadata})

    def read(self, document: Object) -> Object:
        return self._call("GET", _path(document))

    def delete(self, document: Object) -> None:
        self._call("DELETE", _path(document))

    def table(self, plural: str) -> Object:
        """What ``kubectl get`` shows."""
        path = f"apis/tessera.dev/v1alpha1/{plural}"
        return self._call("GET", path, accept="application/json;as=Table;v=v1;g=meta.k8s.io")

    def _call(
        self, method: str, path: str, body: Object | None = None, accept: str = "application/json"
    ) -> Object:
        headers = {
            "Authorization": f"Bearer {self.access.token}",
            "Content-Type": "application/json",
            "Accept": accept,
        }
        data = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, f"/{path}", data, headers)
            answer = self._connection.getresponse()
        except (ConnectionError, ssl.SSLEOFError):  # it had been idle for long
            self._connection.close()
            self._connection.request(method, f"/{path}", data, headers)
            answer = self._connection.getresponse()
        found: Object = json.load(answer)
        if answer.status >= 400:
            raise Refused(answer.status, found.get("message", ""))
        return found


def _folder(document: Object) -> str:
    group, plural = _PLURALS[document["kind"]]
    if document["kind"] in _NAMESPACED:
        return f"{group}/namespaces/{document['metadata']['namespace']}/{plural}"
    return f"{group}/{plural}"


def _path(document: Object) -> str:
    return f"{_folder(document)}/{document['metadata']['name']}"
