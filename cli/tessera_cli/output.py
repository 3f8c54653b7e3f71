"""How results are printed: a table for people, JSON or YAML for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import yaml
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

FORMATS = ("table", "json", "yaml")

WIDEST = 4096
"""Columns where the output is no terminal: a program such as grep wants whole lines."""

stdout = Console(soft_wrap=True)
stderr = Console(stderr=True, soft_wrap=True)


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", "-o", choices=FORMATS, default="table", help="format of what is printed"
    )


def emit(output: str, data: Any, table: Callable[[], Table]) -> None:
    """Print ``data`` (plain values) as ``output``, or the table that shows it."""
    if output == "json":
        json.dump(data, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif output == "yaml":
        yaml.safe_dump(data, sys.stdout, sort_keys=False)
    else:
        stdout.print(_unfolded(table()))


def _unfolded(shown: Table) -> Table:
    if not stdout.is_terminal:
        wide = stdout.options.update(max_width=WIDEST)
        shown.width = Measurement.get(stdout, wide, shown).maximum
    return shown


def fail(verb: str, message: str) -> int:
    """Say on standard error why it did not work; the exit code."""
    print(f"tessera {verb}: {message}", file=sys.stderr)
    return 1
