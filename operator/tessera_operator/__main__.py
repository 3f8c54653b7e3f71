"""The operator's process: waits until it leads, then plans and acts until it is told to stop or leads no more."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from kubernetes.client.exceptions import ApiException

from tessera_core.api import SpecInvalid
from tessera_operator import kinds
from tessera_operator.cluster import Cluster, ClusterError, connect
from tessera_operator.config import Config, read_config
from tessera_operator.controller import Controller, Now
from tessera_operator.facts import Facts, Follower, Source
from tessera_operator.health import Health
from tessera_operator.heartbeats import renewals
from tessera_operator.leader import Leader
from tessera_operator.pod_tls import Tls
from tessera_operator.pools import ACTIVATOR, NAME_LABEL, RUNTIME, Images, Installation
from tessera_operator.routes import MANAGED_BY

_LOG = logging.getLogger(__name__)
LEASE_NAME = "tessera-operator"
_GATEWAY_KINDS = (kinds.HTTP_ROUTE, kinds.GRPC_ROUTE)
ROUND_S = 30.0
"""Between two rounds at most: rates fade and back-offs end without news."""
_MOST_QUIET_S = 3.0
"""Without news, before a round that is expected to take long."""
_FIRST_PAUSE_S, _MOST_PAUSE_S = 1.0, 30.0
"""After a round in which a write failed."""


class NoGatewayApi(Exception):
    """The settings name a Gateway, and the API server does not know the kinds that lead from one."""

    def __str__(self) -> str:
        return "gateway: the API server has no HTTPRoute and GRPCRoute: install the Gateway API, or remove the setting"


def sources(namespace: str, config: Config) -> tuple[Source, ...]:
    """What is followed."""
    gateway = _GATEWAY_KINDS if config.gateway is not None else ()
    own = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())
    return (
        *(
            Source(kind)
            for kind in (
                *(kinds.RUNTIME_POOL, kinds.RUNTIME_NODE, kinds.MODEL_SERVICE),
                *(kinds.MODEL_PROFILE, kinds.PLACEMENT_PLAN),
                *(kinds.NODE, kinds.PRIORITY_CLASS, kinds.RESOURCE_QUOTA),
            )
        ),
        *(Source(kind, labels=own) for kind in gateway),
        Source(kinds.SERVICE, labels=own),
        Source(kinds.ENDPOINT_SLICE, labels=own),
        Source(kinds.DEPLOYMENT, namespace, own),
        Source(kinds.DAEMON_SET, namespace, own),
        Source(kinds.DISRUPTION_BUDGET, namespace, own),
        Source(kinds.POD, namespace, f"{NAME_LABEL} in ({RUNTIME},{ACTIVATOR})"),
    )


def lead(
    cluster: Cluster,
    config: Config,
    where: Installation,
    epoch: int,
    stop: threading.Event,
    health: Health,
) -> None:
    """Rounds until ``stop``. Raises NoGatewayApi."""
    facts = Facts()
    followers = [Follower(cluster, source, facts) for source in sources(where.namespace, config)]
    for follower in followers:
        follower.start()
    for follower in followers:
        while not follower.listed.wait(0.5):
            if stop.is_set():
                return
            if follower.absent.is_set() and follower.kind in _GATEWAY_KINDS:
                raise NoGatewayApi
    controller = Controller(cluster, config, where, epoch)
    health.show(controller.meter)
    threading.Thread(target=_wake_at, args=(stop, facts), daemon=True).start()
    poll_s = round_s = time.monotonic()
    pause_s, took_s, lost = 0.0, 0.0, frozenset[str]()
    while not stop.is_set():
        now_s = time.monotonic()
        wait_s = max(0.0, min(poll_s, round_s) - now_s)
        # Where a plan takes long, facts that still come, as nodes of a new pool do, are worth waiting for.
        quiet_s = max(config.debounce_s, min(_MOST_QUIET_S, took_s / 4))
        most_s = max(config.most_debounce_s, min(ROUND_S, took_s))
        news = facts.wait(wait_s, quiet_s, most_s)
        if stop.is_set():
            return
        now_s = time.monotonic()
        if now_s >= poll_s:
            poll_s = now_s + config.heartbeat_poll_s
            _look(cluster, controller, where.namespace, now_s)
            found = controller.heartbeats.lost(now_s)
            news, lost = news or found != lost or facts.has_changed, found
        if not news and now_s < round_s:
            continue
        controller.take(facts.changed())
        started_s = time.monotonic()
        try:
            due_s = controller.round(Now(now_s, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
            failed = len(controller.writer.failed)
        except Exception:
            # What is served goes on by itself; the next facts may be others.
            _LOG.exception("a round failed")
            due_s, failed = None, 1
        took_s = time.monotonic() - started_s
        health.round_ended(took_s, failed)
        health.devices(controller.devices)
        round_s = now_s + min(ROUND_S, due_s if due_s is not None else ROUND_S)
        if failed:
            pause_s = min(_MOST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * pause_s))
            round_s = min(round_s, now_s + pause_s)
            stop.wait(min(pause_s, 2.0))  # news must not make it hammer on an ailing server
        else:
            pause_s = 0.0


def _wake_at(stop: threading.Event, facts: Facts) -> None:
    stop.wait()
    facts.wake()


def _look(cluster: Cluster, controller: Controller, namespace: str, now_s: float) -> None:
    try:
        leases, _ = cluster.list(kinds.LEASE, namespace)
    except ClusterError as error:
        _LOG.warning("leases: %s", str(error)[:200])
    else:
        controller.heartbeats.look(renewals(leases), now_s)


def _largest_epoch(cluster: Cluster) -> int:
    """In any object: a Lease that was deleted starts to count anew."""

    def epochs() -> Iterator[int]:
        for kind in (kinds.RUNTIME_NODE, kinds.PLACEMENT_PLAN):
            for document in cluster.list(kind)[0]:
                yield int(document["spec"]["epoch"])

    return max(epochs(), default=0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tessera-operator", description=__doc__)
    parser.add_argument("--namespace", default=os.environ.get("POD_NAMESPACE"))
    parser.add_argument("--identity", default=os.environ.get("POD_NAME", os.uname().nodename))
    parser.add_argument("--config", type=Path, help="YAML file of settings")
    parser.add_argument("--kubeconfig", help="outside a cluster; inside, the pod's account is used")
    parser.add_argument("--runtime-image", required=True, help="for pools with GPUs")
    parser.add_argument("--runtime-cpu-image", required=True)
    parser.add_argument("--image-pull-policy", default="IfNotPresent")
    parser.add_argument("--image-pull-secret", action="append", default=[])
    parser.add_argument("--agent-service-account", default="tessera-agent")
    parser.add_argument("--runtime-priority-class", default="")
    parser.add_argument("--agent-arg", action="append", default=[], help="further agent option")
    parser.add_argument("--server-arg", action="append", default=[], help="further server option")
    parser.add_argument(
        "--partitioner-arg", action="append", default=[], help="further partitioner option"
    )
    parser.add_argument("--tls-secret", default="", help="of runtime pods; empty: in clear")
    parser.add_argument("--tls-client-ca-secret", default="", help="of those who may ask them")
    parser.add_argument("--tls-peer-name", default="tessera-runtime", help="in the certificate")
    parser.add_argument("--port", type=int, default=8080, help="of health and metrics")
    parser.add_argument("--log-level", default="info")
    arguments = parser.parse_args()
    if not arguments.namespace:
        parser.error("--namespace: found nothing, expected the namespace of the runtime pods")
    if arguments.tls_client_ca_secret and not arguments.tls_secret:
        parser.error(
            "--tls-client-ca-secret: clients are asked for certificates with --tls-secret only"
        )
    return arguments


def _tls(arguments: argparse.Namespace) -> Tls | None:
    if not arguments.tls_secret:
        return None
    return Tls(arguments.tls_secret, arguments.tls_client_ca_secret, arguments.tls_peer_name)


def main() -> int:
    """Exit status: 0 after SIGTERM, 1 when the lease is lost, 2 for settings that are wrong."""
    arguments = _arguments()
    logging.basicConfig(
        level=arguments.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        config = read_config(arguments.config)
    except (SpecInvalid, ValueError, OSError) as error:
        _LOG.error("--config: %s", error)
        return 2
    api = connect(arguments.kubeconfig)
    cluster = Cluster(api)
    where = Installation(
        arguments.namespace,
        Images(
            arguments.runtime_image,
            arguments.runtime_cpu_image,
            arguments.image_pull_policy,
            tuple(arguments.image_pull_secret),
        ),
        arguments.agent_service_account,
        arguments.runtime_priority_class,
        tuple(arguments.agent_arg),
        tuple(arguments.server_arg),
        _tls(arguments),
        tuple(arguments.partitioner_arg),
    )
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    health = Health(arguments.port)
    health.start()

    def epoch_seen() -> int:
        try:
            return _largest_epoch(cluster)
        except ClusterError as error:
            raise ApiException(status=503, reason=str(error)) from error

    # Whoever leads no more must not write one more thing, whatever its threads are at.
    leader = Leader(
        api, arguments.namespace, LEASE_NAME, arguments.identity, lambda: os._exit(1), epoch_seen
    )
    if not leader.acquire(stop):
        return 0
    with leader:
        health.leads()
        try:
            lead(cluster, config, where, leader.epoch, stop, health)
        except NoGatewayApi as error:
            _LOG.error("--config: %s", error)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
