"""What probes and Prometheus are told."""

from __future__ import annotations

import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from support.clusters import gpu_node
from tessera_core.plan import ClusterState, PoolRules
from tessera_operator import health as module
from tessera_operator.costs import Meter
from tessera_operator.health import STUCK_S, Health


@pytest.fixture
def health() -> Iterator[Health]:
    made = Health(0)
    made.start()
    yield made
    made.stop()


def get(of: Health, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{of.port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_one_that_waits_for_the_lease_is_well_and_ready(health: Health) -> None:
    assert get(health, "/healthz") == (200, "ok\n")
    assert get(health, "/readyz") == (200, "ok\n")
    assert "tessera_operator_leader 0.0" in get(health, "/metrics")[1]


def test_a_leader_is_well_while_its_rounds_end(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    health.leads()
    now_s[0] += STUCK_S - 1
    assert health.is_well
    now_s[0] += 1
    assert not health.is_well
    health.round_ended(0.2, 0)
    assert health.is_well


def test_a_leader_that_is_stuck_fails_its_probe(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    health.leads()
    monkeypatch.setattr(module, "STUCK_S", -1.0)
    assert get(health, "/healthz") == (503, "stuck\n")


def test_rounds_and_failed_writes_are_counted(health: Health) -> None:
    health.leads()
    health.round_ended(0.02, 0)
    health.round_ended(2.0, 3)
    status, text = get(health, "/metrics")
    assert status == 200
    lines = text.splitlines()
    assert "tessera_operator_leader 1.0" in lines
    assert "tessera_operator_plan_seconds_count 2.0" in lines
    assert 'tessera_operator_plan_seconds_bucket{le="0.03"} 1.0' in lines
    assert "tessera_operator_apply_errors_total 3.0" in lines


def test_what_services_cost_is_among_the_metrics(health: Health) -> None:
    meter = Meter()
    health.show(meter)
    pools = (PoolRules("p", cost_per_node_hour=2.5),)
    meter.note(ClusterState(nodes=(gpu_node("n"),), pools=pools), [], 0.0)
    lines = get(health, "/metrics")[1].splitlines()
    assert 'tessera_idle_cost_per_hour{of="nodes",pool="p"} 2.5' in lines


def test_other_paths_say_what_there_is(health: Health) -> None:
    status, text = get(health, "/")
    assert status == 404
    assert "/metrics" in text


class Scraped(Collector):
    """Does something in the middle of an answer, once it is told to."""

    def __init__(self, does: Callable[[], None]) -> None:
        self.thread: threading.Thread | None = None
        self.asked, self.go_on = threading.Event(), threading.Event()
        self._does = does

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        self.thread = threading.current_thread()
        self.asked.set()
        assert self.go_on.wait(30)
        self._does()
        return iter(())


def hang_up_on(health: Health, scraped: Scraped) -> None:
    """While it makes an answer, which it then has nobody for."""
    health.show(scraped)
    with socket.create_connection(("127.0.0.1", health.port), 30) as caller:
        # Closed at once, with a reset.
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        caller.sendall(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
        assert scraped.asked.wait(30)
    scraped.go_on.set()
    assert scraped.thread is not None
    scraped.thread.join(30)
    assert not scraped.thread.is_alive()


def test_a_caller_that_hangs_up_is_nothing_to_log(
    health: Health, capsys: pytest.CaptureFixture[str]
) -> None:
    hang_up_on(health, Scraped(lambda: None))
    assert capsys.readouterr() == ("", "")


def test_an_answer_that_fails_is_logged(health: Health, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError("no metrics")

    hang_up_on(health, Scraped(fail))
    assert "RuntimeError: no metrics" in capsys.readouterr().err


def test_devices_are_counted_as_they_are_now(health: Health) -> None:
    health.devices({("p", "Healthy"): 7, ("p", "Unhealthy"): 1})
    assert 'tessera_devices{health="Unhealthy",pool="p"} 1.0' in get(health, "/metrics")[1]
    health.devices({("p", "Healthy"): 8})
    told = get(health, "/metrics")[1]
    assert 'tessera_devices{health="Healthy",pool="p"} 8.0' in told
    assert "Unhealthy" not in told
