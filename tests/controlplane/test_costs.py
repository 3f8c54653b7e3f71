"""What Prometheus is told of costs: hours and money since the start, the present rates, nothing of who is long gone."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from support.clusters import cpu_node, gpu_node
from support.memory_operator import started
from tessera_core.plan import ClusterState, NodeState, PoolRules, Running, Slice
from tessera_operator.costs import KEEP_S, Meter

POOL = PoolRules("p", shared_between_namespaces=True, cost_per_node_hour=8.0)
HOUR = 3600.0
A, B = "vision.a", "text.b"


def state(*nodes: NodeState, pools: tuple[PoolRules, ...] = (POOL,)) -> ClusterState:
    return ClusterState(nodes=nodes, pools=pools)


def node(*tenants: tuple[str, str]) -> NodeState:
    """One A100, its parts one after another."""
    made = gpu_node("n")
    running = tuple(
        Running(service, "m", Slice(piece, start), 4, 1)
        for start, (service, piece) in enumerate(tenants)
    )
    return replace(made, devices=(replace(made.devices[0], running=running),))


def told(meter: Meter) -> dict[str, float]:
    """By name and labels, as Prometheus reads them."""
    registry = CollectorRegistry()
    registry.register(meter)
    lines = generate_latest(registry).decode().splitlines()
    return {
        found[1]: float(found[2])
        for line in lines
        if (found := re.fullmatch(r"([^#].*) (\S+)", line)) is not None
    }


def of(service: str, *, profile: str = "", pool: str = "p") -> str:
    namespace = service.partition(".")[0]
    part = f'profile="{profile}",' if profile else ""
    return f'{{namespace="{namespace}",pool="{pool}",{part}service="{service}"}}'


def test_everybody_is_charged_for_what_he_held_since_the_round_before() -> None:
    meter = Meter()
    meter.note(state(node((A, "7g.80gb"))), [A, B], 100.0)
    meter.note(state(node((A, "3g.40gb"), (B, "4g.40gb"))), [A, B], 100.0 + HOUR / 2)
    meter.note(state(node()), [A, B], 100.0 + HOUR)
    meter.note(state(node()), [A, B], 100.0 + 2 * HOUR)
    found = told(meter)
    hours = "tessera_gpu_slice_hours_total"
    assert found[hours + of(A, profile="7g.80gb")] == pytest.approx(3.5)
    assert found[hours + of(A, profile="3g.40gb")] == pytest.approx(1.5)
    assert found[hours + of(B, profile="4g.40gb")] == pytest.approx(2.0)
    spent = [found["tessera_cost_total" + of(service)] for service in (A, B)]
    assert spent == pytest.approx([4 + 4 * 13 / 28, 4 * 15 / 28])
    assert found['tessera_idle_cost_total{pool="p"}'] == pytest.approx(8)
    assert sum(spent) + 8 == pytest.approx(16), "two hours of one node"


def test_the_first_round_charges_nothing_whatever_the_clock_says() -> None:
    meter = Meter()
    meter.note(state(node((A, "full"))), [A], 1e6)
    found = told(meter)
    assert found["tessera_cost_total" + of(A)] == 0
    assert found["tessera_cost_per_hour" + of(A)] == 8


def test_rates_are_the_present_ones_and_cores_are_no_slices() -> None:
    cores = cpu_node("m", cores=16, pool="c")
    held = Running(B, "m", Slice("cpu-4", 0, (0, 1, 2, 3)), 4, 1)
    cores = replace(cores, devices=(replace(cores.devices[0], running=(held,)),))
    pools = (POOL, replace(POOL, name="c", cost_per_node_hour=0.4))
    meter = Meter()
    meter.note(state(node((A, "2g.20gb")), cores, pools=pools), [A, B], 0.0)
    found = told(meter)
    assert found["tessera_gpu_slices" + of(A, profile="2g.20gb")] == 2
    assert found["tessera_cost_per_hour" + of(B, pool="c")] == pytest.approx(0.1)
    assert not [key for key in found if "slice" in key and B in key]
    idle = "tessera_idle_cost_per_hour"
    assert found[idle + '{of="parts",pool="p"}'] == pytest.approx(8 * (1 - 30 / 112))
    assert found[idle + '{of="parts",pool="c"}'] == pytest.approx(0.3)
    assert found[idle + '{of="nodes",pool="p"}'] == 0
    meter.note(state(node(), cores, pools=pools), [A, B], 1.0)
    found = told(meter)
    assert not [key for key in found if key.startswith("tessera_gpu_slices")]
    assert found[idle + '{of="nodes",pool="p"}'] == 8


def test_a_service_that_is_gone_is_shown_for_a_while_and_then_no_more() -> None:
    meter = Meter()
    meter.note(state(node((A, "full"))), [A], 0.0)
    meter.note(state(node()), [], HOUR)
    meter.note(state(node()), [], HOUR + KEEP_S - 1)
    assert told(meter)["tessera_cost_total" + of(A)] == pytest.approx(8)
    meter.note(state(node()), [], HOUR + KEEP_S)
    assert not [key for key in told(meter) if A in key]
    assert 'tessera_idle_cost_total{pool="p"}' in told(meter)
    meter.note(state(pools=()), [], 3 * HOUR)
    meter.note(state(pools=()), [], 3 * HOUR + KEEP_S)
    assert told(meter) == {}


def test_a_service_that_sleeps_keeps_what_it_has_cost() -> None:
    meter = Meter()
    meter.note(state(node((A, "full"))), [A], 0.0)
    for hour in range(1, 5):
        meter.note(state(node()), [A], hour * HOUR)
    assert told(meter)["tessera_cost_total" + of(A)] == pytest.approx(8)


def test_series_are_bounded_by_the_services_of_late() -> None:
    meter = Meter()
    for index in range(500):
        name = f"vision.s{index}"
        meter.note(state(node((name, "full"))), [name], index * KEEP_S)
    kept = [key for key in told(meter) if key.startswith("tessera_cost_total")]
    assert len(kept) <= 2


def test_the_operator_charges_what_its_nodes_hold() -> None:
    operator = started(2)
    before = told(operator.controller.meter)
    operator.rounds(36, seconds=100.0)
    after = told(operator.controller.meter)
    cost = "tessera_cost_total" + of("vision.s")
    assert after[cost] - before[cost] == pytest.approx(1.0), "a GPU of a pool without a price"
    key = "tessera_gpu_slice_hours_total" + of("vision.s", profile="full")
    assert after[key] - before[key] == pytest.approx(7.0)
    # The other GPU, and four cores on each node.
    assert after['tessera_idle_cost_total{pool="p"}'] - before[
        'tessera_idle_cost_total{pool="p"}'
    ] == pytest.approx(1 + 8 / 64)
