"""Who answers, and who passes work on to whom: the best there is rather than nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.objects import counters, gpu, instance, node, ready, seen, service
from tessera_core.api import RuntimeNode
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.runtimenode import Route
from tessera_operator.routes import (
    MOST_ENDPOINTS,
    MOST_PEERS,
    Home,
    endpoints,
    homes_of,
    is_leaving,
    peers,
    served_status,
    service_document,
    slice_document,
    url_of,
)

S = "vision.s"


def runs(name: str, *, is_ready: bool = True, answers: bool = True, **rest: Any) -> RuntimeNode:
    """A node with a copy of vision.s/m, whose server answers for the service."""
    copy = seen(instance(), 1 if is_ready else 0)
    made = node(name, gpu(f"GPU-{name}", copy), **rest)
    return replace(made, status=replace(made.status, services=(counters(S, ready=answers),)))


def orders(nodes: Sequence[RuntimeNode]) -> dict[str, Any]:
    return {each.metadata.name: each.spec.devices for each in nodes}


def homes(nodes: Sequence[RuntimeNode], unsure: Sequence[str] = ()) -> list[str]:
    found = homes_of(nodes, orders(nodes), unsure, {}).get((S, "m"), ())
    return [each.node for each in found]


def test_a_member_is_at_home_where_it_is_ready_and_stays() -> None:
    stays, loads = runs("n0"), runs("n1", is_ready=False)
    leaves = runs("n2", told={})
    moved = runs("n3", told={"GPU-n3": [instance(piece="1g.10gb@0")]})
    assert homes([stays, loads, leaves, moved]) == ["n0"]


def test_a_node_that_leaves_or_is_lost_is_a_home_only_where_there_is_no_other() -> None:
    nodes = [runs("n0"), runs("n1")]
    assert homes(nodes, ["n0"]) == ["n1"]
    assert homes(nodes, ["n0", "n1"]) == ["n0", "n1"]


def test_a_home_is_reached_at_its_grpc_port_and_has_its_capacity() -> None:
    nodes = [
        runs("n0", address="10.1.2.3"),
        runs("n1", address="fd00::7"),
        runs("n2", address=None),
    ]
    found = homes_of(nodes, orders(nodes), (), {("n0", S, "m"): 123.9})
    assert found == {(S, "m"): (Home("n0", "10.1.2.3:8001", 123), Home("n1", "[fd00::7]:8001", 0))}


@given(st.sets(st.integers(0, 99), max_size=60), st.integers(0, 99))
def test_every_home_is_somebodys_peer_and_nobody_has_too_many(
    numbers: set[int], router: int
) -> None:
    found = [Home(f"n{number:02}", f"10.0.0.{number}:8001", 5) for number in sorted(numbers)]
    told = {home.node: peers(found, home.node) for home in found}
    named = Counter(route.node for routes in told.values() for route in routes)
    for node_name, routes in told.items():
        names = [route.node for route in routes]
        assert node_name not in names
        assert len(names) == min(MOST_PEERS, len(found) - 1)
        assert names == sorted(set(names))
    # In a ring, all have the same share.
    assert set(named.values()) <= {min(MOST_PEERS, len(found) - 1)}
    assert len(found) < 2 or set(named) == {home.node for home in found}
    # A node that only passes requests on reaches homes too.
    assert bool(peers(found, f"n{router:02}x")) is bool(found)


def test_a_peer_is_told_with_its_address_and_capacity() -> None:
    assert peers([Home("n0", "10.0.0.1:8001", 7)], "n1") == (Route("n0", "10.0.0.1:8001", 7),)


@pytest.mark.parametrize(
    ("nodes", "unsure", "found"),
    [
        ("run run", "", "01"),
        ("run pass", "", "0"),
        ("run run", "1", "0"),
        ("pass pass", "", "01"),
        ("run pass", "0", "1"),
        ("run run", "01", "01"),
        ("run pass", "01", "01"),
        ("load pass", "", "1"),
        ("load load", "", ""),
        ("none run", "", "1"),
    ],
)
def test_clients_are_sent_to_the_best_that_answer(nodes: str, unsure: str, found: str) -> None:
    """``run``: has a copy that stays; ``pass``: passes requests on; ``load``: does not answer yet."""
    made = []
    for index, sort in enumerate(nodes.split()):
        name = f"n{index}"
        made.append(
            node(name)
            if sort == "none"
            else runs(name, answers=sort != "load", **({"told": {}} if sort == "pass" else {}))
        )
    got = endpoints(S, made, orders(made), [f"n{each}" for each in unsure])
    assert got == tuple(f"10.0.0.{each}" for each in found)


def test_a_pod_without_an_address_gets_no_clients() -> None:
    found = runs("n0", address=None)
    assert endpoints(S, [found], orders([found]), ()) == ()


def test_there_are_no_more_endpoints_than_a_slice_holds() -> None:
    nodes = [
        runs(f"n{index}", address=f"10.0.{index // 250}.{index % 250}") for index in range(1005)
    ]
    assert len(endpoints(S, nodes, orders(nodes), ())) == MOST_ENDPOINTS


@pytest.mark.parametrize(
    ("condition", "leaves"),
    [
        ((), False),
        ((ready(ConditionStatus.TRUE, "Serving"),), False),
        ((ready(ConditionStatus.FALSE, "Starting"),), False),
        ((ready(ConditionStatus.FALSE, "Draining"),), True),
        ((ready(ConditionStatus.UNKNOWN, "Draining"),), True),
    ],
)
def test_a_node_leaves_when_it_says_that_it_drains(condition: Any, leaves: bool) -> None:
    assert is_leaving(node("n0", conditions=condition)) is leaves


def test_what_a_node_says_of_another_service_is_not_about_this_one() -> None:
    found = runs("n0")
    assert served_status(found, "vision.other") is None
    status = served_status(found, S)
    assert status is not None
    assert status.ready


def test_the_service_has_no_selector_and_goes_with_its_modelservice() -> None:
    found = service_document(service("s"))
    assert found["metadata"]["name"] == "s"
    assert found["metadata"]["namespace"] == "vision"
    (owner,) = found["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("ModelService", "uid-s", True)
    assert "selector" not in found["spec"]
    ports = {each["name"]: (each["port"], each["targetPort"]) for each in found["spec"]["ports"]}
    assert ports == {"http": (80, 8000), "grpc": (8001, 8001)}
    assert url_of(service("s")) == "http://s.vision.svc"


@pytest.mark.parametrize(
    ("addresses", "kind"), [((), "IPv4"), (("10.0.0.1",), "IPv4"), (("fd00::1",), "IPv6")]
)
def test_the_slice_belongs_to_the_service_and_holds_the_addresses(
    addresses: tuple[str, ...], kind: str
) -> None:
    found = slice_document(service("s"), addresses)
    labels = found["metadata"]["labels"]
    assert labels["kubernetes.io/service-name"] == "s"
    assert labels["endpointslice.kubernetes.io/managed-by"] == "tessera"
    assert found["addressType"] == kind
    assert [each["addresses"] for each in found["endpoints"]] == [[each] for each in addresses]
    assert {each["name"]: each["port"] for each in found["ports"]} == {"http": 8000, "grpc": 8001}


def test_a_slice_says_the_same_in_whatever_order_nodes_are_looked_at() -> None:
    nodes = [runs("n0"), runs("n1"), runs("n2")]
    one, other = (endpoints(S, each, orders(nodes), ()) for each in (nodes, nodes[::-1]))
    assert slice_document(service("s"), one) == slice_document(service("s"), other)
