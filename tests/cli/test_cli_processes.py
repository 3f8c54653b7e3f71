"""The offline verbs as processes: exit codes, the core-only install, closed pipes, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = "from tessera_cli.main import main; main()"

CORE_ONLY = """
import sys
from importlib.abc import MetaPathFinder

ALLOWED = {"tessera_core", "tessera_cli", "numpy", "yaml", "_yaml", "rich", "pygments", "markdown_it"}
STANDARD = sys.stdlib_module_names | set(sys.builtin_module_names)

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in STANDARD and not top.startswith("_"):
            raise ModuleNotFoundError(f"{name} is not part of a core install", name=top)

sys.meta_path.insert(0, Refuse())
from tessera_cli.main import main
main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("validate", "-f", "{state}"),
        ("plan", "-f", "{state}", "--explain", "--diff"),
        ("simulate", "-f", "{state}", "--requests", "1000"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_offline_verbs_run_on_a_core_only_install(
    tessera_process, state_file, arguments
) -> None:
    given = [argument.format(state=state_file) for argument in arguments]
    result = tessera_process(*given, program=CORE_ONLY)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("verb", ["validate", "plan", "simulate"])
def test_wrong_usage_is_2_and_a_missing_file_is_1(tessera_process, verb: str) -> None:
    usage = tessera_process(verb)
    assert usage.returncode == 2
    assert usage.stderr.startswith(f"usage: tessera {verb}")
    missing = tessera_process(verb, "-f", "none.yaml")
    assert missing.returncode == 1
    assert "none.yaml: No such file or directory" in missing.stdout + missing.stderr


def test_a_state_may_be_piped_in(tessera_process, state_file: Path) -> None:
    piped = tessera_process("plan", "-f", "-", stdin=state_file.read_text())
    assert piped.returncode == 0
    assert piped.stdout == tessera_process("plan", "-f", state_file).stdout


def test_without_matplotlib_a_plot_is_refused_before_the_work(tessera_process, state_file) -> None:
    without = f"import sys; sys.modules['matplotlib'] = None; {MAIN}"
    result = tessera_process("simulate", "-f", state_file, "--plot", "x.png", program=without)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "--plot: matplotlib is not installed" in result.stderr


@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_a_reader_that_leaves_ends_the_command_quietly(state_file: Path, output: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [sys.executable, "-c", MAIN, "plan", "-f", state_file, "-o", output],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert result.stderr == b""
    assert result.returncode == 1


def test_ctrl_c_is_quiet(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.yaml"
    os.mkfifo(fifo)
    with (
        subprocess.Popen(
            [sys.executable, "-c", MAIN, "validate", "-f", fifo], stderr=subprocess.PIPE
        ) as process,
        fifo.open("wb"),
    ):  # opens when the command opens its end, so it is at work
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode == 130
