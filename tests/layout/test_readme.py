"""What the README shows is true: its service decodes, its commands run, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tessera_core.api import ModelService, decode

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].removeprefix(".venv/bin/tessera").strip()
    for line in README.splitlines()
    if line.startswith(".venv/bin/tessera")
]


def test_the_service_in_the_readme_is_valid() -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert isinstance(decode(yaml.safe_load(block)), ModelService)


def test_the_readme_shows_the_verbs_that_are_tested_elsewhere() -> None:
    assert {shlex.split(command)[0] for command in COMMANDS} == {
        "serve",
        "status",
        "plan",
        "cost",
        "simulate",
    }


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.startswith(("plan", "cost", "simulate"))]
)
def test_a_command_of_the_readme_runs(command: str, tmp_path: Path) -> None:
    # What a command writes does not belong into the root.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    found = subprocess.run(
        [sys.executable, "-c", "from tessera_cli.main import main; main()", *shlex.split(command)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("target", re.findall(r"make ([a-z0-9-]+)", README))
def test_a_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_a_link_of_the_readme_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
