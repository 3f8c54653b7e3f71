"""The look of the tables: numbers stay whole, names are folded where the terminal is narrow."""

from __future__ import annotations

from rich.table import Table


def table(
    title: str, names: tuple[str, ...], numbers: tuple[str, ...], remarks: tuple[str, ...] = ()
) -> Table:
    """An empty table with columns of names, then of numbers, then of remarks."""
    empty = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in names:
        empty.add_column(heading, overflow="fold")
    for heading in numbers:
        empty.add_column(heading, justify="right", no_wrap=True)
    for heading in remarks:
        empty.add_column(heading, overflow="fold")
    return empty
