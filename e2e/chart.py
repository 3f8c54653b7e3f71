"""The chart under test: rendered and installed by helm, and its API server asked as anybody.

Who asks is a token, as pods have, or an administrator who acts for a user; what is asked is any object of any kind,
found by the server's own discovery.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from functools import cache
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import yaml
from e2e.native.build import VERSION, tool
from e2e.native.control_plane import Access
from e2e.native.processes import run

Object = dict[str, Any]

CHART = Path(__file__).parents[1] / "charts" / "tessera"
NAMESPACE = "tessera-system"
VALUES: Mapping[str, tuple[str, ...]] = {
    "defaults": (),
    **{path.stem: ("--values", str(path)) for path in sorted((CHART / "ci").glob("*.yaml"))},
}
"""Arguments of helm by name of the set of values."""
_TIMEOUT_S = 30
_HELM_S = 120.0
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


def helm(*arguments: str, kubeconfig: Path | None = None) -> str:
    """What helm printed; raises RuntimeError with what it complained of."""
    asked = () if kubeconfig is None else (f"--kubeconfig={kubeconfig}",)
    return run(tool("helm"), *arguments, *asked, timeout_s=_HELM_S)


@cache
def rendered(values: str = "defaults", *arguments: str) -> tuple[Object, ...]:
    """The objects that the chart makes of a set of values."""
    text = helm(
        "template", "tessera", str(CHART), f"--namespace={NAMESPACE}", f"--kube-version={VERSION}",
        *VALUES[values], *arguments,
    )  # fmt: skip
    return tuple(document for document in yaml.safe_load_all(text) if document)


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = (
        each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name
    )
    return found


class Refused(Exception):
    """The API server said no; ``code`` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """An API server as one user sees it. ``acts_for`` are headers of impersonation."""

    def __init__(self, access: Access, token: str = "", acts_for: Sequence[tuple[str, str]] = ()):
        url = urlsplit(access.url)
        assert url.hostname is not None
        context = ssl.create_default_context(cafile=access.ca)
        self.access = access
        self._headers = [("Authorization", f"Bearer {token or access.token}"), *acts_for]
        self._connection = HTTPSConnection(
            url.hostname, url.port, timeout=_TIMEOUT_S, context=context
        )
        self._resources: dict[str, dict[str, tuple[str, bool]]] = {}

    def with_token(self, token: str) -> Client:
        """The same server for the holder of ``token``."""
        return Client(self.access, token)

    def acting_for(self, user: str, *groups: str) -> Client:
        """The same server for somebody that needs no token."""
        headers = [("Impersonate-User", user), *(("Impersonate-Group", each) for each in groups)]
        return Client(self.access, acts_for=headers)

    def close(self) -> None:
        self._connection.close()

    def create(self, document: Object, dry: bool = False) -> Object:
        """Raises Refused."""
        return self.call("POST", self._folder(document) + _dry(dry), document)

    def apply(self, document: Object, subresource: str = "", dry: bool = False) -> Object:
        """Server-side apply, unknown fields refused. Raises Refused."""
        query = f"?fieldManager=e2e&force=true&fieldValidation=Strict{'&dryRun=All' * dry}"
        path = self._path(document) + (f"/{subresource}" if subresource else "")
        return self.call("PATCH", path + query, document, APPLY)

    def merge(self, document: Object, change: Object) -> Object:
        """Change parts of an object. Raises Refused."""
        return self.call("PATCH", self._path(document), change, MERGE)

    def scale(self, document: Object, replicas: int) -> Object:
        """The Scale that its subresource then has. Raises Refused."""
        change = {"spec": {"replicas": replicas}}
        return self.call("PATCH", f"{self._path(document)}/scale", change, MERGE)

    def read(self, document: Object) -> Object:
        """Raises Refused."""
        return self.call("GET", self._path(document))

    def exists(self, document: Object) -> bool:
        try:
            self.read(document)
        except Refused as refused:
            if refused.code == 404:
                return False
            raise
        return True

    def delete(self, document: Object, dry: bool = False) -> None:
        """Raises Refused."""
        self.call("DELETE", self._path(document) + _dry(dry))

    def serves(self, document: Object) -> bool:
        """Whether the server knows the kind."""
        return document["kind"] in self._known(document["apiVersion"])

    def resources(self) -> list[tuple[str, str, bool, tuple[str, ...]]]:
        """Group, resource with subresource, whether it is namespaced, and verbs, of all that is served."""
        versions = [
            "v1",
            *(
                each["preferredVersion"]["groupVersion"]
                for each in self.call("GET", "/apis")["groups"]
            ),
        ]
        return [
            (version.rpartition("/")[0], each["name"], each["namespaced"], tuple(each["verbs"]))
            for version in versions
            for each in self.call("GET", _root(version))["resources"]
        ]

    def may(
        self, user: str, verb: str, group: str, resource: str, namespace: str = "", name: str = ""
    ) -> bool:
        """What RBAC says of a service account: ``namespace:name``."""
        owner = user.partition(":")[0]
        plain, _, subresource = resource.partition("/")
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{user}",
                "groups": [
                    *("system:authenticated", "system:serviceaccounts"),
                    f"system:serviceaccounts:{owner}",
                ],
                "resourceAttributes": {
                    "verb": verb,
                    "group": group,
                    "resource": plain,
                    "subresource": subresource,
                    "namespace": namespace,
                    "name": name,
                },
            },
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return bool(self.call("POST", path, review)["status"]["allowed"])

    def call(
        self, method: str, path: str, body: Object | None = None, kind: str = "application/json"
    ) -> Object:
        """Raises Refused."""
        self._connection.putrequest(method, path)
        data = b"" if body is None else json.dumps(body).encode()
        headers = [("Content-Type", kind), ("Content-Length", str(len(data)))]
        for name, value in [*self._headers, *headers]:
            self._connection.putheader(name, value)
        self._connection.endheaders(data)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            plain = "json" not in answer.headers.get("Content-Type", "")
            raise Refused(answer.status, text.decode() if plain else json.loads(text)["message"])
        found: Object = json.loads(text)
        return found

    def _known(self, version: str) -> dict[str, tuple[str, bool]]:
        if version not in self._resources:
            try:
                listed = self.call("GET", _root(version))["resources"]
            except Refused:
                return {}
            self._resources[version] = {
                each["kind"]: (each["name"], each["namespaced"])
                for each in listed
                if "/" not in each["name"]
            }
        return self._resources[version]

    def _folder(self, document: Object) -> str:
        plural, namespaced = self._known(document["apiVersion"])[document["kind"]]
        place = document["metadata"].get("namespace", NAMESPACE)
        return f"{_root(document['apiVersion'])}{f'/namespaces/{place}' if namespaced else ''}/{plural}"

    def _path(self, document: Object) -> str:
        return f"{self._folder(document)}/{quote(document['metadata']['name'])}"


def _root(version: str) -> str:
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def _dry(dry: bool) -> str:
    return "?dryRun=All&fieldValidation=Strict" if dry else ""
