"""One printed table for each case."""

from __future__ import annotations

from collections.abc import Sequence

from bench.harness import Row
from bench.lines import CASE, WHO, Line
from bench.preprocess.judged import FIGURES
from rich.table import Table


def tables(rows: Sequence[Row], found: Sequence[Line]) -> list[Table]:
    every = [*rows, *found]
    cases = dict.fromkeys(row.labels[CASE] for row in every)
    return [_table(case, [row for row in every if row.labels[CASE] == case]) for case in cases]


def _table(case: str, rows: Sequence[Row]) -> Table:
    present = {name for row in rows for name in row.medians}
    columns = {name: of for name, of in FIGURES.items() if name in present}
    drawn = Table(title=case)
    drawn.add_column("")
    for title, _ in columns.values():
        drawn.add_column(title, justify="right")
    drawn.add_column("to reach")
    for row in rows:
        medians = row.medians
        drawn.add_row(
            ", ".join(filter(None, (row.labels[WHO], row.labels.get("load")))),
            *(
                form.format(medians[name]) if name in medians else ""
                for name, (_, form) in columns.items()
            ),
            row.verdict if isinstance(row, Line) else "",
        )
    return drawn
