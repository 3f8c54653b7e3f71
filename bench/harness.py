"""What every benchmark of this folder does the same way: options, repeats, medians, one table, one JSON file.

Method: variants alternate within a round and rounds are repeated, so that a slow minute of the machine hits
all of them; medians over the rounds are shown, every repeat is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table, measured once per round."""

    labels: dict[str, str]
    measure: Callable[[], Figures]


@dataclass(frozen=True, slots=True)
class Row:
    """A variant with all its repeats, in the order of the rounds."""

    labels: dict[str, str]
    repeats: tuple[Figures, ...]

    @property
    def medians(self) -> Figures:
        """Empty without repeats."""
        return {
            name: statistics.median(repeat[name] for repeat in self.repeats)
            for name in (self.repeats[0] if self.repeats else ())
        }

    def as_dict(self) -> dict[str, Any]:
        return {**self.labels, "medians": self.medians, "repeats": list(self.repeats)}


def alternate(
    variants: Sequence[Variant], rounds: int, said: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """Measure all variants once per round; every other round goes backwards, so that drift cancels."""
    found: list[list[Figures]] = [[] for _ in variants]
    for turn in range(rounds):
        order = list(enumerate(variants))
        for index, variant in reversed(order) if turn % 2 else order:
            said(f"round {turn + 1}/{rounds}: {' '.join(variant.labels.values())}")
            found[index].append(variant.measure())
    return [
        Row(variant.labels, tuple(repeats))
        for variant, repeats in zip(variants, found, strict=True)
    ]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions; packages that are not installed are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="one short round, under a minute")
    parser.add_argument("--rounds", type=int, help="repeats of everything")
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="where to write the JSON (default: bench/results/NAME.json; with --quick: nowhere)",
    )
    parser.add_argument(
        "--date",
        default=None,
        metavar="RFC3339",
        help="date to write into the JSON (default: the clock)",
    )
    return parser


def write_results(
    name: str, chosen: argparse.Namespace, facts: dict[str, Any], rows: Sequence[Row]
) -> Path | None:
    """Write the JSON of a benchmark; the path, or None for a quick run that was not to be kept."""
    path = chosen.write or (None if chosen.quick else RESULTS / f"{name}.json")
    if path is None:
        return None
    document = {
        "benchmark": name,
        "date": chosen.date or datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        **facts,
        "rows": [row.as_dict() for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_finite(document), indent=1) + "\n")
    return Path(path)


def _finite(value: Any) -> Any:
    """JSON has no NaN: what was not measured is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
