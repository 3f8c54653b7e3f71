"""300 nodes of eight GPUs and 300 services: what the operator writes, how long it takes, and what it costs.

Times are reported, not asserted: they are this machine's, which also runs everything around the operator. What is
asserted is the same on every machine: nothing is written in vain, and memory is bounded.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bench.harness import machine
from e2e.native.processes import wait_until
from e2e.scale import fleet
from e2e.scale.audit import Write, in_vain
from e2e.scale.site import Site, site

pytestmark = pytest.mark.timeout(1800)

NODES = SERVICES = 300
CHANGES = 30
IDLE_S = 60.0
MEMORY_MIB = 500
_RESULTS = Path(__file__).parents[2] / "bench" / "results" / "operator-scale.json"
_SETTLED_S = 300.0
_QUIET_S = 10.0
_LOOK_S = 1.5

Figures = dict[str, Any]


@pytest.fixture(scope="module")
def figures() -> Iterator[Figures]:
    """What was measured; printed and written when all is done."""
    found: Figures = {}
    yield found
    document = {
        "benchmark": "operator-scale",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "method": {"nodes": NODES, "gpus_per_node": 8, "services": SERVICES, "changes": CHANGES},
        **found,
    }
    _RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(found, indent=1))


@pytest.fixture(scope="module")
def settled(
    binaries: Path, tmp_path_factory: pytest.TempPathFactory, figures: Figures
) -> Iterator[Site]:
    """300 nodes in a pool, then all services applied at once, and everything carried out."""
    with site(binaries, tmp_path_factory.mktemp("scale"), NODES) as running:
        start_s = time.monotonic()
        _apply(running, [fleet.pool(NODES), *fleet.profiles()])
        reached = {"nodes_s": lambda: _count(running.nodes(), _has_devices) == NODES}
        figures["pool"] = _milestones(start_s, reached)
        wait_until(lambda: _is_settled(running), _SETTLED_S, "the pool is settled")
        start_s, mark, cpu_s = time.monotonic(), running.log.end(), running.cpu_s()
        _apply(running, fleet.services(SERVICES))
        figures["services"] = {
            "applied_s": round(time.monotonic() - start_s, 1),
            **_milestones(
                start_s,
                {
                    "planned_s": lambda: _count(running.services(), _is("Planned")) == SERVICES,
                    "ready_s": lambda: _count(running.services(), _is("Ready")) == SERVICES,
                    "settled_s": lambda: _is_settled(running),
                },
            ),
            "operator_cpu_s": round(running.cpu_s() - cpu_s, 1),
            "gpus_used": len(_used(running.nodes())),
            "plans": len(running.plans()),
            "writes": _by_kind(running.log.since(mark)),
        }
        yield running
        figures["memory_mib"] = running.memory_mib()


def test_everything_is_planned_and_runs(settled: Site) -> None:
    services, nodes = settled.services(), settled.nodes()

    assert _count(services, _is("Ready")) == SERVICES
    assert len(nodes) == NODES
    assert len(_used(nodes)) > NODES * 8 / 2


def test_no_write_leaves_an_object_as_it_was(settled: Site) -> None:
    writes = settled.log.since(0)

    assert [each for each in writes if each.code >= 400] == []
    assert list(in_vain(writes)) == []


def test_nothing_is_written_while_nodes_only_give_signs_of_life(
    settled: Site, figures: Figures
) -> None:
    wait_until(lambda: _is_quiet(settled), _SETTLED_S, "quiet")
    mark, cpu_s = settled.log.end(), settled.cpu_s()
    time.sleep(IDLE_S)  # what is looked at is a length of time
    figures["idle"] = {
        "seconds": IDLE_S,
        "writes": len(settled.log.since(mark)),
        "cpu_percent": round(100 * (settled.cpu_s() - cpu_s) / IDLE_S, 2),
    }

    assert settled.log.since(mark) == ()


def test_a_change_of_one_service_writes_what_it_changes(settled: Site, figures: Figures) -> None:
    changes = []
    seconds = []
    for service in settled.services()[:: SERVICES // CHANGES]:
        mark, start_s, wall_s = settled.log.end(), time.monotonic(), time.time()
        planned = partial(_is_planned, settled, _faster(settled, service))
        wait_until(planned, _SETTLED_S, "planned")
        seconds.append(round(time.monotonic() - start_s, 3))
        wait_until(lambda: _is_settled(settled), _SETTLED_S, "carried out")
        writes = settled.log.since(mark)
        changes.append(
            {
                "planned_s": seconds[-1],
                "first_plan_s": _first_s(writes, "placementplans", wall_s),
                "first_node_s": _first_s(writes, "runtimenodes", wall_s),
                "writes": len(writes),
                "objects": len({each.target for each in writes}),
            }
        )
        assert list(in_vain(writes)) == []
        reported = {each.target for each in writes if each.target[0] == "modelservices"}
        assert len(reported) < SERVICES / 10, "services that have nothing to do with the change"
    figures["change"] = {
        "planned_p50_s": statistics.median(seconds),
        "planned_p95_s": statistics.quantiles(seconds, n=20, method="inclusive")[-1],
        "planned_max_s": max(seconds),
        "each": changes,
    }


def test_memory_is_bounded(settled: Site) -> None:
    assert settled.memory_mib()["peak"] < MEMORY_MIB


def test_a_new_leader_writes_every_node_once(settled: Site, figures: Figures) -> None:
    old = _least_epoch(settled)
    settled.stop_operator()
    mark, start = settled.log.end(), time.monotonic()
    settled.start_operator()
    wait_until(lambda: _least_epoch(settled) > old, _SETTLED_S, "all nodes are of the new leader")
    took_s = time.monotonic() - start
    wait_until(lambda: _is_settled(settled), _SETTLED_S, "carried out")
    writes = settled.log.since(mark)
    figures["takeover"] = {"all_nodes_s": round(took_s, 1), "writes": len(writes)}

    changed = Counter(each.target for each in writes)
    kinds = {target[:2] for target in changed}
    assert kinds <= {("runtimenodes", ""), ("modelservices", "status"), ("deployments", "")}
    assert max(count for target, count in changed.items() if target[0] == "runtimenodes") == 1


def test_counters_write_nothing_but_the_status_of_services(settled: Site, figures: Figures) -> None:
    settled.start_traffic()
    time.sleep(IDLE_S)  # until all counters have moved
    mark, cpu_s = settled.log.end(), settled.cpu_s()
    time.sleep(IDLE_S)
    writes = settled.log.since(mark)
    figures["traffic"] = {
        "seconds": IDLE_S,
        "writes": len(writes),
        "cpu_percent": round(100 * (settled.cpu_s() - cpu_s) / IDLE_S, 2),
    }

    assert {each.target[:2] for each in writes} == {("modelservices", "status")}
    assert max(Counter(each.target for each in writes).values()) <= 2


def _apply(site: Site, documents: Iterable[dict[str, Any]]) -> None:
    for document in documents:
        site.api.apply(document)
        if "status" in document:
            site.api.apply(document, "status")


def _milestones(start_s: float, reached: dict[str, Callable[[], bool]]) -> dict[str, float]:
    """Seconds from ``start_s`` to each."""
    found = {}
    for name, holds in reached.items():
        deadline = time.monotonic() + _SETTLED_S
        while not holds():
            assert time.monotonic() < deadline, f"{name}: not within {_SETTLED_S} s"
            time.sleep(_LOOK_S)  # a look is a list of all, which the server must not be busy with
        found[name] = round(time.monotonic() - start_s, 1)
    return found


def _count(documents: Iterable[dict[str, Any]], holds: Callable[[dict[str, Any]], bool]) -> int:
    return sum(map(holds, documents))


def _has_devices(node: dict[str, Any]) -> bool:
    return bool(node.get("status", {}).get("devices"))


def _is(condition: str) -> Callable[[dict[str, Any]], bool]:
    def holds(document: dict[str, Any]) -> bool:
        return _condition(document, condition) == "True"

    return holds


def _condition(document: dict[str, Any], kind: str) -> str:
    found = document.get("status", {}).get("conditions", ())
    return next((each["status"] for each in found if each["type"] == kind), "")


def _is_settled(site: Site) -> bool:
    """Whether every plan is done and every agent has taken its orders over, and no further plan follows."""
    looks = []
    for _ in range(2):
        plans = site.plans()
        if any(_is_open(each) for each in plans):
            return False
        looks.append({each["metadata"]["name"] for each in plans})
        time.sleep(_LOOK_S)  # a plan is tidied up after by another one in the next round
    taken = all(
        each["metadata"]["generation"] == each.get("status", {}).get("observedGeneration")
        for each in site.nodes()
    )
    progressing = any(_is("Progressing")(each) for each in site.services())
    return looks[0] == looks[1] and taken and not progressing


def _is_open(plan: dict[str, Any]) -> bool:
    return not (_is("Applied")(plan) or _is("Superseded")(plan))


def _is_quiet(site: Site) -> bool:
    """Whether the operator has written nothing for a while."""
    mark = site.log.end()
    time.sleep(_QUIET_S)
    return site.log.end() == mark


def _is_planned(site: Site, changed: dict[str, Any]) -> bool:
    found = site.api.read(changed)
    observed = found.get("status", {}).get("observedGeneration")
    return observed == changed["metadata"]["generation"] and _is("Planned")(found)


def _faster(site: Site, service: dict[str, Any]) -> dict[str, Any]:
    """``service`` with a third more requests."""
    rate = 1.3 * float(service["spec"]["traffic"]["requestsPerSecond"])
    change = {"spec": {"traffic": {"requestsPerSecond": f"{rate:g}"}}}
    return site.api.merge(service, change)


def _used(nodes: Iterable[dict[str, Any]]) -> set[str]:
    return {
        device["uuid"]
        for node in nodes
        for device in node["spec"].get("devices", ())
        if device.get("instances")
    }


def _least_epoch(site: Site) -> int:
    return min(int(each["spec"]["epoch"]) for each in site.nodes())


def _by_kind(writes: Iterable[Write]) -> Figures:
    """How many writes, to how many objects, and how many to one object at most."""
    by_object = Counter(each.target for each in writes)
    found: dict[str, list[int]] = {}
    for (resource, subresource, _, _), count in sorted(by_object.items()):
        found.setdefault("/".join(filter(None, (resource, subresource))), []).append(count)
    return {
        kind: {"writes": sum(counts), "objects": len(counts), "most_of_one": max(counts)}
        for kind, counts in found.items()
    }


def _first_s(writes: Iterable[Write], resource: str, since_s: float) -> float | None:
    found = [each.at_s for each in writes if each.target[:2] == (resource, "")]
    return round(min(found) - since_s, 3) if found else None
