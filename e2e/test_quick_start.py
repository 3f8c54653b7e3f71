"""The quick start in docs/quickstart.md works as it is written; so do the other examples, as far as the API goes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e import images
from e2e.native.build import kubernetes, tool
from e2e.system.installation import Installation, pool

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "kubernetes"
NO_OBJECTS = ("kind", "values", "keda")
"""For kind, for Helm, and for a cluster with KEDA's kinds."""
COMMANDS = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/quickstart.md").read_text(), re.M | re.S)
OBJECTS = [
    *(path for path in sorted(EXAMPLES.glob("*.yaml")) if path.stem not in NO_OBJECTS),
    ROOT / "examples" / "h100-pool.yaml",
]
NAMED = "tessera-runtime-cpu:0.1.0"
STEP_S = 180


@pytest.fixture
def desk(installed: Installation, tmp_path: Path) -> Iterator[Path]:
    """The repository as a user sees it, who has the tools of this cluster and other names for the images."""
    (tmp_path / "charts").symlink_to(ROOT / "charts")
    for path in EXAMPLES.rglob("*"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".yaml", ".json"):
            copy.write_text(path.read_text().replace(NAMED, images.tag("runtime-cpu")))
        elif path.suffix == ".onnx":
            copy.write_bytes(path.read_bytes())
    programs = tmp_path / "bin"
    programs.mkdir()
    values = " ".join(f"--values={path}" for path in installed.values)
    for name, program, options in (
        ("kubectl", kubernetes() / "kubectl", ""),
        ("helm", tool("helm"), values),
    ):
        (programs / name).write_text(f'#!/bin/sh\nexec "{program}" "$@" {options}\n')
        (programs / name).chmod(0o755)
    yield tmp_path
    installed.kubectl("delete", "namespace", "vision", "--ignore-not-found", "--wait=false")
    installed.apply(pool())


@pytest.mark.timeout(300, func_only=True)
def test_the_quick_start_ends_with_the_answer(installed: Installation, desk: Path) -> None:
    said = [run(block, desk, installed) for block in COMMANDS]
    assert any("a 2 with probability 0.9" in each for each in said), said
    assert any("modelservice.tessera.dev/digits condition met" in each for each in said), said


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.stem)
def test_examples_are_what_the_api_takes(installed: Installation, path: Path) -> None:
    installed.kubectl("apply", "--dry-run=server", "--validate=strict", f"--filename={path}")


def run(block: str, folder: Path, system: Installation) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "KUBECONFIG": str(system.cluster.kubeconfig),
        },
        capture_output=True,
        text=True,
        timeout=STEP_S,
    )
    print(block, done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}\n{system.report()}"
    return done.stdout
