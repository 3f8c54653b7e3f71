"""PREBA simulated: slices behind a host that decodes, and batches that wait beside batches that do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bench.preprocess import batching, paper, preba, simulated
from bench.preprocess.preba import EFFICIENCY, Host, Node


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path: Path = tmp_path_factory.mktemp("simulated") / "simulated.json"
    assert simulated.main(["--quick", "--write", str(path)]) == 0
    return json.loads(path.read_text())


def test_laws_go_through_the_knee_and_reach_nine_tenths_there() -> None:
    for law in paper.LAWS.values():
        assert law(35.0)(1.0) == pytest.approx(35.0)
    assert 1 / paper.line(35.0)(1.0) == pytest.approx(0.9 * 1e6 / paper.line(35.0)(1e6), rel=1e-4)
    assert paper.floor(35.0)(0.01) == 35.0


def test_the_whole_gpu_carries_what_seven_slices_do() -> None:
    for model in paper.IMAGES:
        small, large = model.knees["7 x 1g"], model.knees["1 x 7g"]
        whole_ms = paper.knee_ms(model.knee_ms, "1 x 7g", large / small)
        assert large / whole_ms == pytest.approx(7 * small / model.knee_ms)


def test_cores_decode_in_turn() -> None:
    times = np.array([0.0, 1.0, 2.0, 50.0])
    assert np.array_equal(Host().decoded_ms(times), times)
    decoded = Host(2, 9.0).decoded_ms(times)
    assert decoded.tolist() == [10.0, 11.0, 20.0, 60.0]
    assert Host(2, 9.0).limit_per_s == 2e3 * EFFICIENCY / 9.0


def test_no_more_is_carried_than_cores_and_slices_can() -> None:
    model = paper.IMAGES[0]
    for cores in (0, 16):
        node = Node(model, "line", Host(cores, 6.0), 2_000)
        carried = node.carried_per_s()
        limit = min(node.slices_per_s, node.host.limit_per_s)
        assert 0.5 * limit < carried <= 1.1 * limit
        assert node.p99_ms(carried) <= node.slo_ms


def test_cores_and_faster_decoding_recover_more(written: dict) -> None:
    for each in written["preba"]["models"]:
        assert each["throughput"] == pytest.approx(1 / (1 - each["lost"]))
        full, scaled = (list(each["recovered"][name].values()) for name in ("full size", "scaled"))
        assert full == sorted(full)
        assert scaled == sorted(scaled)
        assert all(ours >= theirs for ours, theirs in zip(scaled, full, strict=True))
    table = preba.lines(written["preba"])
    assert len({len(line) for line in table[2:6]}) == 1


def test_all_ways_of_batching_are_judged_on_every_case(written: dict) -> None:
    rows = written["batching"]["rows"]
    cases = {(row["kind"], row["cut"], row["law"], row["arrivals"]) for row in rows}
    assert len(cases) == (1 + len(paper.AUDIO)) * len(paper.SLICES) * len(paper.LAWS) * 2
    for case in cases:
        ways = {
            row["way"]
            for row in rows
            if (row["kind"], row["cut"], row["law"], row["arrivals"]) == case
        }
        assert {batching.OURS, batching.AT_ONCE, batching.WAITS} <= ways
        assert (case[0] in paper.AUDIO) == (batching.APART in ways)
    for row in rows:
        assert 0 <= row["carried"] <= 1.2
        for load in row["loads"].values():
            assert 0 <= load["within_slo"] <= 1 <= load["mean_batch"]
            assert load["p99_ms"] >= load["mean_ms"] > 0
    table = batching.lines(written["batching"])
    assert sum(row["kind"] in line for row in rows[:1] for line in table) >= 3


def test_both_queues_serve_the_same_requests_of_a_case() -> None:
    case = next(each for each in batching.cases(400) if each.kind == "audio")
    for way in case.ways():
        served = case.run(way, 0.5)
        assert (served.batches >= 0).all()
        assert served.batch_sizes.sum() == 400
    shares = case.shares
    assert shares.sum() == pytest.approx(1)
    assert len(shares) == len(case.sizes) == 14
