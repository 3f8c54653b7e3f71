"""The CRDs on a real API server: they are installed, take every sample, and refuse with the rule that says why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from e2e.api import Api, Refused

CRDS = Path(__file__).parents[1] / "crds"
SAMPLES = sorted((CRDS / "samples").glob("*.yaml"))
SCHEMAS = [yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))]


class Case(NamedTuple):
    """One document of ``samples/rejected``, and what its comment says of it."""

    says: str
    document: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.document['kind']} {self.document['metadata']['name']}"


def cases() -> Iterator[Case]:
    for path in sorted((CRDS / "samples" / "rejected").glob("*.yaml")):
        for text in path.read_text().split("\n---\n")[1:]:
            yield Case(text.partition("\n")[0].removeprefix("# "), yaml.safe_load(text))


CASES = list(cases())
ACCEPTED = "accepted"
REFUSED = [number for number, case in enumerate(CASES) if case.says != ACCEPTED]


class Rule(NamedTuple):
    """One validation rule of one kind."""

    kind: str
    path: str
    """As refusals write it, indices and keys left out: ``spec.members[].weight``."""
    message: str


def rules(kind: str, schema: dict[str, Any], path: str = "") -> Iterator[Rule]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield Rule(kind, path or "<nil>", rule["message"])
    for name, inner in schema.get("properties", {}).items():
        yield from rules(kind, inner, f"{path}.{name}" if path else name)
    for part in ("items", "additionalProperties"):
        if part in schema:
            yield from rules(kind, schema[part], f"{path}[]")


def refused_by(rule: Rule, case: Case, words: str) -> bool:
    """Whether the server's ``words`` against a case are those of ``rule``."""
    paths = {
        re.sub(r"\[[^\]]*\]", "[]", path) for path in re.findall(r"(\S+): Invalid value", words)
    }
    return rule.kind == case.document["kind"] and rule.path in paths and rule.message in words


def refusal(api: Api, number: int) -> str:
    """What the server says against a case; an accepted one just before it is what it changes."""
    case, before = CASES[number], CASES[number - 1] if number else None
    changes = before is not None and before.says == ACCEPTED and before.name == case.name
    if changes and before is not None:
        api.create(before.document)
    change = api.replace_status if "status" in case.document else api.replace
    try:
        (change if changes else api.create)(case.document)
    except Refused as refused:
        return str(refused)
    finally:
        if changes:
            api.delete(case.document)
    raise AssertionError(f"{case.name} was taken")


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_is_taken_and_read_back_as_it_was_written(api: Api, path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    created = api.create(document)
    assert covers(created["spec"], document["spec"])
    api.delete(document)


def covers(found: Any, wanted: Any) -> bool:
    """Whether ``found`` has everything of ``wanted``; the server adds defaults."""
    if isinstance(wanted, dict):
        return all(key in found and covers(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(covers, found, wanted))
    return bool(found == wanted)


@pytest.mark.parametrize("number", REFUSED, ids=lambda number: CASES[number].name)
def test_a_wrong_document_is_refused_with_the_reason(api: Api, number: int) -> None:
    assert CASES[number].says in refusal(api, number)


def test_every_rule_of_every_kind_refuses_some_sample(api: Api) -> None:
    words = {number: refusal(api, number) for number in REFUSED}
    unshown = {
        rule
        for crd in SCHEMAS
        for rule in rules(
            crd["spec"]["names"]["kind"], crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        )
        if not any(refused_by(rule, CASES[number], said) for number, said in words.items())
    }
    assert unshown == set()


def test_kinds_have_short_names_a_category_and_columns(api: Api) -> None:
    for schema in SCHEMAS:
        names = schema["spec"]["names"]
        listed = api.table(names["plural"])
        columns = [column["name"] for column in listed["columnDefinitions"]]
        assert columns[0] == "Name"
        assert "Age" in columns
        assert len(names["shortNames"]) == 1
        assert names["categories"] == ["tessera"]
