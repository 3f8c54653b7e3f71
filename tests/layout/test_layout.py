"""The layout that keeps the interpreter and the layers whole."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_operator_and_runtime_hold_packages_and_are_none() -> None:
    for folder in ("operator", "runtime", "core", "cli"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_no_test_folder_shadows_the_standard_library() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert not folders & sys.stdlib_module_names
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("folder", [".", "operator", "runtime", "tests"])
def test_the_standard_operator_module_wins_wherever_one_stands(folder: str) -> None:
    code = "import operator; assert operator.eq(1, 1); print(operator.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / folder, capture_output=True, text=True, check=True
    )
    assert str(ROOT) not in found.stdout


def test_the_core_imports_without_anything_heavy() -> None:
    code = (
        "import sys, tessera_core.plan.planner, tessera_core.simulate, tessera_core.api;"
        "heavy = {'torch', 'onnxruntime', 'msgspec', 'grpc', 'uvloop', 'yaml', 'rich', 'asyncio'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_the_dispatcher_imports_no_engine() -> None:
    code = (
        "import sys, tessera_runtime.dispatch.main, tessera_runtime.supervisor;"
        "found = {'torch', 'onnxruntime'} & set(sys.modules);"
        "sys.exit(str(found) if found else 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
