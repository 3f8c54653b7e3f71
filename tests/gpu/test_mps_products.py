"""GPUs under MPS are products of their own: the same boards, and nothing measured on one holds for the other."""

from __future__ import annotations

import pytest

from tessera_core.gpu.classes import full_class
from tessera_core.gpu.mig import GpuModel
from tessera_core.gpu.mps import clients_of, hardware, is_one_of, under_mps
from tessera_core.gpu.tables import MODELS, model_of


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_board_under_mps_is_the_same_board_and_another_class(model: GpuModel) -> None:
    for product in model.products:
        shared = under_mps(product)
        assert model_of(shared) is model
        assert hardware(shared) == hardware(product)
        assert under_mps(shared) == shared
        assert full_class(model, shared).product == shared != full_class(model, product).product


def test_what_nvml_says_becomes_a_label() -> None:
    assert under_mps("NVIDIA H100 80GB HBM3") == "NVIDIA-H100-80GB-HBM3-MPS"


@pytest.mark.parametrize(
    ("product", "names", "found"),
    [
        ("NVIDIA-L4", ("NVIDIA L4",), True),
        ("NVIDIA-L4-MPS", ("NVIDIA L4",), True),
        ("NVIDIA-L4-MPS", ("NVIDIA-L4-MPS",), True),
        ("NVIDIA-L4", ("NVIDIA-L4-MPS",), False),
        ("NVIDIA-L40", ("NVIDIA-L4",), False),
        ("NVIDIA-L4", (), False),
    ],
)
def test_a_service_names_boards_or_only_those_under_mps(
    product: str, names: tuple[str, ...], found: bool
) -> None:
    assert is_one_of(product, names) is found


@pytest.mark.parametrize(
    ("sms", "of", "clients"), [(132, 132, 48), (66, 132, 24), (16, 132, 5), (1, 132, 1), (4, 0, 1)]
)
def test_a_slice_takes_clients_in_proportion_to_its_sms(sms: int, of: int, clients: int) -> None:
    assert clients_of(48, sms, of) == clients
