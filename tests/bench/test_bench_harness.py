"""The benchmarks' shared parts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.harness import Figures, Row, Variant, alternate, machine, write_results


def test_variants_alternate_and_keep_every_repeat() -> None:
    seen: list[str] = []

    def variant(name: str) -> Variant:
        def measure() -> Figures:
            seen.append(name)
            return {"rate_per_s": float(len(seen))}

        return Variant({"name": name}, measure)

    rows = alternate([variant("a"), variant("b")], rounds=3)
    assert "".join(seen) == "abbaab"
    assert [row.labels["name"] for row in rows] == ["a", "b"]
    assert [r["rate_per_s"] for r in rows[0].repeats] == [1, 4, 5]
    assert rows[0].medians == {"rate_per_s": 4}


def chosen(quick: bool, write: Path | None) -> argparse.Namespace:
    return argparse.Namespace(quick=quick, write=write, date="2026-01-02T03:04:05+00:00")


def test_results_are_json_with_machine_date_and_repeats(tmp_path: Path) -> None:
    rows = alternate([Variant({"name": "a"}, lambda: {"x": 1.0, "none": float("nan")})], 2)
    path = tmp_path / "results" / "name.json"
    assert write_results("name", chosen(False, path), {"versions": {}}, rows) == path
    document = json.loads(path.read_text())
    assert document["date"] == "2026-01-02T03:04:05+00:00"
    assert document["machine"]["cores"] == machine()["cores"]
    assert document["rows"][0]["repeats"] == [{"x": 1.0, "none": None}] * 2
    assert document["rows"][0]["medians"]["x"] == 1.0


def test_a_quick_run_writes_nothing_unless_told_where(tmp_path: Path) -> None:
    assert write_results("name", chosen(True, None), {}, []) is None
    assert write_results("name", chosen(True, tmp_path / "x.json"), {}, []) == tmp_path / "x.json"


def test_a_row_that_was_not_measured_has_no_medians() -> None:
    assert Row({"name": "a"}, ()).medians == {}
