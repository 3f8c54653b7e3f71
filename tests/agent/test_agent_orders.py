"""Which orders are followed."""

from __future__ import annotations

from typing import Any

from tessera_runtime.agent.orders import judge


def served(name: str, **spec: Any) -> dict[str, Any]:
    whole = {
        "members": [{"name": "m", "model": {"uri": "https://m/m.onnx", "format": "ONNX"}}],
        "slo": {"objectives": [{"target": "50ms", "percent": "99"}]},
    }
    return {"name": name, "generation": 1, "spec": whole | spec}


def document(epoch: int = 4, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "RuntimeNode",
        "metadata": {"name": "n", "generation": 2},
        "spec": {"epoch": epoch, **spec},
        "status": {"devices": "of another version, and of no interest"},
    }


def test_an_order_of_the_same_or_a_later_leader_is_followed() -> None:
    for epoch in (4, 5):
        order = judge(document(epoch, services=[served("a.a")]), epoch=4)
        assert order.node is not None
        assert (order.reason, order.problems) == ("Accepted", {})


def test_an_order_of_a_deposed_leader_is_refused_with_both_numbers() -> None:
    order = judge(document(epoch=3), epoch=4)
    assert order.node is None
    assert order.reason == "EpochTooSmall"
    assert "found 3, 4 was carried out" in order.message


def test_what_cannot_be_read_is_refused_with_the_field() -> None:
    order = judge(document(devices=[{"uuid": "cpu", "instances": [{"service": 5}]}]), epoch=0)
    assert order.node is None
    assert order.reason == "Invalid"
    assert "spec.devices[0].instances[0].service" in order.message


def test_fields_of_a_newer_operator_are_none_of_the_agents_to_refuse() -> None:
    assert judge(document(somethingNew=1), epoch=0).node is not None


def test_one_service_that_cannot_be_read_is_left_out_alone() -> None:
    services = [served("a.a"), served("a.broken", slo={"objectives": []}), served("a.c")]
    candidates = [served("a.broken", members=[]), served("a.c")]
    order = judge(document(services=services, candidates=candidates), epoch=0)
    assert order.node is not None
    assert [each.name for each in order.node.spec.services] == ["a.a", "a.c"]
    assert [each.name for each in order.node.spec.candidates] == ["a.c"]
    assert list(order.problems) == ["a.broken"]
    assert "spec.services[1].spec.slo.objectives" in order.problems["a.broken"]
