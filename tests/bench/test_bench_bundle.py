"""What is packed for a machine without a registry."""

from __future__ import annotations

import tarfile
from pathlib import Path

from bench.bundle import TESTS, pack, wanted

_EXPORTED = """\
# This file was made by uv
grpcio==1.85.1
    # via tessera
numpy==2.4.6 ; python_full_version < '3.12'
numpy==2.5.5 ; python_full_version >= '3.12'
Torch==2.15.0
tritonclient==2.73.0
moto==5.1.0
-e .
"""


def test_what_the_machine_has_of_its_own_is_left_out():
    lines = _EXPORTED.splitlines()
    assert wanted(lines) == ["grpcio==1.85.1", "tritonclient==2.73.0", "moto==5.1.0"]
    assert wanted(lines, TESTS) == ["tritonclient==2.73.0"]


def test_the_archive_unpacks_to_a_folder_of_imports_without_byte_code(tmp_path: Path):
    site = tmp_path / "site"
    (site / "package" / "__pycache__").mkdir(parents=True)
    (site / "package" / "__init__.py").write_text("x = 1")
    (site / "package" / "__pycache__" / "__init__.cpython-312.pyc").write_bytes(b"code")
    archive = tmp_path / "out" / "site.tar.gz"
    assert 0 < pack(site, archive) < 0.1
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "there", filter="data")
    assert [path.name for path in (tmp_path / "there").rglob("*.py*")] == ["__init__.py"]
