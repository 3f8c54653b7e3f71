"""`tessera validate` on files as users write and break them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

POOL = """
apiVersion: tessera.dev/v1alpha1
kind: RuntimePool
metadata: {name: cpu}
spec: {node: {resources: {cpu: 4}}, size: {max: 1}}
"""


def test_all_examples_are_valid_and_the_state_among_them_too(tessera, examples: Path) -> None:
    result = tessera("validate", "-f", examples, examples / "cluster")
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    assert len(lines) == len([*examples.glob("*.yaml"), *examples.glob("cluster/*.yaml")])
    assert all(line.rstrip().endswith(": ok") for line in lines)


def test_every_error_of_every_document_is_shown_with_its_place(tessera, tmp_path: Path) -> None:
    broken = POOL.replace("max: 1", "max: -1, mox: 2")
    (tmp_path / "pools.yaml").write_text(f"{POOL}\n---\n---{broken}")
    result = tessera("validate", "-f", "pools.yaml", "-o", "json")
    assert result.returncode == 1
    good, bad = json.loads(result.stdout)
    assert (good["document"], good["valid"], good["errors"]) == (1, True, [])
    assert (bad["file"], bad["document"], bad["valid"]) == ("pools.yaml", 3, False)
    assert {(error["path"], error["found"]) for error in bad["errors"]} == {
        ("spec.size.max", "-1"),
        ("spec.size.mox", "an unknown field"),
    }
    assert all(error["allowed"] for error in bad["errors"])


def test_error_lines_are_not_folded_for_a_pipe(tessera) -> None:
    result = tessera("validate", "-f", "-", stdin=POOL.replace("size", "sizes"))
    assert result.returncode == 1
    assert "standard input (document 1): RuntimePool cpu: 2 errors" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if "spec.sizes" in line]
    assert "did you mean size?" in line


def test_a_file_that_cannot_be_read_does_not_hide_the_others(tessera, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(POOL)
    result = tessera("validate", "-f", "missing.yaml", "-f", "good.yaml")
    assert result.returncode == 1
    assert "missing.yaml: No such file or directory" in result.stdout
    assert "good.yaml (document 1): RuntimePool cpu: ok" in result.stdout


def test_a_state_is_checked_as_a_state(tessera, edited) -> None:
    path = edited(lambda state: state["services"][0]["spec"].pop("slo"))
    result = tessera("validate", "-f", path, "-o", "yaml")
    assert result.returncode == 1
    (state,) = yaml.safe_load(result.stdout)
    assert state["kind"] == "state"
    assert [error["path"] for error in state["errors"]] == ["services[0].spec.slo"]


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 2, column 8: aliases (*name) are not supported"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("{a: 1, b: 2, a: 3}", "line 1, column 14: 'a' is written twice in one mapping"),
        ("kind: [unclosed", "not valid YAML: line 2, column 1"),
        ("at: 2026-13-45", "month must be in 1..12"),
        ("!!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("? [a]\n: 1", "unhashable"),
        ("a: \x01", "not valid YAML"),
        ("", "found no document"),
        ("# nothing\n---\n", "found no document"),
    ],
    ids=["bomb", "deep", "twice", "open", "date", "code", "key", "control", "empty", "comment"],
)
def test_hostile_or_broken_yaml_is_one_clear_error(tessera, tmp_path, text, message) -> None:
    (tmp_path / "x.yaml").write_text(text)
    result = tessera("validate", "-f", "x.yaml")
    assert result.returncode == 1
    assert message in result.stdout
    assert result.stdout.startswith("x.yaml: ")
    assert result.stderr == ""


def test_a_file_over_the_limit_is_refused_unread(tessera, tmp_path: Path) -> None:
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading all of it would not end
    result = tessera("validate", "-f", "big.yaml")
    assert result.returncode == 1
    assert "big.yaml: over the limit of 16 MiB" in result.stdout


def test_bytes_that_are_not_text_are_refused(tessera, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xfa")
    result = tessera("validate", "-f", "x.yaml")
    assert result.returncode == 1
    assert "x.yaml: not valid YAML: 'utf-8' codec" in result.stdout


def test_a_directory_without_documents_is_an_error(tessera, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = tessera("validate", "-f", "empty")
    assert result.returncode == 1
    assert "empty: found 0, allowed: 1 to 10000 files" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["-f"], ["-f", "x.yaml", "-o", "xml"], ["x.yaml"]])
def test_wrong_usage_ends_with_2_and_the_usage(tessera, arguments) -> None:
    result = tessera("validate", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: tessera validate")


def test_standard_input_is_read_only_once(tessera) -> None:
    result = tessera("validate", "-f", "-", "-", stdin=POOL)
    assert result.returncode == 1
    assert "standard input can be read only once" in result.stderr
