"""docs/rbac.md says what the chart grants: its tables are those of charts/tessera/files/rbac.yaml.

Run as a program, this writes the tables anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "rbac.md"
RIGHTS = yaml.safe_load((ROOT / "charts" / "tessera" / "files" / "rbac.yaml").read_text())
START, END = "<!-- tables: start -->\n", "<!-- tables: end -->\n"
CORE = "core"
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete")


def tables() -> str:
    parts: dict[str, list[str]] = {}
    for role in RIGHTS:
        holder = f"Service account `{role['account']}`" if "account" in role else "For people"
        parts.setdefault(holder, []).extend(rows(role))
    head = "| role | resource | verb | why |\n|---|---|---|---|\n"
    return "\n".join(f"### {holder}\n\n{head}" + "".join(lines) for holder, lines in parts.items())


def rows(role: dict[str, Any]) -> Iterator[str]:
    own = f"namespace `{role['in']}`" if "in" in role else "release's namespace"
    where = "everywhere" if role["scope"] == "cluster" else own
    notes = [where]
    if "when" in role:
        notes.append(f"`{role['when']}`")
    if "kept" in role:
        notes.append("while the hook runs")
    if "aggregate" in role:
        notes.append(f"in {', '.join(f'`{each}`' for each in role['aggregate'])}")
    name = f"`{role['name']}` ({'; '.join(notes)})"
    for rule in role["rules"]:
        resources = ", ".join(f"`{each}`" for each in rule["resources"])
        resources += f" named `{rule['named']}`" if "named" in rule else ""
        for verb, why in rule["verbs"].items():
            yield f"| {name} | {resources} ({rule['group'] or CORE}) | {verb} | {why} |\n"


def test_the_tables_are_those_of_the_rights() -> None:
    written = DOCUMENT.read_text().partition(START)[2].partition(END)[0]
    assert written.strip() == tables().strip(), f"run python {Path(__file__).relative_to(ROOT)}"


@pytest.mark.parametrize("role", RIGHTS, ids=lambda role: f"{role['name']}-{role['scope']}")
def test_every_verb_has_a_reason_and_none_is_a_wildcard(role: dict[str, Any]) -> None:
    for rule in role["rules"]:
        assert "*" not in (rule["group"], *rule["resources"])
        for verb, why in rule["verbs"].items():
            assert verb in VERBS
            assert len(why) > 5


def test_only_people_and_no_account_may_read_secrets() -> None:
    readers = [role for role in RIGHTS for rule in role["rules"] if "secrets" in rule["resources"]]
    assert [role["name"] for role in readers] == ["tessera-model-credentials"]
    assert all("account" not in role and "aggregate" not in role for role in readers)


def main() -> None:
    before, _, rest = DOCUMENT.read_text().partition(START)
    DOCUMENT.write_text(f"{before}{START}\n{tables()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
