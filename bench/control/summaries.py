"""All jobs in a line: the worst and the middle of what their own lines say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import geometric_mean, median

from bench.control import capacities, loads
from bench.control.lines import line
from bench.lines import CASE, Line

ALL = "all jobs"


def summaries(lines: Sequence[Line]) -> Iterator[Line]:
    """Of the tables that have a line for each job; of others nothing."""
    for case in dict.fromkeys(each.labels[CASE] for each in lines):
        of_case = [each for each in lines if each.labels[CASE] == case]
        if case.startswith(loads.CASE):
            yield _of_load(case, of_case)
        elif case.startswith(capacities.CASE):
            yield _of_capacity(case, of_case)
        elif case.startswith(capacities.ABLATION):
            yield _of_ablation(case, of_case)


def _of_load(case: str, lines: Sequence[Line]) -> Line:
    return line(
        f"{loads.CASE}, {ALL}",
        f"load {case.removeprefix(loads.CASE).strip(', ')}",
        {
            "least_over_oracle": min(_all(lines, "over_oracle")),
            "median_over_oracle": median(_all(lines, "over_oracle")),
            "least_over_dnnscaler": min(_all(lines, "over_dnnscaler")),
            "median_over_dnnscaler": median(_all(lines, "over_dnnscaler")),
            "least_over_clipper": min(_all(lines, "over_clipper")),
            "median_over_clipper": median(_all(lines, "over_clipper")),
            "least_from_start": min(_all(lines, "from_start")),
            "most_below_from_start": max(_all(lines, "below_from_start")),
            "missing": float(sum(bool(each.missed) for each in lines)),
        },
    )


def _of_capacity(case: str, lines: Sequence[Line]) -> Line:
    figures = {}
    for name in ("times_dnnscaler", "times_clipper"):
        figures[f"least_{name}"] = min(_all(lines, name))
        figures[f"mean_{name}"] = geometric_mean(_all(lines, name))
    for name in ("closed_dnnscaler_times_clipper", "unequal_paths"):
        values = _all(lines, name)
        if values:
            figures |= {f"average_{name}": sum(values) / len(values), f"most_{name}": max(values)}
    return line(f"{capacities.CASE}, {ALL}", case.rpartition(", ")[2], figures)


def _of_ablation(case: str, lines: Sequence[Line]) -> Line:
    return line(
        f"{capacities.ABLATION}, {ALL}",
        case.rpartition(", ")[2],
        {
            f"mean_{name}": median(_all(lines, name))
            for name in (
                "batching",
                "instances",
                "policy_batching",
                "policy_instances",
                "policy_joint",
            )
        }
        | {
            "mean_joint_gain": geometric_mean(_all(lines, "joint_gain")),
            "most_joint_gain": max(_all(lines, "joint_gain")),
        },
    )


def _all(lines: Sequence[Line], figure: str) -> list[float]:
    medians = [each.medians for each in lines]
    return [each[figure] for each in medians if figure in each]
