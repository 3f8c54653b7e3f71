"""A measurement that was deleted goes on counting for what runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tessera_core.api import ModelProfile, RuntimeNode
from tessera_core.api.meta import ObjectMeta
from tessera_core.api.modelprofile import ModelProfileSpec, ModelProfileStatus
from tessera_core.gpu.devices import cpu_class
from tessera_core.perf import LatencyProfile
from tessera_operator.remembered import Remembered

DIGEST = "sha256:" + "ab" * 32


def node(*, batch_time: bool = True, count: int = 1) -> RuntimeNode:
    member: dict[str, object] = {"name": "cnn", "digest": DIGEST}
    if batch_time:
        member["batchTime"] = {"alphaMs": "0.5", "tau0Ms": "2"}
    instance = {"service": "vision.digits", "member": "cnn", "slice": "cpu-1@0", "batch": 6}
    model = {"uri": "https://models/cnn.onnx", "format": "ONNX"}
    spec = {
        "members": [{"name": "cnn", "model": model}],
        "slo": {"objectives": [{"target": "50ms", "percent": "99"}]},
    }
    served = {"name": "vision.digits", "generation": 1, "spec": spec, "members": [member]}
    return RuntimeNode.from_dict(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "RuntimeNode",
            "metadata": {"name": "n"},
            "spec": {
                "epoch": 1,
                "devices": [{"uuid": "cpu", "instances": [{**instance, "count": count}]}],
                "services": [served],
            },
            "status": {
                "cpu": {"cores": 2},
                "devices": [
                    {
                        "uuid": "cpu",
                        "product": "cpu",
                        "memoryMiB": 1024,
                        "instances": [{**instance, "count": count, "memoryMiB": 40 * count}],
                    }
                ],
            },
        }
    )


def measured() -> ModelProfile:
    return ModelProfile(
        metadata=ObjectMeta(name="p", namespace="vision"),
        spec=ModelProfileSpec(DIGEST, cpu_class(1, 1024), "onnxruntime"),
        status=ModelProfileStatus(rows=LatencyProfile.from_fit(0.3, 1.0).rows),
    )


def test_nothing_stands_in_for_what_is_measured() -> None:
    assert Remembered().missing([node()], [measured()]) == ()


def test_a_deleted_measurement_counts_as_it_was() -> None:
    remembered = Remembered()
    remembered.missing([node()], [measured()])
    (found,) = remembered.missing([node()], [])
    assert found.spec == measured().spec
    assert found.status == measured().status


def test_it_stays_the_same_value_and_goes_when_it_is_measured_again_or_nothing_runs() -> None:
    remembered = Remembered()
    remembered.missing([node()], [measured()])
    first = remembered.missing([node()], [])
    assert remembered.missing([node()], [])[0] is first[0]
    assert remembered.missing([node()], [measured()]) == ()
    assert remembered.missing([], []) == ()
    idle = replace(node(), spec=replace(node().spec, devices=()))
    assert remembered.missing([idle], []) == ()


@pytest.mark.parametrize("count", [1, 3])
def test_after_a_restart_the_batch_times_that_the_node_was_told_count(count: int) -> None:
    (found,) = Remembered().missing([node(count=count)], [])
    profile = LatencyProfile(found.status.rows)
    assert found.spec.device_class == cpu_class(1, 1024)
    assert profile.service_ms(6, count) == pytest.approx(0.5 * 6 + 2)
    assert profile.instance_counts == tuple(sorted({1, count}))
    assert profile.memory_mib(count) == 40 * count


def test_what_nobody_was_told_of_cannot_be_remembered() -> None:
    assert Remembered().missing([node(batch_time=False)], []) == ()
