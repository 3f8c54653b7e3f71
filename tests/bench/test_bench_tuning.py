"""The bench of tuning: a short run on the real server, and what it concludes from outcomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.tuning.main import UNTUNED, chosen, compiled_rows, main, paired, ratios, sizes

from tessera_runtime.target import TuneCell, TuneOutcome


def outcome(variant: str, *p99s: float, error: float = 0.0) -> TuneOutcome:
    """On shares one after the other, each beside an untuned model of 10 ms."""
    cells = tuple(
        TuneCell(device, 1, 1, p99 / 2, p99, 100.0, 5.0, 10.0, 100.0, 5, 5 * (p99 < 10.0), 0)
        for device, p99 in enumerate(p99s)
    )
    return TuneOutcome(variant, "", "engine", "", error, cells)


@pytest.mark.parametrize(
    ("cores", "found"), [(1, (1,)), (3, (1, 2, 3)), (4, (1, 2, 4)), (64, (1, 2, 4))]
)
def test_shares_are_of_this_machine(cores: int, found: tuple[int, ...]) -> None:
    assert sizes(cores) == found


def test_the_choice_is_by_the_share_that_was_tuned_on() -> None:
    shares = (1, 2)
    found = [outcome("openvino/fp32", 5.0, 9.0), outcome("torch/bf16", 8.0, 4.0)]
    for tuned, variant in ((1, "openvino/fp32"), (2, "torch/bf16")):
        assert chosen((each, paired(each, shares, tuned)) for each in found) == variant


def test_what_is_not_faster_or_differs_is_not_chosen() -> None:
    found = [outcome("openvino/fp32", 10.0), outcome("torch/bf16", 1.0, error=1.0)]
    assert chosen((each, paired(each, (1,), 1)) for each in found) == UNTUNED


def test_ratios_are_of_one_share() -> None:
    cells = paired(outcome("torch/bf16", 5.0, 20.0), (1, 2), 1)
    assert ratios(cells, 1.0) == {"p50": 0.5, "p99": 0.5, "throughput": 1.0}
    assert ratios(cells, 2.0) == {"p50": 2.0, "p99": 2.0, "throughput": 1.0}


def test_what_was_compiled_for_one_share_stands_beside_untuned_on_each() -> None:
    built = outcome("inductor/fp32", 5.0, 20.0)
    rows = list(compiled_rows("cnn", built, (2, 1)))
    assert [(row.labels["tuned"], row.labels["served"]) for row in rows] == [("2", "2"), ("2", "1")]
    assert [row.medians["p99"] for row in rows] == [0.5, 2.0]


def test_what_failed_to_compile_has_no_figures() -> None:
    failed = TuneOutcome("inductor/fp32", "", "", "no compiler", 0.0, ())
    assert not list(compiled_rows("cnn", failed, (1,)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_run_measures_every_share_and_every_number_of_workers(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    assert main(["--quick", f"--write={path}"]) == 0
    rows = json.loads(path.read_text())["rows"]
    shares = {(row["tuned"], row["served"]) for row in rows if row["part"] == "shares"}
    of_workers = [row for row in rows if row["part"] == "workers"]
    assert len(shares) == len(of_workers) ** 2
    assert all(row["medians"]["seconds"] > 0 for row in of_workers)
