"""Images are decoded on cores or on GPUs, whatever costs least of what was measured, and what is not tried is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from support.clusters import cluster, gpu_node, gpu_place, measured, service
from tessera_core.api import ModelService
from tessera_core.api.preprocess import Decoder
from tessera_core.api.stages import STAGE, stage_of
from tessera_core.gpu.geometry import Placement
from tessera_core.plan import (
    ClusterState,
    Measured,
    NodeState,
    explain,
    plan,
    state_from_dict,
    state_to_dict,
)
from tessera_core.plan.decoding import may_decode, stage_products
from tessera_core.plan.state import DeviceState

A100 = "NVIDIA-A100-SXM4-80GB"
CUT = (Placement("1g.10gb", 0), Placement("1g.10gb+me", 1))
ENGINES = (("1g.10gb", 0), ("1g.10gb+me", 1))


def images(device: str = "Auto", rps: float = 200.0, **spec: object) -> ModelService:
    preprocess = {"image": {"size": [224, 224], "resize": 256, "device": device}}
    return service("s", preprocess=preprocess, rps=rps, target="200ms", **spec)  # type: ignore[arg-type]


def of_stage(one: ModelService, found: Measured) -> Measured:
    assert one.spec.preprocess is not None
    return replace(found, digest=stage_of(one.spec.preprocess).model.digest or "")


def with_cores(node: NodeState, cores: int) -> NodeState:
    return replace(node, devices=(*node.devices, DeviceState("cpu", "cpu", 65536, cores=cores)))


def state(
    one: ModelService, cores: int, decoding: Iterable[Measured], row_ms: float = 0.05
) -> ClusterState:
    """Two slices, of which each takes ``row_ms`` for a row of the member."""
    node = with_cores(gpu_node("a", jpeg_engines=ENGINES, geometry=CUT), cores)
    model = [measured("m", gpu_place(each), row_ms, 1.0) for each, _ in ENGINES]
    return cluster([node], [one], [*model, *(of_stage(one, each) for each in decoding)])


ON_CORES = measured("any", 1, 5.0, 0.01)
ON_ENGINE = measured("any", gpu_place("1g.10gb+me"), 0.2, 2.0)


def places(found: ClusterState) -> set[str]:
    return {each.device_class for each in plan(found).assignments if each.member == STAGE}


def lines(found: ClusterState) -> tuple[str, ...]:
    (told,) = explain(plan(found), found)
    return told.lines


def test_where_the_member_needs_all_slices_images_are_decoded_on_cores() -> None:
    found = state(images(rps=250.0), 16, (ON_CORES, ON_ENGINE), row_ms=5.0)
    assert places(found) == {"cpu-1"}
    assert plan(found).refused == ()


def test_where_cores_are_short_the_slice_with_an_engine_decodes() -> None:
    found = state(images(rps=800.0), 2, (ON_CORES, ON_ENGINE))
    assert f"{A100}/1g.10gb+me" in places(found)
    assert plan(found).refused == ()


def test_without_cores_that_were_measured_the_gpu_decodes() -> None:
    assert places(state(images("GPU"), 16, (ON_ENGINE,))) == {f"{A100}/1g.10gb+me"}


def test_a_part_without_an_engine_is_named_and_what_would_have_it_tried() -> None:
    told = lines(state(images(), 16, (ON_CORES, ON_ENGINE)))
    assert [line for line in told if "JPEG" in line] == [
        f"preprocess is not tried on {A100}/1g.10gb: it has no JPEG engine; image.device GPU would"
    ]


def test_a_part_whose_engines_nobody_has_told_is_named_so() -> None:
    found = state(images(), 16, (ON_CORES, ON_ENGINE))
    node = found.nodes[0]
    old = replace(node, devices=tuple(replace(each, jpeg_engines=()) for each in node.devices))
    told = lines(replace(found, nodes=(old,)))
    assert [line for line in told if "JPEG" in line] == [
        f"preprocess is not tried on {A100}/1g.10gb: its JPEG engines were not counted; "
        "image.device GPU would"
    ]


def test_gpus_that_are_asked_for_where_there_are_none_are_missed() -> None:
    one = images("GPU")
    cores_only = with_cores(replace(gpu_node("a"), devices=()), 8)
    found = cluster([cores_only], [one], [measured("m", 1), of_stage(one, ON_CORES)])
    assert any("image.device is GPU, and there is none" in line for line in lines(found))


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_nothing_is_said_of_what_a_service_chose_itself(device: str) -> None:
    told = lines(state(images(device), 16, (ON_CORES, ON_ENGINE)))
    assert not any("tried" in line for line in told)


@pytest.mark.parametrize(
    ("device", "named", "products"),
    [
        ("CPU", [A100], ("cpu",)),
        ("Auto", [], ()),
        ("Auto", [A100], ("cpu", A100)),
        ("GPU", [], ()),
        ("GPU", [A100], (A100,)),
    ],
)
def test_a_service_that_names_products_has_images_decoded_on_these_or_on_cores(
    device: str, named: list[str], products: tuple[str, ...]
) -> None:
    one = images(device, placement={"products": named} if named else {})
    assert stage_products(one.spec) == products


def test_what_runs_on_cores_is_never_decoded_elsewhere_by_itself() -> None:
    recordings = service("s", preprocess={"audio": {}})
    alpha = service(
        "s", preprocess={"image": {"size": [8, 8], "mean": ["0"] * 4, "std": ["1"] * 4}}
    )
    for one in (recordings, alpha):
        assert one.spec.preprocess is not None
        assert one.spec.preprocess.device is Decoder.CPU
        assert stage_products(one.spec) == ("cpu",)
    assert not may_decode(Decoder.CPU, A100, 7)


def test_where_images_are_decoded_is_part_of_the_stage_so_that_it_is_measured_before_it_moves() -> (
    None
):
    digests = {
        stage_of(one.spec.preprocess).model.digest
        for one in (images("CPU"), images("GPU"), images())
        if one.spec.preprocess is not None
    }
    assert len(digests) == 3


def test_engines_travel_from_the_node_to_the_planner_and_back() -> None:
    found = state(images(), 4, (ON_CORES, ON_ENGINE))
    again = state_from_dict(state_to_dict(found))
    assert {each.jpeg_engines for node in again.nodes for each in node.devices} == {ENGINES, ()}
    whole = cluster([gpu_node("a", jpeg_engines=(("full", 7),))], [], [])
    again = state_from_dict(state_to_dict(whole))
    assert [each.jpeg_engines for node in again.nodes for each in node.devices] == [(("full", 7),)]
