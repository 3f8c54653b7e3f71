"""A service falls asleep only where somebody holds its requests: clients are sent to an address all the time."""

from __future__ import annotations

import pytest

from support.memory_operator import SERVICE, Operator, profile
from support.objects import NOW, pool, service

IDLE_S = 100.0
SLEEPY = {"minReplicas": 0, "idleTimeout": f"{IDLE_S:.0f}s"}
ACTIVATOR = "tessera-activator-x"


def awake(scaling: dict[str, object], *activators: str) -> Operator:
    """An operator whose service runs, and whose activators were told of it and have not yet taken it over."""
    wanted = service("s", "a", rps=10, scaling=scaling)
    operator = Operator(
        pool("p", size={"min": 1, "max": 1}).to_dict(), profile("a"), wanted.to_dict(), nodes=1
    )
    for each in activators:
        operator.join_activator(each)
        operator.deaf.add(each)
    operator.rounds(8)
    assert operator.running() == {"n0"}
    return operator


def test_a_service_is_awake_until_an_activator_holds_its_requests() -> None:
    operator = awake(SLEEPY, ACTIVATOR)
    operator.rounds(5, seconds=IDLE_S)
    assert operator.running() == {"n0"}
    operator.deaf.clear()
    for _ in range(10):
        operator.rounds(1)
        assert operator.endpoints()
    assert operator.running() == set()
    assert operator.endpoints() == {f"address-of-{ACTIVATOR}"}


def test_one_that_may_sleep_from_now_on_waits_for_an_activator_that_knows_of_it() -> None:
    operator = awake({"minReplicas": 1, "idleTimeout": f"{IDLE_S:.0f}s"}, ACTIVATOR)
    operator.rounds(3, seconds=IDLE_S)
    operator.cluster.objects[SERVICE]["spec"]["scaling"]["minReplicas"] = 0
    operator.rounds(5)
    assert operator.running() == {"n0"}
    operator.deaf.clear()
    for _ in range(10):
        operator.rounds(1)
        assert operator.endpoints()
    assert operator.running() == set()


def test_without_activators_a_service_does_not_sleep() -> None:
    operator = awake(SLEEPY)
    operator.rounds(5, seconds=IDLE_S)
    assert operator.running() == {"n0"}
    assert operator.endpoints() == {"10.0.0.0"}


@pytest.mark.parametrize("restarted", [False, True])
def test_one_that_sleeps_is_not_woken_when_its_activators_are_replaced(restarted: bool) -> None:
    operator = awake(SLEEPY, ACTIVATOR)
    operator.deaf.clear()
    operator.rounds(10, seconds=IDLE_S)
    assert operator.running() == set()
    del operator.cluster.objects["Pod", "tessera-system", ACTIVATOR]
    if restarted:
        operator.restart()
    operator.rounds(3)
    assert operator.running() == operator.endpoints() == set()
    operator.join_activator("tessera-activator-y")
    operator.rounds(5)
    assert operator.running() == set()
    assert operator.endpoints() == {"address-of-tessera-activator-y"}


def test_clients_are_sent_to_an_activator_that_stays() -> None:
    operator = awake(SLEEPY, ACTIVATOR, "tessera-activator-y")
    operator.deaf.clear()
    operator.rounds(10, seconds=IDLE_S)
    assert len(operator.endpoints()) == 2
    ending = operator.cluster.objects["Pod", "tessera-system", ACTIVATOR]
    ending["metadata"]["deletionTimestamp"] = NOW
    operator.rounds(1)
    assert operator.endpoints() == {"address-of-tessera-activator-y"}
