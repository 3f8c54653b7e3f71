from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from tessera_cli.main import run as run_command

Result = CompletedProcess[str]
MAIN = "from tessera_cli.main import main; main()"


@pytest.fixture
def tessera(tmp_path: Path, monkeypatch, capsys) -> Callable[..., Result]:
    """Runs the command in an empty directory, within this process: a new one costs a second of imports."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            code = run_command([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse ends this way
            code = end.code
        printed = capsys.readouterr()
        return Result(arguments, code, printed.out, printed.err)

    return run


@pytest.fixture
def tessera_process(tmp_path: Path) -> Callable[..., Result]:
    """Runs the command as a user does; ``program`` may prepare the interpreter first."""

    def run(*arguments: str | Path, stdin: str = "", program: str = MAIN) -> Result:
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


@pytest.fixture
def examples() -> Path:
    return Path(__file__).parents[2] / "examples"


@pytest.fixture
def state_file(examples: Path) -> Path:
    return examples / "cluster" / "state.yaml"


@pytest.fixture
def edited(tmp_path: Path, state_file: Path) -> Callable[[Callable[[dict], None]], Path]:
    """The example state with a change, as a file."""

    def edit(change: Callable[[dict], None]) -> Path:
        state = yaml.safe_load(state_file.read_text())
        change(state)
        path = tmp_path / "edited.yaml"
        path.write_text(yaml.safe_dump(state))
        return path

    return edit
