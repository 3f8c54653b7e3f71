"""Every row of the MIG tables, and how boards and profiles are recognised."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tessera_core.gpu.mig import MEDIA, GpuModel, find_profile, label, match_profile
from tessera_core.gpu.tables import (
    A30,
    A100_40,
    A100_80,
    B200_180,
    GH200_96,
    H20_96,
    H100_80_PCIE,
    H100_80_SXM,
    H100_94,
    H200_141,
    MODELS,
    model_of,
)

every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)

NAMES = {
    "A100-40": "7g.40gb 4g.20gb 3g.20gb 2g.10gb 1g.10gb 1g.5gb 1g.5gb+me",
    "A100-80": "7g.80gb 4g.40gb 3g.40gb 2g.20gb 1g.20gb 1g.10gb 1g.10gb+me",
    "A30-24": "4g.24gb 2g.12gb 2g.12gb+me 1g.6gb 1g.6gb+me",
    "H100-80-SXM": "7g.80gb 4g.40gb 3g.40gb 2g.20gb 1g.20gb 1g.10gb 1g.10gb+me",
    "H100-80-PCIe": "7g.80gb 4g.40gb 3g.40gb 2g.20gb 1g.20gb 1g.10gb 1g.10gb+me",
    "H100-94": "7g.94gb 4g.47gb 3g.47gb 2g.24gb 1g.24gb 1g.12gb 1g.12gb+me",
    "GH200-96": "7g.96gb 4g.48gb 3g.48gb 2g.24gb 1g.24gb 1g.12gb 1g.12gb+me",
    "H20-96": "7g.96gb 4g.48gb 3g.48gb 2g.24gb 1g.24gb 1g.12gb 1g.12gb+me",
    "H200-141": "7g.141gb 4g.71gb 3g.71gb 2g.35gb 1g.35gb 1g.18gb 1g.18gb+me",
    "B200-180": "7g.180gb 4g.90gb 3g.90gb 2g.45gb 1g.45gb 1g.23gb 1g.23gb+me",
}


@every_model
def test_profile_names_are_those_of_the_vendor(model: GpuModel) -> None:
    assert " ".join(profile.name for profile in model.profiles) == NAMES[model.name]


@every_model
def test_rows_are_consistent_with_the_board(model: GpuModel) -> None:
    assert len({profile.profile_id for profile in model.profiles}) == len(model.profiles)
    for profile in model.profiles:
        assert profile.name.startswith(f"{profile.compute_slices}g.")
        assert profile.name.endswith("+me") == (MEDIA in profile.attributes)
        assert profile.starts == tuple(sorted(set(profile.starts)))
        assert profile.starts[-1] + profile.memory_slices <= model.memory_slices
        assert 1 <= profile.max_count <= len(profile.starts)
        assert profile.max_count * profile.compute_slices <= model.compute_slices
        assert profile.sm_count is None or 0 < profile.sm_count <= model.sm_count
        # A memory slice is an equal share of the board; what MIG reserves keeps the usable part below it.
        share = model.memory_mib * profile.memory_slices / model.memory_slices
        assert 0.8 * share < profile.memory_mib <= share
        assert profile.memory_mib % 64 == 0


@every_model
def test_wider_profiles_come_first_and_have_no_less_of_anything(model: GpuModel) -> None:
    plain = [profile for profile in model.profiles if not profile.attributes]
    for wide, narrow in pairwise(plain):
        assert wide.memory_slices >= narrow.memory_slices
        assert wide.memory_mib >= narrow.memory_mib
        assert wide.copy_engines >= narrow.copy_engines
        if wide.sm_count is not None and narrow.sm_count is not None:
            assert wide.sm_count >= narrow.sm_count


@every_model
def test_unrecorded_and_inferred_values_are_marked(model: GpuModel) -> None:
    unrecorded = {profile.name for profile in model.profiles if profile.sm_count is None}
    expected = {
        "B200-180": {"7g.180gb", "4g.90gb", "3g.90gb"},
        "H20-96": set(NAMES["H20-96"].split()),
    }
    assert unrecorded == expected.get(model.name, set())
    notes = {note.field for profile in model.profiles for note in profile.inferred}
    notes |= {note.field for note in model.inferred}
    concluded = {
        "B200-180": {"starts", "memory_mib", "sm_count"},
        "H20-96": {"memory_mib", "sm_count"},
    }
    assert notes == concluded.get(model.name, set())
    assert model.source


@pytest.mark.parametrize(
    ("model", "sms", "memory_mib"),
    [
        (A100_40, (98, 56, 42, 28, 14, 14, 14), (40192, 19968, 19968, 9856, 9856, 4864, 4864)),
        (A100_80, (98, 56, 42, 28, 14, 14, 14), (80640, 40192, 40192, 19968, 19968, 9728, 9728)),
        (
            H100_80_SXM,
            (132, 64, 60, 32, 26, 16, 16),
            (81152, 40448, 40448, 20096, 20096, 9984, 9984),
        ),
        (
            H100_80_PCIE,
            (114, 62, 46, 30, 14, 14, 14),
            (81152, 40448, 40448, 20096, 20096, 9984, 9984),
        ),
        (
            H200_141,
            (132, 64, 60, 32, 26, 16, 16),
            (143104, 71168, 71168, 33024, 33024, 16384, 16384),
        ),
        (A30, (56, 28, 28, 14, 14), (24000, 11968, 11968, 5952, 5952)),
    ],
    ids=lambda value: value.name if isinstance(value, GpuModel) else "",
)
def test_sms_and_memory_are_the_recorded_ones(
    model: GpuModel, sms: tuple[int, ...], memory_mib: tuple[int, ...]
) -> None:
    assert tuple(profile.sm_count for profile in model.profiles) == sms
    assert tuple(profile.memory_mib for profile in model.profiles) == memory_mib


@every_model
def test_a_seven_slice_gpu_has_25_placements_and_the_a30_13(model: GpuModel) -> None:
    placements = sum(len(profile.starts) for profile in model.profiles)
    assert placements == (13 if model is A30 else 25)


@pytest.mark.parametrize(
    ("product", "model"),
    [
        ("NVIDIA A100-SXM4-40GB", A100_40),
        ("NVIDIA A100-PCIE-40GB", A100_40),
        ("NVIDIA A100-SXM4-80GB", A100_80),
        ("NVIDIA A100 80GB PCIe", A100_80),
        ("NVIDIA A30", A30),
        ("NVIDIA H100 80GB HBM3", H100_80_SXM),
        ("NVIDIA-H100-80GB-HBM3", H100_80_SXM),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", H100_80_SXM),
        ("nvidia h100 pcie", H100_80_PCIE),
        ("NVIDIA H100 NVL", H100_94),
        ("NVIDIA GH200 480GB", GH200_96),
        ("NVIDIA H20", H20_96),
        ("NVIDIA H200", H200_141),
        ("NVIDIA H200 NVL", H200_141),
        ("NVIDIA B200", B200_180),
        ("NVIDIA GB200", None),
        ("NVIDIA H200 NVL2", None),
        ("NVIDIA T4", None),
        ("", None),
    ],
)
def test_product_names_and_labels_find_their_table(product: str, model: GpuModel | None) -> None:
    assert model_of(product) is model


@pytest.mark.parametrize(
    ("pci_device_id", "model"),
    [(0x20B0, A100_40), (0x2330, H100_80_SXM), (0x2331, H100_80_PCIE), (0x233510DE, H200_141)],
)
def test_the_pci_device_id_finds_a_renamed_product(pci_device_id: int, model: GpuModel) -> None:
    assert model_of("Contoso Accelerator", pci_device_id) is model


def test_the_pci_device_id_decides_over_the_name_where_it_is_known() -> None:
    assert model_of("NVIDIA H100 80GB HBM3", 0x233110DE) is H100_80_PCIE
    assert model_of("NVIDIA H100 80GB HBM3", 0x1EB810DE) is H100_80_SXM


def test_another_vendors_device_id_is_not_taken_for_nvidias() -> None:
    assert model_of("Contoso Accelerator", 0x23351002) is None


def test_no_product_or_device_id_belongs_to_two_tables() -> None:
    products = [product.upper() for model in MODELS for product in model.products]
    device_ids = [device_id for model in MODELS for device_id in model.pci_device_ids]
    assert len(set(products)) == len(products)
    assert len(set(device_ids)) == len(device_ids)
    assert all(product == label(product) for model in MODELS for product in model.products)


@every_model
def test_every_profile_is_found_by_its_own_names(model: GpuModel) -> None:
    for profile in model.profiles:
        for name in (profile.name, f"MIG {profile.name}", f"mig-{profile.name}".replace("+", ".")):
            assert find_profile(model, name) is profile
        slices = (profile.compute_slices, profile.memory_slices)
        assert match_profile(model, *slices, profile.attributes) is profile


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("3g.39gb", "3g.40gb"),
        ("7g.79gb", "7g.80gb"),
        ("1g.9gb", "1g.10gb"),
        ("1g.19gb", "1g.20gb"),
        ("1g.9gb.me", "1g.10gb+me"),
    ],
)
def test_a_drivers_alias_means_the_nearest_profile(alias: str, name: str) -> None:
    found = find_profile(A100_80, alias)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "name",
    ["1g.5gb", "3g.20gb", "5g.50gb", "2g.20gb+me", "1g.15gb", "1g", "", "1c.3g.40gb", "full"],
)
def test_a_name_of_no_profile_finds_none(name: str) -> None:
    assert find_profile(A100_80, name) is None


def test_slices_that_no_profile_has_match_none() -> None:
    assert match_profile(A100_80, 3, 3) is None
    assert match_profile(A30, 1, 2) is None
    assert match_profile(A100_80, 2, 2, (MEDIA,)) is None
