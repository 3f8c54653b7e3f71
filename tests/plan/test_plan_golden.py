"""Whole plans of whole states: ``golden/NAME.input.yaml`` gives ``golden/NAME.output.yaml``.

The outputs are for reading in review: a change of the planner shows as a change of plans. Predictions are
compared to one percent, decisions exactly.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera_core.plan import diff, explain, plan, plan_to_dict, state_from_dict

GOLDEN = Path(__file__).parent / "golden"
_FIGURES = re.compile(r"\d+\.\d+|\d{3,}")
"""Predictions inside of sentences."""
INPUTS = sorted(GOLDEN.glob("*.input.yaml"))


def shown(document: object) -> dict[str, Any]:
    state = state_from_dict(document)
    decided = plan(state)
    change = diff(decided, state)
    return {
        **plan_to_dict(decided),
        "change": {
            "added": len(change.added),
            "removed": len(change.removed),
            "changed": len(change.changed),
            "recut": [list(each) for each in change.recut],
        },
        "explanation": {each.service: list(each.lines) for each in explain(decided, state)},
    }


def same(found: object, expected: object) -> bool:
    match found, expected:
        case dict(), dict():
            return found.keys() == expected.keys() and all(
                same(found[key], expected[key]) for key in found
            )
        case list(), list():
            return len(found) == len(expected) and all(map(same, found, expected))
        case float(), float() | int():
            return found == pytest.approx(expected, rel=0.01)
        case str(), str():
            return _FIGURES.sub("#", found) == _FIGURES.sub("#", expected)
    return found == expected


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name.removesuffix(".input.yaml"))
def test_the_plan_is_the_golden_one(path: Path, update_golden: bool) -> None:
    output = path.with_name(path.name.replace(".input.", ".output."))
    found = shown(yaml.safe_load(path.read_text()))
    if update_golden:
        output.write_text(yaml.safe_dump(found, sort_keys=False, width=110))
    expected = yaml.safe_load(output.read_text())
    for key in expected:
        # The explanation repeats the predictions in words; it is there to be read.
        if key != "explanation":
            assert same(found[key], expected[key]), f"{key}: {found[key]}"
    assert found["explanation"].keys() == expected["explanation"].keys()


def test_there_are_golden_plans() -> None:
    assert len(INPUTS) >= 6
