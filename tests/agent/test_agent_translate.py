"""From wanted nodes to the server's words."""

from __future__ import annotations

import pytest

from tessera_core.api import (
    ClusterMeta,
    Device,
    Instance,
    ModelService,
    RuntimeNode,
    RuntimeNodeSpec,
)
from tessera_core.api.runtimenode import InstanceState
from tessera_runtime.agent.translate import (
    LocalModel,
    TranslationError,
    device_target,
    server_target,
)
from tessera_runtime.target import InstanceTarget, ServiceTime

SERVICE = ModelService.from_dict(
    {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "digits", "namespace": "vision", "generation": 7},
        "spec": {
            "members": [
                {
                    "name": "cnn",
                    "model": {"uri": "file:///m/cnn.pt2", "format": "TorchExport"},
                    "batch": {"max": 16},
                    "weight": "2",
                },
                {
                    "name": "mlp",
                    "model": {"uri": "file:///m/mlp.onnx", "format": "ONNX"},
                    "weight": "1",
                    "required": False,
                },
            ],
            "ensemble": {"combine": "WeightedMean", "minMembers": 1, "onTimeout": "Partial"},
            "slo": {"objectives": [{"target": "50ms", "percent": "99"}]},
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [-1],
                    "padding": {"buckets": [64, 128]},
                }
            ],
        },
    }
)
MODELS = {
    ("vision.digits", "cnn"): LocalModel("/cache/cnn", "sha256:aa", ServiceTime(0.1, 2.0)),
    ("vision.digits", "mlp"): LocalModel("/cache/mlp", "sha256:bb", None),
}


def node(*instances: Instance, uuid: str = "cpu") -> RuntimeNode:
    return RuntimeNode(
        metadata=ClusterMeta(name="local"),
        spec=RuntimeNodeSpec(epoch=3, devices=(Device(uuid=uuid, instances=instances),)),
    )


def instance(member: str, piece: str, batch: int = 8, **fields: object) -> Instance:
    return Instance(service="vision.digits", member=member, slice=piece, batch=batch, **fields)  # type: ignore[arg-type]


def test_cores_are_the_processors_own_numbers() -> None:
    found = device_target("cpu", "cpu-2@1", cores=(4, 6, 8, 10), memory_mib=512)
    assert (found.kind, found.cores, found.threads, found.memory_mib) == ("cpu", (6, 8), 2, 512)


def test_more_cores_than_there_are_is_refused() -> None:
    with pytest.raises(TranslationError, match="this node has 2 cores"):
        device_target("cpu", "cpu-2@1", cores=(0, 1), memory_mib=1)


def test_a_whole_gpu_is_named_to_cuda_by_uuid() -> None:
    found = device_target("GPU-1234", "full", cores=(), memory_mib=1)
    assert found.kind == "cuda"
    assert found.environment == {"CUDA_VISIBLE_DEVICES": "GPU-1234"}


def test_a_mig_slice_is_refused_by_name() -> None:
    with pytest.raises(TranslationError, match=r"1g\.10gb@0 of GPU-1"):
        device_target("GPU-1", "1g.10gb@0", cores=(), memory_mib=1)


def test_everything_the_user_said_reaches_the_server() -> None:
    wanted = node(instance("cnn", "cpu-1@1", 8), instance("mlp", "cpu-1@0", 4, count=2))
    found = server_target(wanted, [SERVICE], MODELS, (0, 1), 512, allow_code=False)
    assert found.epoch == 3
    [service] = found.services
    assert (service.name, service.version, service.slo_ms) == ("vision.digits", "7", 50.0)
    assert (service.combine, service.min_members, service.on_timeout) == (
        "WeightedMean",
        1,
        "Partial",
    )
    assert service.inputs[0].buckets == ((64,), (128,))
    cnn, mlp = service.members
    assert (cnn.max_batch, cnn.cap, cnn.weight, cnn.required) == (16, 8, 2.0, True)
    assert cnn.instances == (InstanceTarget("cpu/cpu-1@1", 1, 8),)
    assert cnn.service_time == ServiceTime(0.1, 2.0)
    assert (mlp.weight, mlp.required, mlp.instances) == (
        1.0,
        False,
        (InstanceTarget("cpu/cpu-1@0", 2, 4),),
    )
    assert {device.id for device in found.devices} == {"cpu/cpu-1@0", "cpu/cpu-1@1"}


def test_instances_on_several_slices_keep_their_caps() -> None:
    wanted = node(instance("cnn", "cpu-1@0", 4), instance("cnn", "cpu-1@1", 8))
    [service] = server_target(wanted, [SERVICE], MODELS, (0, 1), 1, allow_code=False).services
    assert service.members[0].cap == 8
    assert [place.cap for place in service.members[0].instances] == [4, 8]


def test_standby_instances_take_no_work() -> None:
    wanted = node(instance("cnn", "cpu-1@0", state=InstanceState.STANDBY))
    [service] = server_target(wanted, [SERVICE], MODELS, (0,), 1, allow_code=False).services
    assert service.members[0].instances == ()
