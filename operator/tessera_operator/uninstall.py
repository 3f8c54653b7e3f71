"""Takes away what nobody could take away once the operator is gone: finalizers, and the objects it has made.

Run before the chart is deleted. ModelServices and RuntimePools stay: they are the users', and a new installation
finds them. Their Services go, because nothing answers behind them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from functools import partial

from tessera_operator import kinds
from tessera_operator.cluster import Cluster, ClusterError, connect
from tessera_operator.pools import ACTIVATOR, NAME_LABEL, RUNTIME
from tessera_operator.reporting import FINALIZER
from tessera_operator.routes import MANAGED_BY

OPERATOR = "tessera-operator"
_LOG = logging.getLogger(__name__)


def uninstall(cluster: Cluster, namespace: str, timeout_s: float = 120.0) -> int:
    """Remove what the operator has made; how many objects failed. Raises ClusterError where nothing can be read."""
    failed = _stop_writers(cluster, namespace, timeout_s)
    own = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())
    services, _ = cluster.list(kinds.MODEL_SERVICE)
    for service in services:
        finalizers = service["metadata"].get("finalizers") or []
        if FINALIZER in finalizers:
            document = {
                "apiVersion": kinds.MODEL_SERVICE.api_version,
                "kind": "ModelService",
                "metadata": {
                    "name": service["metadata"]["name"],
                    "namespace": service["metadata"]["namespace"],
                    "finalizers": [each for each in finalizers if each != FINALIZER],
                },
            }
            failed += not _tried(partial(cluster.merge, document))
    for kind, place, labels in (
        (kinds.DAEMON_SET, namespace, own),
        (kinds.DISRUPTION_BUDGET, namespace, own),
        (kinds.ENDPOINT_SLICE, "", own),
        (kinds.SERVICE, "", own),
        (kinds.RUNTIME_NODE, "", ""),
        (kinds.PLACEMENT_PLAN, "", ""),
    ):
        for document in cluster.list(kind, place, labels)[0]:
            failed += not _tried(partial(cluster.delete, document))
    for lease in cluster.list(kinds.LEASE, namespace)[0]:
        if lease["metadata"]["name"].startswith("tessera-"):
            failed += not _tried(partial(cluster.delete, lease))
    return failed


def _stop_writers(cluster: Cluster, namespace: str, timeout_s: float) -> int:
    """End the pods that would put back what is removed: operator, activator and runtime pods."""
    failed = 0
    for deployment in cluster.list(kinds.DEPLOYMENT, namespace)[0]:
        name = deployment["metadata"]["name"]
        if name.startswith(f"{RUNTIME}-"):
            failed += not _tried(partial(cluster.delete, deployment))
        elif name in (OPERATOR, ACTIVATOR):
            head = {"name": name, "namespace": namespace}
            document = {"kind": "Deployment", "metadata": head, "spec": {"replicas": 0}}
            failed += not _tried(partial(cluster.merge, document))
    deadline_s = time.monotonic() + timeout_s
    labels = f"{NAME_LABEL} in ({RUNTIME},{ACTIVATOR},{OPERATOR})"
    while pods := cluster.list(kinds.POD, namespace, labels)[0]:
        if time.monotonic() > deadline_s:
            _LOG.warning("%d pods have not ended in %.0f s: going on", len(pods), timeout_s)
            break
        time.sleep(1.0)
    return failed


def _tried(call: Callable[[], object]) -> bool:
    try:
        call()
    except ClusterError as error:
        _LOG.error("%s", error)
        return False
    return True


def main() -> int:
    """Entry point of ``python -m tessera_operator.uninstall``."""
    parser = argparse.ArgumentParser(prog="tessera-uninstall", description=__doc__)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--kubeconfig")
    arguments = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    try:
        return 1 if uninstall(Cluster(connect(arguments.kubeconfig)), arguments.namespace) else 0
    except ClusterError as error:
        _LOG.error("%s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
