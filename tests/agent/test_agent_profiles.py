"""Profiles kept on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera_core.api.members import ModelFormat
from tessera_core.gpu.devices import cpu_class
from tessera_runtime.agent.profiles import (
    ProfileStore,
    engine_version,
    read_profiles,
    to_profile,
)
from tessera_runtime.target import ProfileCell, ProfileReport

DIGEST = "sha256:" + "ab" * 32
PLACE = cpu_class(1, 1024)
REPORT = ProfileReport(
    engine="torch-2.8.0",
    cells=tuple(
        ProfileCell(
            batch, 1, 1.0 + 0.5 * batch, 1.2 + 0.5 * batch, 1e3 * batch / (1 + 0.5 * batch), 3.5
        )
        for batch in (1, 2, 4, 8)
    ),
    max_rows=8,
)


def test_a_kept_profile_is_found_by_model_place_and_engine(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "deep" / "profiles", "a processor")
    profile = to_profile(DIGEST, PLACE, REPORT)
    assert store.find(DIGEST, PLACE, "torch-2.8.0") is None
    store.keep(profile)
    assert store.find(DIGEST, PLACE, "torch-2.8.0") == profile
    assert store.find(DIGEST, PLACE, "torch-2.9.0") is None
    assert store.find(DIGEST, cpu_class(2, 1024), "torch-2.8.0") is None
    assert store.find("sha256:" + "cd" * 32, PLACE, "torch-2.8.0") is None
    elsewhere = ProfileStore(tmp_path / "deep" / "profiles", "another processor")
    assert elsewhere.find(DIGEST, PLACE, "torch-2.8.0") is None


def test_a_damaged_profile_is_measured_again(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path, "a processor")
    store.keep(to_profile(DIGEST, PLACE, REPORT))
    [path] = tmp_path.iterdir()
    path.write_text(path.read_text()[:-40])
    assert store.find(DIGEST, PLACE, "torch-2.8.0") is None


def test_a_profile_carries_its_fit() -> None:
    fit = to_profile(DIGEST, PLACE, REPORT).status.fit
    assert fit is not None
    assert fit.alpha_ms == pytest.approx(0.5)
    assert fit.tau0_ms == pytest.approx(1.0)
    assert fit.r2 == pytest.approx(1.0)


def test_profiles_can_be_given_as_files(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path, "a processor")
    profile = to_profile(DIGEST, PLACE, REPORT)
    store.keep(profile)
    assert read_profiles(list(tmp_path.iterdir())) == (profile,)


def test_another_kind_is_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_text(
        '{"apiVersion": "tessera.dev/v1alpha1", "kind": "RuntimePool", "metadata": {"name": "a"},'
        ' "spec": {"node": {}}}'
    )
    with pytest.raises(ValueError, match=r"pool\.json|spec"):
        read_profiles([path])


@pytest.mark.parametrize(
    ("model_format", "library"),
    [
        ("TorchExport", "torch"),
        ("TorchScript", "torch"),
        ("ONNX", "onnxruntime"),
        ("Python", "python"),
    ],
)
def test_the_engine_is_known_without_importing_it(model_format: str, library: str) -> None:
    assert engine_version(ModelFormat(model_format)).startswith(f"{library}-")
