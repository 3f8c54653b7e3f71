"""Rounds in which nodes go: emptied pods by their names, departures announced by taints, and who is protected."""

from __future__ import annotations

import pytest

from support.memory_operator import SERVICE, Operator, profile, started
from support.objects import NOW, pool, service
from tessera_operator.departures import NOTICES, Notice
from tessera_operator.pools import PROTECTED

SIZE = {"min": 0, "max": 9, "scaleDownDelay": "20s"}


def pods(operator: Operator) -> set[str]:
    return {key[2] for key in operator.cluster.objects if key[0] == "Pod"}


def marks(operator: Operator, node: str) -> dict[str, str]:
    found = operator.cluster.objects["Pod", "tessera-system", f"pod-{node}"]["metadata"]
    return dict(found.get("annotations") or {})


def taint(operator: Operator, node: str, key: str) -> None:
    taints = [{"key": key, "effect": "NoSchedule"}]
    operator.cluster.objects["Node", "", node]["spec"] = {"taints": taints}


def rate(operator: Operator, rps: float) -> None:
    spec = operator.cluster.objects[SERVICE]["spec"]
    spec["traffic"]["requestsPerSecond"] = f"{rps:g}"
    operator.cluster.objects[SERVICE]["metadata"]["generation"] += 1


def test_pods_in_use_are_protected_and_idle_ones_are_not() -> None:
    operator = started(2)
    (used,) = operator.running()
    (idle,) = {"n0", "n1"} - {used}
    assert PROTECTED.items() <= marks(operator, used).items()
    assert "karpenter.sh/do-not-disrupt" not in marks(operator, idle)
    assert marks(operator, idle)["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "true"


def test_a_node_that_is_measured_on_is_protected() -> None:
    operator = Operator(
        pool("p", size=SIZE).to_dict(), service("s", "a", rps=100).to_dict(), nodes=1
    )
    operator.rounds(3)
    assert [each.spec.profiling != () for each in operator.nodes()] == [True]
    assert PROTECTED.items() <= marks(operator, "n0").items()


def test_the_emptied_node_goes_by_its_name_after_the_delay_and_no_other() -> None:
    operator = started(3, rps=6_000, size=SIZE)
    assert len(operator.running()) == 2
    rate(operator, 100)
    operator.rounds(15)
    (kept,) = operator.running()
    assert len(pods(operator)) == operator.replicas() == 2  # the third was idle for long enough
    for _ in range(120):
        operator.rounds(1)
        assert f"pod-{kept}" in pods(operator)
        assert operator.replicas() >= len(pods(operator))
    assert pods(operator) == {f"pod-{kept}"}
    assert operator.replicas() == 1


def test_a_pod_is_deleted_before_the_number_is_lowered() -> None:
    operator = started(2, size=SIZE)
    operator.rounds(30)
    writes = [(verb, key[0]) for verb, key in operator.cluster.calls]
    deleted = writes.index(("delete", "Pod"))
    assert ("apply", "Deployment") in writes[deleted:]
    assert operator.replicas() == len(pods(operator)) == 1


def test_idle_nodes_stay_while_they_may_be_needed_again() -> None:
    operator = started(2, size={**SIZE, "scaleDownDelay": "1h"})
    operator.rounds(60)
    assert (operator.replicas(), len(pods(operator))) == (2, 2)


@pytest.mark.parametrize("notice", NOTICES, ids=lambda notice: notice.key)
def test_what_runs_on_a_node_that_will_go_moves_first(notice: Notice) -> None:
    operator = started(2, size=SIZE)
    (used,) = operator.running()
    (other,) = {"n0", "n1"} - {used}
    taint(operator, used, notice.key)
    for _ in range(6):
        operator.rounds(1)
        assert operator.running() & {f"n{each}" for each in range(2)}, "never without a copy"
    assert operator.running() == {other}
    operator.rounds(60)
    assert pods(operator) == {f"pod-{other}"}


def test_a_node_that_will_go_serves_until_there_is_room_elsewhere() -> None:
    operator = started(1, size={**SIZE, "max": 1})
    taint(operator, "n0", "karpenter.sh/disrupted")
    operator.rounds(40)
    assert operator.running() == {"n0"}
    assert PROTECTED.items() <= marks(operator, "n0").items()
    assert operator.replicas() == 2  # its successor, beyond the maximum for as long as it is here
    operator.join("n5")
    operator.rounds(8)
    assert operator.running() == {"n5"}
    operator.rounds(80)
    assert pods(operator) == {"pod-n5"}
    assert operator.replicas() == 1


def test_a_node_whose_machine_is_being_deleted_is_left() -> None:
    operator = started(2, size=SIZE)
    (used,) = operator.running()
    operator.cluster.objects["Node", "", used]["metadata"]["deletionTimestamp"] = NOW
    operator.rounds(6)
    assert used not in operator.running()
    assert operator.running()


def test_a_node_that_will_go_before_it_said_what_it_has_goes_at_once() -> None:
    operator = started(1, size=SIZE)
    operator.join("n7")
    found = operator.cluster.objects["RuntimeNode", "", "n7"]
    found["status"] = {**found["status"], "devices": []}
    taint(operator, "n7", "karpenter.sh/disrupted")
    operator.rounds(2)
    assert pods(operator) == {"pod-n0"}


def test_a_cordon_that_is_taken_back_makes_the_node_a_place_again() -> None:
    operator = started(1, size={"min": 1, "max": 1})
    taint(operator, "n0", "node.kubernetes.io/unschedulable")
    operator.rounds(5)
    operator.cluster.objects["Node", "", "n0"]["spec"] = {}
    operator.rounds(5)
    assert operator.running() == {"n0"}
    assert operator.replicas() == 1


def test_other_taints_move_nothing() -> None:
    operator = started(2)
    before = operator.running()
    for name in before:
        taint(operator, name, "example.com/dedicated")
    operator.rounds(5)
    assert operator.running() == before


def test_the_pool_says_that_it_grows_and_that_it_cannot() -> None:
    def scaling(operator: Operator) -> tuple[str, str]:
        found = operator.cluster.objects["RuntimePool", "", "p"]["status"]["conditions"]
        (each,) = (each for each in found if each["type"] == "Scaling")
        return each["status"], each["reason"]

    operator = started(1, size=SIZE)
    assert scaling(operator) == ("False", "Steady")
    rate(operator, 12_000)
    operator.rounds(3)
    assert scaling(operator) == ("True", "Growing")
    full = started(1, rps=12_000, size={"min": 0, "max": 1})
    assert scaling(full) == ("False", "AtMaximum")


def test_a_pool_that_is_no_good_for_a_service_is_tried_once_and_not_again_and_again() -> None:
    """Its devices are of another product than the service wants."""
    wanted = service("s", "a", rps=100, placement={"products": ["NVIDIA-L4"]})
    operator = Operator(pool("p", size=SIZE).to_dict(), profile("a"), wanted.to_dict(), nodes=0)
    operator.rounds(2)
    assert operator.replicas() == 1
    operator.join("n0")
    operator.rounds(60)
    assert (operator.replicas(), pods(operator)) == (0, set())
    operator.rounds(60)
    assert operator.replicas() == 0


def test_a_node_whose_gpus_must_not_be_used_is_none_of_those_that_are_missing() -> None:
    operator = started(1, size=SIZE)
    status = operator.cluster.objects["RuntimeNode", "", "n0"]["status"]
    for device in status["devices"]:
        device["health"] = "Unhealthy"
    operator.rounds(5)
    assert operator.replicas() == 2
    operator.join("n1")
    operator.rounds(10)
    assert "n1" in operator.running()
    assert operator.replicas() <= 2
