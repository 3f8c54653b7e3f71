"""From wanted nodes to the server's words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tessera_core.api import (
    ClusterMeta,
    Device,
    Instance,
    ModelService,
    RuntimeNode,
    RuntimeNodeSpec,
)
from tessera_core.api.measurements import ProfilingTask
from tessera_core.api.meta import NameRef
from tessera_core.api.modelservice import Access
from tessera_core.api.runtimenode import (
    BatchTime,
    InstanceState,
    Route,
    ServedMember,
    ServedService,
)
from tessera_core.gpu.geometry import Placement
from tessera_runtime.agent.keys import SecretSource
from tessera_runtime.agent.translate import (
    LocalModel,
    ModelSource,
    Site,
    TranslationError,
    candidate_sources,
    device_piece,
    device_target,
    key_sources,
    model_sources,
    server_target,
)
from tessera_runtime.devices.inventory import Gpu, Inventory
from tessera_runtime.devices.mig import MigSlice
from tessera_runtime.target import InstanceTarget, PeerTarget, ServerTarget, ServiceTime

DIGEST = "sha256:" + "ab" * 32
SERVICE = ModelService.from_dict(
    {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "digits", "namespace": "vision", "generation": 7},
        "spec": {
            "members": [
                {
                    "name": "cnn",
                    "model": {
                        "uri": "s3://m/cnn.pt2",
                        "format": "TorchExport",
                        "secretRef": {"name": "store"},
                    },
                    "batch": {"max": 16},
                    "weight": "2",
                },
                {
                    "name": "mlp",
                    "model": {"uri": "https://m/mlp.onnx", "format": "ONNX"},
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
                    "padding": {"buckets": [64, 128], "mixed": False},
                }
            ],
        },
    }
)
SERVED = ServedService(
    "vision.digits",
    7,
    SERVICE.spec,
    (
        ServedMember("cnn", batch_time=BatchTime(0.1, 2.0)),
        ServedMember("mlp", DIGEST, routes=(Route("other", "10.0.0.1:8001", 900),)),
    ),
)
MODELS = {
    ("vision.digits", "cnn"): LocalModel("/cache/cnn", "sha256:aa"),
    ("vision.digits", "mlp"): LocalModel("/cache/mlp", DIGEST),
}
WHOLE = Gpu(0, "GPU-1", "NVIDIA H100 80GB HBM3", 81559, 132, mig_enabled=False)
SMALL = MigSlice("MIG-a", Placement("1g.10gb", 0), 16, 9984)
HALF = MigSlice("MIG-b", Placement("3g.40gb", 4), 60, 40448)
CUT = replace(WHOLE, index=1, uuid="GPU-2", mig_enabled=True, slices=(SMALL, HALF))
SEEN = Inventory((4, 6), 512, (WHOLE, CUT))
SITE = Site(SEEN, allow_code=False)
NOTHING = ServerTarget()


def node(
    *instances: Instance, uuid: str = "cpu", services: tuple[ServedService, ...] = (SERVED,)
) -> RuntimeNode:
    devices = (Device(uuid=uuid, instances=instances),)
    return RuntimeNode(
        metadata=ClusterMeta(name="local"),
        spec=RuntimeNodeSpec(epoch=3, devices=devices, services=services),
    )


def instance(member: str, piece: str, batch: int = 8, **fields: object) -> Instance:
    return Instance(service="vision.digits", member=member, slice=piece, batch=batch, **fields)  # type: ignore[arg-type]


BOTH = node(instance("cnn", "cpu-1@1", 8), instance("mlp", "cpu-1@0", 4, count=2))


def test_cores_are_the_processors_own_numbers() -> None:
    found = device_target("cpu", "cpu-2@1", Site(Inventory((4, 6, 8, 10), 512, ()), False))
    assert (found.kind, found.cores, found.threads, found.memory_mib) == ("cpu", (6, 8), 2, 512)


@pytest.mark.parametrize(
    ("uuid", "piece", "words"),
    [
        ("cpu", "cpu-2@1", "this node has 2 cores"),
        ("cpu", "full", "expected cpu-N"),
        ("GPU-1", "1g.10gb@0", r"1g\.10gb@0 of GPU-1: not cut yet; it has no slices"),
        ("GPU-2", "1g.10gb@1", r"not cut yet; it has 1g\.10gb@0, 3g\.40gb@4"),
        ("GPU-2", "full", "GPU-2: in MIG mode it runs nothing as a whole"),
        ("GPU-3", "full", "GPU-3: this node has no such device"),
        ("GPU-3", "1g.10gb@0", "GPU-3: this node has no such device"),
    ],
)
def test_what_the_node_does_not_have_is_refused(uuid: str, piece: str, words: str) -> None:
    with pytest.raises(TranslationError, match=words):
        device_target(uuid, piece, SITE)


@pytest.mark.parametrize(
    ("uuid", "piece", "visible"),
    [
        ("GPU-1", "full", "GPU-1"),
        ("GPU-2", "1g.10gb@0", "MIG-a"),
        ("GPU-2", "3g.40gb@4", "MIG-b"),
    ],
)
def test_gpus_and_slices_are_named_to_cuda_by_uuid(uuid: str, piece: str, visible: str) -> None:
    found = device_target(uuid, piece, SITE)
    assert (found.kind, found.cores, found.environment) == (
        "cuda",
        (),
        {"CUDA_VISIBLE_DEVICES": visible},
    )
    emulated = device_target(uuid, piece, replace(SITE, gpus_on_cores=True))
    assert (emulated.kind, emulated.cores, emulated.threads) == ("cpu", SEEN.cores, 1)
    assert (emulated.id, emulated.environment) == (found.id, found.environment)


@pytest.mark.parametrize(
    ("uuid", "piece", "most", "clients"),
    [
        ("GPU-1", "full", 48, 48),
        ("GPU-1", "full", 6, 6),
        ("GPU-1", "full", 0, 0),
        ("GPU-2", "3g.40gb@4", 48, 21),
        ("GPU-2", "1g.10gb@0", 48, 5),
        ("GPU-2", "1g.10gb@0", 6, 1),
        ("cpu", "cpu-1@0", 48, 0),
    ],
)
def test_a_slice_takes_its_share_of_the_clients_of_a_gpu(
    uuid: str, piece: str, most: int, clients: int
) -> None:
    assert device_target(uuid, piece, replace(SITE, mps=most)).mps_clients == clients


@pytest.mark.parametrize(
    ("uuid", "piece"), [("cpu", "cpu-2@0"), ("GPU-1", "full"), ("GPU-2", "3g.40gb@4")]
)
def test_a_device_is_found_again_by_its_id(uuid: str, piece: str) -> None:
    assert device_piece(device_target(uuid, piece, SITE).id) == (uuid, piece)


ON_SLICES = node(instance("cnn", "1g.10gb@0"), instance("mlp", "3g.40gb@4"), uuid="GPU-2")


def visible(target: ServerTarget) -> dict[str, str]:
    return {each.id: each.environment["CUDA_VISIBLE_DEVICES"] for each in target.devices}


def test_a_slice_that_is_cut_anew_is_another_device_under_the_same_id() -> None:
    before = server_target(ON_SLICES, MODELS, SITE, NOTHING).target
    assert visible(before) == {"GPU-2/1g.10gb@0": "MIG-a", "GPU-2/3g.40gb@4": "MIG-b"}
    anew = replace(CUT, slices=(replace(SMALL, uuid="MIG-c"), HALF))
    site = replace(SITE, seen=replace(SEEN, gpus=(WHOLE, anew)))
    after = server_target(ON_SLICES, MODELS, site, before).target
    assert visible(after) == {"GPU-2/1g.10gb@0": "MIG-c", "GPU-2/3g.40gb@4": "MIG-b"}
    assert after.services == before.services
    waiting = server_target(ON_SLICES, {}, site, before).target
    assert visible(waiting) == visible(after), "also where a model has to come first"


def test_a_service_on_a_slice_that_is_gone_says_so_and_keeps_the_others() -> None:
    before = server_target(ON_SLICES, MODELS, SITE, NOTHING).target
    anew = replace(CUT, slices=(replace(HALF, uuid="MIG-c"),))
    site = replace(SITE, seen=replace(SEEN, gpus=(WHOLE, anew)))
    found = server_target(ON_SLICES, MODELS, site, before)
    assert "1g.10gb@0 of GPU-2: not cut yet" in found.problems["vision.digits"]
    assert found.target.services == before.services
    assert visible(found.target) == {"GPU-2/1g.10gb@0": "MIG-a", "GPU-2/3g.40gb@4": "MIG-c"}
    assert server_target(ON_SLICES, MODELS, site, NOTHING).target.services == ()


def test_everything_the_user_said_reaches_the_server() -> None:
    translated = server_target(BOTH, MODELS, SITE, NOTHING)
    assert translated.problems == {}
    found = translated.target
    assert found.epoch == 3
    [service] = found.services
    assert (service.name, service.version, service.slo_ms) == ("vision.digits", "7", 50.0)
    assert (service.combine, service.min_members, service.on_timeout) == (
        "WeightedMean",
        1,
        "Partial",
    )
    assert service.inputs[0].buckets == ((64,), (128,))
    assert not service.inputs[0].mixed
    cnn, mlp = service.members
    assert (cnn.max_batch, cnn.cap, cnn.weight, cnn.required) == (16, 8, 2.0, True)
    assert cnn.instances == (InstanceTarget("cpu/cpu-1@1", 1, 8),)
    assert cnn.service_time == ServiceTime(0.1, 2.0)
    assert cnn.peers == ()
    assert (mlp.weight, mlp.required, mlp.instances) == (
        1.0,
        False,
        (InstanceTarget("cpu/cpu-1@0", 2, 4),),
    )
    assert mlp.peers == (PeerTarget("10.0.0.1:8001", 900.0),)
    assert {device.id for device in found.devices} == {"cpu/cpu-1@0", "cpu/cpu-1@1"}


def test_instances_on_several_slices_keep_their_caps() -> None:
    wanted = node(instance("cnn", "cpu-1@0", 4), instance("cnn", "cpu-1@1", 8))
    [service] = server_target(wanted, MODELS, SITE, NOTHING).target.services
    assert service.members[0].cap == 8
    assert [place.cap for place in service.members[0].instances] == [4, 8]


def test_standby_instances_take_no_work() -> None:
    wanted = node(instance("cnn", "cpu-1@0", state=InstanceState.STANDBY))
    [service] = server_target(wanted, MODELS, SITE, NOTHING).target.services
    assert service.members[0].instances == ()


def test_a_member_that_runs_elsewhere_needs_no_file_here() -> None:
    wanted = node(instance("cnn", "cpu-1@0"))
    models = {("vision.digits", "cnn"): MODELS["vision.digits", "cnn"]}
    [service] = server_target(wanted, models, SITE, NOTHING).target.services
    mlp = service.members[1]
    assert (mlp.path, mlp.digest, mlp.instances) == ("", DIGEST, ())


def test_only_what_can_be_answered_or_held_here_is_told() -> None:
    idle = replace(SERVED, members=())
    assert server_target(node(services=(idle,)), {}, SITE, NOTHING).target.services == ()
    held = replace(idle, hold=5)
    [service] = server_target(node(services=(held,)), {}, SITE, NOTHING).target.services
    assert service.hold == 5
    [service] = server_target(node(), {}, SITE, NOTHING).target.services
    assert service.members[1].peers != ()


def test_a_version_whose_model_is_missing_leaves_the_one_before_as_it_was() -> None:
    before = server_target(BOTH, MODELS, SITE, NOTHING).target
    newer = replace(SERVED, generation=8)
    other = replace(SERVED, name="vision.other")
    wanted = node(
        instance("cnn", "cpu-1@0"),
        replace(instance("mlp", "cpu-1@0"), service="vision.other"),
        services=(newer, other),
    )
    models = {("vision.other", "mlp"): LocalModel("/cache/mlp", DIGEST)}
    found = server_target(wanted, models, SITE, before)
    assert found.problems == {}
    assert [(s.name, s.version) for s in found.target.services] == [
        ("vision.digits", "7"),
        ("vision.other", "7"),
    ]
    assert found.target.services[0] == before.services[0]
    assert {device.id for device in found.target.devices} == {"cpu/cpu-1@0", "cpu/cpu-1@1"}
    assert server_target(wanted, models, SITE, NOTHING).target.services[0].name == "vision.other"


KEYED = replace(SERVED, spec=replace(SERVICE.spec, access=Access(NameRef("keys"))))


def test_a_service_that_asks_for_keys_needs_one_and_they_come_from_its_own_namespace() -> None:
    wanted = node(instance("cnn", "cpu-1@0"), services=(KEYED,))
    assert key_sources(wanted) == {"vision.digits": SecretSource("vision", "keys")}
    [service] = server_target(wanted, MODELS, SITE, NOTHING).target.services
    assert service.needs_key
    assert key_sources(BOTH) == {}
    assert not server_target(BOTH, MODELS, SITE, NOTHING).target.services[0].needs_key


def test_closing_a_service_does_not_wait_for_its_models() -> None:
    open_to_all = server_target(BOTH, MODELS, SITE, NOTHING).target
    new = replace(KEYED, generation=8)
    wanted = node(*BOTH.spec.devices[0].instances, services=(new,))
    [service] = server_target(wanted, {}, SITE, open_to_all).target.services
    assert (service.version, service.needs_key) == ("7", True)


def test_a_service_whose_keys_are_being_read_is_not_told_yet() -> None:
    wanted = node(instance("cnn", "cpu-1@0"), services=(KEYED,))
    told = server_target(wanted, MODELS, SITE, NOTHING, without_keys={"vision.digits"})
    assert (told.target.services, told.problems) == ((), {})
    before = server_target(BOTH, MODELS, SITE, NOTHING).target
    told = server_target(wanted, MODELS, SITE, before, without_keys={"vision.digits"})
    assert told.target.services == before.services


def test_a_service_that_asks_for_too_much_holds_up_nothing_else() -> None:
    other = replace(SERVED, name="vision.other")
    wanted = node(
        instance("cnn", "cpu-4@0"),
        replace(instance("mlp", "cpu-1@0"), service="vision.other"),
        services=(SERVED, other),
    )
    models = MODELS | {("vision.other", "mlp"): LocalModel("/cache/mlp", DIGEST)}
    found = server_target(wanted, models, SITE, NOTHING)
    assert [service.name for service in found.target.services] == ["vision.other"]
    assert "this node has 2 cores" in found.problems["vision.digits"]


def test_instances_without_a_version_are_said() -> None:
    found = server_target(node(instance("cnn", "cpu-1@0"), services=()), MODELS, SITE, NOTHING)
    assert "spec.services" in found.problems["vision.digits"]


def test_a_version_that_cannot_be_read_leaves_the_one_before_as_it_was() -> None:
    before = server_target(BOTH, MODELS, SITE, NOTHING).target
    wanted = node(instance("cnn", "cpu-1@0"), services=())
    found = server_target(wanted, MODELS, SITE, before, unread=["vision.digits", "vision.new"])
    assert found.target.services == before.services
    assert found.problems == {}


def test_models_are_needed_where_they_run_or_are_measured() -> None:
    wanted = node(instance("cnn", "cpu-1@0"))
    task = ProfilingTask("vision.digits", "mlp", "cpu", "cpu-1")
    newer = replace(SERVED, generation=8, members=())
    spec = replace(wanted.spec, profiling=(task,), candidates=(newer,))
    wanted = replace(wanted, spec=spec)
    cnn = ModelSource("vision", "s3://m/cnn.pt2", "store", None)
    mlp = ModelSource("vision", "https://m/mlp.onnx", None, None)
    assert model_sources(wanted) == {("vision.digits", "cnn"): cnn}
    assert candidate_sources(wanted) == {("vision.digits", "mlp"): mlp}
    placed = node(instance("mlp", "cpu-1@0"))
    assert model_sources(placed)["vision.digits", "mlp"].digest == DIGEST
