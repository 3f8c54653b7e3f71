"""`kubectl tessera top`: what is used and free, what it costs, and who has how much of the devices."""

from __future__ import annotations

from typing import Any

import pytest

from tessera_cli.kubectl.top import (
    NodeUse,
    Used,
    node_data,
    node_use,
    nodes_table,
    prices_of,
    service_use,
    services_table,
    shares_of,
)
from tessera_core.api import ModelService, RuntimeNode
from tessera_core.plan import state_from_dict

A100 = "NVIDIA-A100-SXM4-80GB"
Object = dict[str, Any]


def instance(service: str, piece: str, member: str = "m", **more: object) -> Object:
    return {"service": service, "member": member, "slice": piece, "batch": 4, **more}


def gpu(uuid: str, instances: list[Object], pieces: list[tuple[str, int]] = ()) -> Object:
    slices = [
        {"uuid": f"MIG-{start}", "profile": profile, "start": start} for profile, start in pieces
    ]
    return {
        "uuid": uuid,
        "product": A100,
        "memoryMiB": 81920,
        "migCapable": True,
        "migMode": "Enabled" if slices else "Disabled",
        "slices": slices,
        "instances": instances,
    }


def node(
    name: str, devices: list[Object], cores: int = 0, planned: tuple[str, ...] = ()
) -> RuntimeNode:
    wanted = [{"uuid": each, "instances": [instance("vision.a", "full")]} for each in planned]
    status: Object = {"devices": devices}
    if cores:
        status["cpu"] = {"cores": cores}
    status["conditions"] = [{"type": "Ready", "status": "True", "reason": "Serving"}]
    return RuntimeNode.from_dict(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "RuntimeNode",
            "metadata": {"name": name, "labels": {"tessera.dev/pool": "p"}},
            "spec": {"epoch": 1, "devices": wanted},
            "status": status,
        }
    )


def test_a_cut_gpu_a_whole_one_and_cores_are_counted_apart() -> None:
    cut = gpu(
        "GPU-0",
        [
            instance("vision.a", "1g.10gb@0", count=2, ready=1, memoryMiB=900),
            instance("vision.b", "1g.10gb@0", ready=1, memoryMiB=100),
        ],
        [("1g.10gb", 0), ("1g.10gb", 1), ("3g.40gb", 4)],
    )
    cpu = {"uuid": "cpu", "product": "cpu", "memoryMiB": 1000}
    cpu["instances"] = [
        instance("vision.a", "cpu-2@0", ready=1),
        instance("vision.b", "cpu-2@4", ready=1),
    ]
    use = node_use(
        node("n", [cut, gpu("GPU-1", []), cpu], 8, ("GPU-0", "cpu")),
        {("n", "GPU-0"): 1.5, ("n", "GPU-1"): 1.5, ("n", "cpu"): 0.25},
    )
    assert use == NodeUse(
        name="n",
        pool="p",
        ready="True",
        gpus=Used(1, 2),
        slices=Used(1, 4),
        cores=Used(4, 8),
        instances=Used(4, 5),
        memory_mib=Used(1000, 2 * 81920 + 1000),
        cost=1.75,
    )
    assert node_data(use)["slices"] == {"used": 1, "free": 3, "total": 4}


def test_what_is_wrong_with_devices_is_shown_and_what_must_not_be_used_comes_first() -> None:
    pending = gpu("GPU-0", []) | {"health": "Healthy", "problem": "damaged memory"}
    lost = gpu("GPU-1", []) | {"health": "Unhealthy", "problem": "is lost: GPU is lost"}
    silent = gpu("GPU-2", []) | {"health": "Unhealthy"}
    use = node_use(node("n", [pending, gpu("GPU-3", []), lost, silent]), {})
    assert use.problems == (
        "GPU-1 Unhealthy: is lost: GPU is lost",
        "GPU-2 Unhealthy",
        "GPU-0 Healthy: damaged memory",
    )
    assert node_data(use)["problems"] == list(use.problems)
    cells = [list(column.cells) for column in nodes_table([use]).columns]
    assert cells[-1] == ["\n".join(use.problems)]


def test_a_node_without_devices_uses_nothing_and_an_unknown_price_is_no_price() -> None:
    nothing = node_use(node("activator", []), {})
    assert (nothing.gpus, nothing.cost) == (Used(), 0)
    assert str(nothing.cores) == "-"
    assert node_use(node("n", [gpu("GPU-0", [])], planned=("GPU-0",)), {}).cost is None


def test_prices_are_those_that_plans_count(example: dict[str, list[Object]]) -> None:
    assert prices_of(state_from_dict(example)) == {
        ("cores-1", "cpu"): pytest.approx(0.4),
        ("gpu-1", "GPU-1"): pytest.approx(3.6),
    }


def test_shares_of_devices_add_up_to_what_is_used() -> None:
    cut = gpu(
        "GPU-0",
        [instance("vision.a", "1g.10gb@0"), instance("vision.b", "3g.40gb@4")],
        [("1g.10gb", 0), ("3g.40gb", 4)],
    )
    whole = gpu("GPU-1", [instance("vision.a", "full", "x"), instance("vision.b", "full", "y")])
    cpu = {"uuid": "cpu", "product": "cpu", "memoryMiB": 1000}
    cpu["instances"] = [instance("vision.a", "cpu-2@0")]
    shares = shares_of([node("n", [cut, whole]), node("m", [cpu], 8)])
    # An A100 has 108 SMs: 14 in 1g, 42 in 3g.
    assert shares["vision.a"] == pytest.approx(14 / 108 + 1 / 2 + 2 / 8)
    assert shares["vision.b"] == pytest.approx(42 / 108 + 1 / 2)


def test_services_come_by_their_traffic_and_show_no_latency_without_it(
    example: dict[str, list[Object]],
) -> None:
    busy, quiet = (ModelService.from_dict(each) for each in example["services"])
    measured = ModelService.from_dict(
        {
            **busy.to_dict(),
            "status": {
                "slo": {"good": 999, "total": 1000, "p50": "4ms", "p99": "40ms"}
                | {"requestsPerSecond": 200}
            },
        }
    )
    use = service_use(measured, 0.5)
    assert (use.p50_ms, use.p99_ms, use.attainment) == (4.0, 40.0, 0.999)
    none = service_use(quiet, 0.0)
    assert (none.p50_ms, none.p99_ms, none.attainment) == (None, None, None)
    names = list(services_table([none, use]).columns[1].cells)
    assert names == ["quality", "digits"]
