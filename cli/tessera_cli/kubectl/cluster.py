"""Reads the cluster of a kubeconfig and writes approvals: the only module that knows the Kubernetes client.

Objects come as plain documents, through the operator's client: in pages, each call with a time limit and none
repeated. What goes wrong is a ``Failed`` in words that say what to do.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from tessera_cli.kubectl.objects import Failed, Forbidden
from tessera_core.api.scalars import suggestion
from tessera_operator.cluster import ApiError, Unreachable
from tessera_operator.cluster import Cluster as Server
from tessera_operator.kinds import KINDS, LEASE, PLACEMENT_PLAN, Document, Kind

FIELD_MANAGER = "kubectl-tessera"
TIMEOUT_S = (5.0, 30.0)
"""Of an approval: to connect, and to answer."""

_CONFIG_MAP = Kind("ConfigMap", "v1", "configmaps")
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _CONFLICT = 401, 403, 404, 409


class Cluster:
    """One cluster as one user sees it."""

    def __init__(self, api: client.ApiClient, namespace: str, system_namespace: str) -> None:
        self.namespace = namespace
        """Where names without a namespace are looked for."""
        self._system = system_namespace
        self._server = Server(api)
        self._custom = client.CustomObjectsApi(api)
        self._host = api.configuration.host

    def objects(self, kind: str, namespace: str = "") -> list[Document]:
        """All objects of a kind, of one namespace where one is named. Raises Failed."""
        return self._list(KINDS[kind], namespace)

    def leases(self) -> list[Document]:
        """The Leases of the namespace that Tessera is installed in. Raises Failed."""
        return self._list(LEASE, self._system)

    def config_map(self, name: str) -> Mapping[str, str]:
        """The data of a ConfigMap of that namespace; empty when there is none. Raises Failed."""
        for each in self._list(_CONFIG_MAP, self._system):
            if each["metadata"]["name"] == name:
                data: Mapping[str, str] = each.get("data") or {}
                return data
        return {}

    def approve(self, plan: str, resource_version: str) -> None:
        """Set ``spec.approved`` of a PlacementPlan that is still as it was read. Raises Failed."""
        group, _, version = PLACEMENT_PLAN.api_version.partition("/")
        change = {"metadata": {"resourceVersion": resource_version}, "spec": {"approved": True}}
        with self._explained(f"approve the PlacementPlan {plan}"):
            self._custom.patch_cluster_custom_object(
                group,
                version,
                PLACEMENT_PLAN.plural,
                plan,
                change,
                field_manager=FIELD_MANAGER,
                _request_timeout=TIMEOUT_S,
            )

    def _list(self, kind: Kind, namespace: str) -> list[Document]:
        with self._explained(f"list {kind.plural}", kind):
            found, _ = self._server.list(kind, namespace)
        return [*found]

    @contextmanager
    def _explained(self, doing: str, listed: Kind | None = None) -> Iterator[None]:
        """What goes wrong inside, in words. A list of objects is only not found when their kind is not."""
        try:
            yield
        except ApiError as refused:
            raise self._failed(doing, refused.status, str(refused), listed) from None
        except ApiException as refused:
            raise self._failed(doing, refused.status, _words(refused), listed) from None
        except (Unreachable, HTTPError) as failed:
            raise Failed(f"cannot reach {self._host}: {_cause(failed)}") from None

    def _failed(self, doing: str, status: int, words: str, listed: Kind | None) -> Failed:
        if status == _UNAUTHORIZED:
            return Failed(f"{self._host} does not know this user: log in again ({words})")
        if status == _FORBIDDEN:
            return Forbidden(f"this user may not {doing} ({words})")
        if status == _NOT_FOUND and listed is not None:
            group = listed.api_version.partition("/")[0]
            return Failed(
                f"the cluster has no {listed.plural}.{group}: install Tessera's CRDs, or choose another "
                "cluster with --context"
            )
        if status == _CONFLICT:
            return Failed(f"cannot {doing}: it changed in the meantime, look again ({words})")
        return Failed(f"cannot {doing} ({words})")


@contextmanager
def connect(arguments: argparse.Namespace) -> Iterator[Cluster]:
    """The cluster that ``--kubeconfig``, ``--context`` and ``--namespace`` name. Raises Failed."""
    # The client reads the variable when it is imported, which is too early for a caller that sets it.
    file = arguments.kubeconfig or os.environ.get("KUBECONFIG") or None
    where = file or "~/.kube/config"
    settings = client.Configuration()
    settings.retries = False
    try:
        contexts, current = config.list_kube_config_contexts(file)
        chosen = _context(arguments.context, contexts, current)
        api = config.new_client_from_config(file, chosen["name"], client_configuration=settings)
    except ConfigException as wrong:
        raise Failed(
            f"{where} names no cluster: {wrong}; say which kubeconfig by --kubeconfig or KUBECONFIG"
        ) from None
    except OSError as wrong:
        raise Failed(f"{wrong.filename or where}: {wrong.strerror or wrong}") from None
    except yaml.YAMLError as wrong:
        raise Failed(f"{where} is not YAML: {' '.join(str(wrong).split())}") from None
    namespace = arguments.namespace or chosen["context"].get("namespace") or "default"
    with api:
        yield Cluster(api, namespace, arguments.system_namespace)


def _context(
    name: str | None, contexts: list[dict[str, Any]], current: dict[str, Any]
) -> dict[str, Any]:
    if name is None:
        return current
    for each in contexts:
        if each["name"] == name:
            return each
    names = [each["name"] for each in contexts]
    raise Failed(f"--context: found {name}, allowed: {', '.join(names)}{suggestion(name, names)}")


def _words(refused: ApiException) -> str:
    """What the API server says, or the status line where something else answered."""
    try:
        return f"{refused.status}: {json.loads(refused.body)['message']}"
    except (TypeError, ValueError, KeyError):
        return f"{refused.status}: {refused.reason}"


def _cause(failed: Exception) -> str:
    """The innermost reason: the outer ones name pools and paths."""
    return str(failed).rpartition(": ")[2] or type(failed).__name__
