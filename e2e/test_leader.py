"""Two operators and one Lease on a real API server: one leads, and the other takes over when it has to."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e.api import Api
from kubernetes import client, config

from tessera_operator.leader import Leader
from tessera_operator.lease import Timing

QUICK = Timing(duration_s=3.0, renew_within_s=2.0, retry_s=0.2)
CANDIDATE = """
import signal, sys, threading
from kubernetes import config
from tessera_operator.leader import Leader

stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
api = config.new_client_from_config(sys.argv[1])
leader = Leader(api, "default", sys.argv[2], sys.argv[3], stop.set, lambda: 0)
if leader.acquire(stop):
    with leader:
        print("leads", leader.epoch, flush=True)
        stop.wait()
"""


@pytest.fixture
def kubeconfig(api: Api, tmp_path: Path) -> Path:
    return api.access.kubeconfig(tmp_path / "kubeconfig")


@pytest.fixture
def cluster(kubeconfig: Path) -> Iterator[client.ApiClient]:
    with config.new_client_from_config(str(kubeconfig)) as found:
        yield found


def candidate(
    cluster: client.ApiClient,
    lease: str,
    name: str,
    lost: Callable[[], None] = lambda: None,
    epoch_seen: int = 0,
) -> Leader:
    return Leader(cluster, "default", lease, name, lost, lambda: epoch_seen, QUICK)


def test_one_leads_and_the_next_one_follows_at_once_when_it_gives_the_lease_back(
    cluster: client.ApiClient,
) -> None:
    first, second = (candidate(cluster, "handed-over", name) for name in "ab")
    leads, stop = threading.Event(), threading.Event()

    def wait() -> None:
        if second.acquire(stop):
            leads.set()

    waiting = threading.Thread(target=wait)
    assert first.acquire(stop)
    with first:
        waiting.start()
        assert not leads.wait(2 * QUICK.duration_s)
        assert first.epoch == 1
    assert leads.wait(QUICK.duration_s)
    waiting.join()
    assert second.epoch == 2
    with second:
        pass
    with pytest.raises(RuntimeError, match="does not lead"):
        _ = second.epoch


def test_a_deposed_leader_is_told(cluster: client.ApiClient) -> None:
    lost = threading.Event()
    leader = candidate(cluster, "deposed", "a", lost.set)
    leases = client.CoordinationV1Api(cluster)
    assert leader.acquire(threading.Event())
    with leader:
        usurper = {"spec": {"holderIdentity": "b", "leaseTransitions": 2}}
        leases.patch_namespaced_lease("deposed", "default", usurper)
        assert lost.wait(QUICK.duration_s)
    assert leases.read_namespaced_lease("deposed", "default").spec.holder_identity == "b"


def test_a_lease_that_somebody_labels_is_kept(cluster: client.ApiClient) -> None:
    lost = threading.Event()
    leader = candidate(cluster, "labelled", "a", lost.set)
    leases = client.CoordinationV1Api(cluster)
    assert leader.acquire(threading.Event())
    with leader:
        label = {"metadata": {"labels": {"team": "vision"}}}
        leases.patch_namespaced_lease("labelled", "default", label)
        assert not lost.wait(2 * QUICK.duration_s)
        assert leader.epoch == 1


def test_a_deleted_lease_is_written_again_by_its_leader(cluster: client.ApiClient) -> None:
    lost = threading.Event()
    leader = candidate(cluster, "deleted", "a", lost.set)
    leases = client.CoordinationV1Api(cluster)
    assert leader.acquire(threading.Event())
    with leader:
        leases.delete_namespaced_lease("deleted", "default")
        assert not lost.wait(QUICK.duration_s)
        assert leases.read_namespaced_lease("deleted", "default").spec.holder_identity == "a"


def test_a_new_lease_counts_on_from_what_was_written(cluster: client.ApiClient) -> None:
    leader = candidate(cluster, "counted-anew", "a", epoch_seen=7)
    assert leader.acquire(threading.Event())
    assert leader.epoch == 8


@pytest.mark.parametrize(("how", "within_s"), [(signal.SIGTERM, 5.0), (signal.SIGKILL, 30.0)])
def test_another_operator_takes_over(
    api: Api, kubeconfig: Path, how: signal.Signals, within_s: float
) -> None:
    """The bounds are promises to users, with the timing that is served."""
    said: queue.Queue[tuple[str, str]] = queue.Queue()
    operators = {
        name: operator(kubeconfig, f"ended-by-{how.name.lower()}", name, said) for name in "ab"
    }
    try:
        leader, words = said.get(timeout=30)
        assert words == "leads 1"
        operators[leader].send_signal(how)
        follower, words = said.get(timeout=within_s)
        assert (follower == leader, words) == (False, "leads 2")
    finally:
        for each in operators.values():
            each.kill()
            each.wait(10)


def operator(
    kubeconfig: Path, lease: str, name: str, said: queue.Queue[tuple[str, str]]
) -> subprocess.Popen[str]:
    """A process that wants to lead; what it says comes into ``said``."""
    running = subprocess.Popen(
        [sys.executable, "-c", CANDIDATE, str(kubeconfig), lease, name],
        stdout=subprocess.PIPE,
        text=True,
    )

    def listen() -> None:
        assert running.stdout is not None
        with running.stdout as lines:
            for line in lines:
                said.put((name, line.strip()))

    threading.Thread(target=listen).start()
    return running
