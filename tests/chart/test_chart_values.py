"""values.yaml, its schema and the table in the README say the same.

Run as a program, this writes the table anew.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tessera"
README = CHART / "README.md"
TEXT = (CHART / "values.yaml").read_text()
VALUES = yaml.safe_load(TEXT)
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
START, END = "<!-- values: start -->\n", "<!-- values: end -->\n"
FREE = (
    "resources",
    "affinity",
    "nodeSelector",
    "podAnnotations",
    "modelPrefixes",
    "labels",
    "annotations",
)
"""Maps whose keys are the user's."""


def described() -> Iterator[tuple[str, str]]:
    """Keys of values.yaml as paths, with the comment above each."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in TEXT.splitlines():
        bare = line.lstrip()
        if not bare:
            comment = []
        elif bare.startswith("#"):
            comment.append(bare.removeprefix("#").strip())
        elif not bare.startswith("- "):
            depth, key = len(line) - len(bare), bare.partition(":")[0]
            path = [each for each in path if each[0] < depth]
            path.append((depth, key))
            yield ".".join(name for _, name in path), " ".join(comment)
            comment = []


COMMENTS = dict(described())


def leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict) and value and key not in FREE:
            yield from leaves(value, here)
        else:
            yield here, value


def table() -> str:
    rows = ["| value | default | |\n|---|---|---|\n"]
    for path, value in leaves(VALUES):
        shown = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
        rows.append(f"| `{path}` | `{shown}` | {words(path)} |\n")
    return "".join(rows)


def words(path: str) -> str:
    return COMMENTS[path].replace("|", "\\|")


def test_the_values_are_valid() -> None:
    jsonschema.validate(VALUES, SCHEMA)


@pytest.mark.parametrize("path", sorted((CHART / "ci").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_valid(path: Path) -> None:
    def without_nulls(value: Any) -> Any:
        return (
            {key: without_nulls(each) for key, each in value.items() if each is not None}
            if isinstance(value, dict)
            else value
        )

    jsonschema.validate(without_nulls(yaml.safe_load(path.read_text())), SCHEMA)


def test_the_schema_knows_every_value_and_no_other() -> None:
    absent = {path for path, value in leaves(VALUES) if value is None}

    def keys(schema: dict[str, Any], path: str = "") -> Iterator[str]:
        for name, inner in schema.get("properties", {}).items():
            here = f"{path}.{name}" if path else name
            if inner.get("properties") and here not in absent:
                yield from keys(inner, here)
            else:
                yield here

    assert set(keys(SCHEMA)) - {"global"} == {path for path, _ in leaves(VALUES)} - {
        "activator.resources"
    } | {"activator.resources.server", "activator.resources.agent"}


def test_unknown_keys_are_refused_on_every_level() -> None:
    def objects(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if "properties" in schema:
            yield schema
            for inner in schema["properties"].values():
                yield from objects(inner)
        if "items" in schema:
            yield from objects(schema["items"])

    assert all(each["additionalProperties"] is False for each in objects(SCHEMA))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("operator.replicas", "two"),
        ("operator.replica", 2),
        ("image.operator.digest", "sha256:12"),
        ("image.runtime.pullPolicy", "Sometimes"),
        ("config.debounce", "fast"),
        ("config.headroom", 1.2),
        ("config.modelPrefixes", {"vision": ["models/"]}),
        ("networkPolicy.modelStores.cidrs", ["169.254.0.0/16"]),
        ("networkPolicy.apiServer.ports", [0]),
        ("monitoring.prometheusRule.objective", "99"),
        ("pools", [{"name": "cpu"}]),
        ("pools", [{"name": "CPU", "spec": {}}]),
        ("runtime.agentArgs", ["allow-code"]),
        ("runtime.serverArgs", ["workers-unconfined"]),
        ("runtime.partitionerArgs", ["--api-server=https://elsewhere"]),
        ("runtime.tls", {"clientCASecretName": "clients"}),
        ("runtime.tls.secretName", "Of the runtime"),
        ("runtime.tls.peerName", ""),
    ],
)
def test_what_makes_no_sense_is_refused(path: str, value: object) -> None:
    changed = copy.deepcopy(VALUES)
    *folders, last = path.split(".")
    place = changed
    for each in folders:
        place = place[each]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError) as refused:
        jsonschema.validate(changed, SCHEMA)
    assert ".".join(str(each) for each in refused.value.absolute_path).startswith(
        path.rpartition(".")[0]
    )


def test_every_value_has_a_comment() -> None:
    assert [path for path, _ in leaves(VALUES) if not COMMENTS[path]] == []


def test_the_readme_lists_every_value() -> None:
    written = README.read_text().partition(START)[2].partition(END)[0]
    assert written.strip() == table().strip(), f"run python {Path(__file__).relative_to(ROOT)}"


def main() -> None:
    before, _, rest = README.read_text().partition(START)
    README.write_text(f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
