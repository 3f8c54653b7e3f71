"""Device classes of boards, slices and cores, and their text."""

from __future__ import annotations

import pytest

from tessera_core.gpu.classes import full_class, parse_class, slice_class
from tessera_core.gpu.devices import DeviceClass, cpu_class
from tessera_core.gpu.mig import GpuModel, find_profile
from tessera_core.gpu.tables import A100_80, H20_96, H100_80_SXM, MODELS

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def test_a_whole_gpu_is_the_slice_full() -> None:
    whole = full_class(H100_80_SXM)
    assert whole == DeviceClass("NVIDIA-H100-80GB-HBM3", "full", sm_count=132, memory_mib=81559)
    assert not whole.is_mig
    assert not whole.is_cpu


def test_a_slice_takes_sms_and_memory_from_the_table() -> None:
    profile = find_profile(H100_80_SXM, "3g.40gb")
    assert profile is not None
    sliced = slice_class(H100_80_SXM, profile)
    assert sliced == DeviceClass("NVIDIA-H100-80GB-HBM3", "3g.40gb", sm_count=60, memory_mib=40448)
    assert sliced.is_mig


def test_products_of_one_table_are_different_classes() -> None:
    sxm, pcie = full_class(A100_80), full_class(A100_80, "NVIDIA A100 80GB PCIe")
    assert (sxm.product, pcie.product) == ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe")
    assert sxm != pcie


def test_an_unrecorded_sm_count_is_zero_and_not_a_share_of_the_board() -> None:
    assert slice_class(H20_96, H20_96.profiles[0]).sm_count == 0


@every_model
def test_the_text_of_a_class_reads_back(model: GpuModel) -> None:
    for product in model.products:
        classes = [full_class(model, product)]
        classes += [slice_class(model, profile, product) for profile in model.profiles]
        for each in classes:
            assert parse_class(str(each), cpu_memory_mib=0) == each


def test_cpu_classes_read_back_with_their_memory_budget() -> None:
    cores = cpu_class(4, 8192)
    assert str(cores) == "cpu-4"
    assert parse_class("cpu-4", cpu_memory_mib=8192) == cores
    assert cores.is_cpu


def test_a_drivers_alias_reads_as_the_tables_slice() -> None:
    parsed = parse_class("NVIDIA-A100-SXM4-80GB/3g.39gb", cpu_memory_mib=0)
    assert parsed.slice == "3g.40gb"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpu-0", "expected 'cpu-N' or '<product>/<slice>'"),
        ("cpu-x", "expected 'cpu-N' or '<product>/<slice>'"),
        ("", "expected 'cpu-N' or '<product>/<slice>'"),
        ("NVIDIA-T4/full", "no table for product 'NVIDIA-T4'"),
        ("NVIDIA-A30/3g.20gb", r"A30-24 has no slice '3g\.20gb', has full, 4g\.24gb"),
    ],
)
def test_a_text_that_is_no_class_says_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_class(text, cpu_memory_mib=1024)


def test_a_cpu_class_needs_a_core() -> None:
    with pytest.raises(ValueError, match="at least one core, found 0"):
        cpu_class(0, 1024)
