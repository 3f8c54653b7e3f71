"""The soak: what counts as growth or a leak, and a short run on the real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.soak import Sample, findings, main, slope_per_min

from tessera_cli.loadgen import Summary


def load(failed: int = 0, lost: int = 0) -> Summary:
    return Summary(100, 10.0, 1.0, 2.0, 3.0, 1.0, failed, lost, 0, {"200": 100})


def at(seconds: float, mib: float = 50.0, descriptors: int = 9, shared: float = 1.0) -> Sample:
    return Sample(seconds, {"dispatch 7": mib, "worker 8": 20.0}, descriptors, shared)


def steady(slope_mib_per_min: float, minutes: float = 20.0) -> list[Sample]:
    return [at(s, 50.0 + slope_mib_per_min * s / 60) for s in range(0, int(minutes * 60), 10)]


def test_the_slope_is_not_that_of_single_steps() -> None:
    times = list(range(0, 600, 10))
    assert slope_per_min(times, [t / 60 for t in times]) == pytest.approx(1.0)
    stepped = [10.0] * 59 + [99.0]
    assert slope_per_min(times, stepped) == 0
    assert slope_per_min([1.0], [5.0]) == 0


def test_steady_memory_is_well() -> None:
    assert findings(at(0), steady(0.1), at(0), load()) == []


def test_growing_memory_is_found_and_named() -> None:
    (wrong,) = findings(at(0), steady(0.5), at(0), load())
    assert "dispatch 7 grows by 0.50 MiB a minute" in wrong


def test_growth_while_heaps_fill_is_none() -> None:
    filling = [at(s, min(80.0, 50.0 + s)) for s in range(0, 1200, 10)]
    assert findings(at(0), filling, at(0), load()) == []


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (at(0, descriptors=10), "descriptors: 9 before, 10 after"),
        (at(0, shared=9.0), "shared memory"),
        (Sample(0, {"dispatch 7": 50.0}, 9, 1.0), "processes changed"),
    ],
)
def test_what_is_left_over_is_found(after: Sample, said: str) -> None:
    (wrong,) = findings(at(0), steady(0.0), after, load())
    assert said in wrong


def test_failed_requests_are_found() -> None:
    (wrong,) = findings(at(0), steady(0.0), at(0), load(failed=2, lost=1))
    assert wrong.startswith("2 requests failed, 1 were lost")


def test_a_short_soak_of_the_real_server(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    argv = ["--quick", "--work", "identity", "--rate", "100", "--minutes", "0.05"]
    assert main([*argv, "--write", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["findings"] == []
    assert written["load"]["requests"] > 100
    assert len(written["samples"]) > 4
