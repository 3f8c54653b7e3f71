"""ParvaGPU's tables and the slice baselines, on a small folder in the artefact's format."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from bench.planner.parvagpu import DataMissing, cluster, copies_of, data_folder, read
from bench.planner.slice_baselines import (
    allowed,
    best_batch_only,
    first_fit,
    model_per_gpu,
    parvagpu,
)
from bench.planner.tables import (
    PROFILE_NAMES,
    Deployment,
    Load,
    Point,
    Segment,
    Unplaceable,
    batch_times,
    servers_of,
)
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.gpu.geometry import place
from tessera_core.gpu.tables import A100_80
from tessera_core.perf import Neighbours

HEADER = "Mig instance,Batch size,Workload Number,Throughput,Latency\n"


def write(folder: Path, profiles: dict[str, str], scenarios: str = "") -> Path:
    (folder / "profiles").mkdir()
    for model, rows in profiles.items():
        (folder / "profiles" / f"{model}.csv").write_text(HEADER + rows)
    (folder / "scenarios.csv").write_text("scenario,model,rate_per_s,slo_ms\n" + scenarios)
    return folder


def test_throughput_is_of_all_processes_and_latency_in_ms(tmp_path: Path) -> None:
    rows = "1,4,1,95.206,0.042\n1,4,2,61.5,0.065\n"
    data = read(write(tmp_path, {"bert": rows}, "S1,bert,19,6434\n"))
    one, two = data.profiles["bert"]
    assert one == Point(1, 4, 1, 95.206, 42.0)
    assert two == Point(1, 4, 2, 123.0, 65.0)
    assert data.scenarios == {"S1": (Load("bert", "bert", 19.0, 6434.0),)}


def test_out_of_memory_and_processes_beyond_the_third_are_left_out(tmp_path: Path) -> None:
    rows = "1,4,3,10,0.1\n1,4,4,10,0.1\n1,8,1,0,0\n"
    assert [p.processes for p in read(write(tmp_path, {"m": rows})).profiles["m"]] == [3]


def test_clean_leaves_out_what_contradicts_its_neighbours(tmp_path: Path) -> None:
    rows = "3,64,1,10,0.1\n3,128,1,10,0.1\n3,256,1,10,0.1\n"
    folder = write(tmp_path, {"bert": rows, "densenet169": rows, "vgg16": rows})
    batches = {
        model: [point.batch for point in points]
        for model, points in read(folder, clean=True).profiles.items()
    }
    assert batches == {"bert": [64], "densenet169": [64, 256], "vgg16": [64, 128, 256]}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("5,1,1,10,0.1\n", r"m\.csv:2\.Mig instance: must be one of \(1, 2, 3, 4, 7\), found 5"),
        ("1,1,1,10,0.1\n1,2,1,x,0.1\n", r"m\.csv:3\.Throughput: .* found 'x'"),
        ("1,1,1,-1,0.1\n", r"m\.csv:2\.Throughput: .* found '-1'"),
        ("1,1,1\n", r"m\.csv:2\.Throughput: .* found None"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, rows: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(write(tmp_path, {"m": rows}))


def test_a_file_without_the_columns_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"m": "1,1,1,10,0.1\n"})
    (tmp_path / "profiles" / "m.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"m\.csv: must have the columns Mig instance"):
        read(tmp_path)


def test_a_scenario_of_an_unmeasured_model_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, {"m": "1,1,1,10,0.1\n"}, "S1,other,1,1\n")
    with pytest.raises(ValueError, match=r"scenarios\.csv:2\.model: found 'other', measured are m"):
        read(folder)


def test_the_folder_comes_from_the_argument_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARVAGPU_DATA", raising=False)
    with pytest.raises(DataMissing, match="set PARVAGPU_DATA"):
        data_folder()
    with pytest.raises(DataMissing, match="has no folder 'profiles'"):
        data_folder(tmp_path)
    write(tmp_path, {})
    monkeypatch.setenv("PARVAGPU_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    with pytest.raises(DataMissing, match=r"no \*\.csv"):
        read(tmp_path)


def test_cluster_facts_carry_every_point_and_load(tmp_path: Path) -> None:
    rows = "1,4,1,100,0.04\n7,4,1,400,0.01\n7,4,2,250,0.016\n"
    data = read(write(tmp_path, {"m": rows}, "S1,m,300,120.5\n"))
    state = cluster(data.profiles, copies_of(data.scenarios["S1"], 11))
    assert [s.metadata.name for s in state.services][::10] == ["m-00", "m-10"]
    assert state.services[0].spec.slo.objectives[0].target_s == 0.1205
    assert state.services[0].spec.traffic.requests_per_second == 300
    assert sum(len(node.devices) for node in state.nodes) == 24
    found = {each.place.slice: each.profile.rows for each in state.measured}
    assert found.keys() == {"1g.10gb", "7g.80gb"}
    two = found["7g.80gb"][1]
    assert (two.batch, two.instances, two.p50_ms, two.throughput) == (4, 2, 16.0, 500.0)
    assert two.neighbours is Neighbours.BUSY


# Rates per GPC: 1g 10, 2g 12, 3g 14, 4g 13, 7g 9; all within 0.45 of an SLO of 100 ms, batch 2 on none.
BY_HAND = {
    "m": (
        *(Point(g, 1, 1, r, 10.0) for g, r in ((1, 10), (2, 24), (3, 42), (4, 52), (7, 63))),
        *(Point(g, 2, 1, 1000.0, 45.0) for g in (1, 2, 3, 4, 7)),
    )
}


def sizes(deployment: Deployment) -> list[list[int]]:
    return [[segment.gpcs for segment in board] for board in deployment.boards]


def load(rate: float, name: str = "m", slo_ms: float = 100.0) -> Load:
    return Load(name, "m", rate, slo_ms)


def test_points_must_take_less_than_45_percent_of_the_slo() -> None:
    assert {point.batch for point in allowed(BY_HAND, load(1))} == {1}
    assert {point.batch for point in allowed(BY_HAND, load(1, slo_ms=100.1))} == {1, 2}


def test_parvagpu_repeats_the_densest_slice_and_covers_the_rest_with_the_smallest() -> None:
    # 100 = 2 x 42 + 16, and 16 takes a 2g. One 3g per board; the 2g goes beside the first. The second board
    # has 3 GPCs, so it is taken apart: 42/24 gives one 2g, 18/10 two 1g; all fit the first board but one 1g.
    found = parvagpu(BY_HAND, [load(100)])
    assert sizes(found) == [[3, 2, 2], [1, 1]]
    assert found.gpus == 2
    assert found.gpcs == 9
    assert found.rate_per_s("m") == 42 + 24 + 24 + 10 + 10


def test_parvagpu_takes_no_more_of_the_densest_than_the_rate_needs() -> None:
    only_threes = {"m": (Point(3, 1, 1, 42, 10.0),)}
    assert sizes(parvagpu(only_threes, [load(84)])) == [[3], [3]]
    assert sizes(parvagpu(only_threes, [load(84.5)])) == [[3], [3], [3]]


def test_parvagpu_carries_what_new_slices_have_to_spare_to_the_next() -> None:
    # Of four boards with a 3g the last two are taken apart: 84 takes nine 1g, not twice five.
    points = {"m": (Point(1, 1, 1, 10, 10.0), Point(3, 1, 1, 42, 10.0))}
    found = parvagpu(points, [load(168)])
    assert sizes(found) == [[3, 1, 1, 1, 1], [3, 1, 1, 1, 1], [1]]
    assert found.rate_per_s("m") == 2 * 42 + 9 * 10


def test_first_fit_repeats_one_size_on_the_first_board_that_takes_it() -> None:
    assert sizes(first_fit(BY_HAND, [load(100)])) == [[3, 3], [3]]
    # Two 3g take all eight memory slices: the seventh GPC cannot become a 1g.
    ones = {"m": BY_HAND["m"], "n": (Point(1, 1, 1, 10, 10.0),)}
    assert sizes(first_fit(ones, [load(84), Load("n", "n", 10, 100)])) == [[3, 3], [1]]


def test_whole_boards_hold_one_service_each() -> None:
    shared = {"m": (Point(7, 1, 1, 63, 10.0), Point(7, 1, 2, 100, 20.0))}
    loads = [load(120, "a"), load(10, "b")]
    assert sizes(model_per_gpu(shared, loads)) == [[7], [7], [7]]
    assert model_per_gpu(shared, loads).rate_per_s("a") == 200
    assert best_batch_only(shared, loads).rate_per_s("a") == 126


@pytest.mark.parametrize("baseline", [parvagpu, first_fit, model_per_gpu, best_batch_only])
def test_a_service_that_nothing_is_fast_enough_for_is_named(baseline: object) -> None:
    with pytest.raises(Unplaceable, match="slow"):
        baseline(BY_HAND, [load(1, "slow", slo_ms=20)])  # type: ignore[operator]


@given(
    st.lists(st.tuples(st.floats(1, 400), st.sampled_from((30.0, 100.0, 150.0))), max_size=8),
    st.sampled_from((parvagpu, first_fit, model_per_gpu, best_batch_only)),
)
def test_every_load_is_carried_on_boards_that_exist(
    wanted: list[tuple[float, float]], baseline: object
) -> None:
    loads = [Load(f"s{n}", "m", rate, slo) for n, (rate, slo) in enumerate(wanted)]
    found: Deployment = baseline(BY_HAND, loads)  # type: ignore[operator]
    for each in loads:
        assert found.rate_per_s(each.name) >= each.rate_per_s * (1 - 1e-6)
        assert all(s.point in allowed(BY_HAND, each) for s in found.segments(each.name))
    for board in found.boards:
        names = [PROFILE_NAMES[segment.gpcs] for segment in board]
        assert place(A100_80, names) is not None, Counter(names)
    assert found == baseline(BY_HAND, list(reversed(loads)))  # type: ignore[operator]


def test_batch_times_are_interpolated_and_never_fall() -> None:
    points = [Point(1, 2, 1, 1, 10.0), Point(1, 4, 1, 1, 8.0), Point(1, 8, 1, 1, 18.0)]
    assert batch_times(points, 1, 1, 6) == (10.0, 10.0, 10.0, 10.0, 12.0, 14.0)
    with pytest.raises(ValueError, match="measured up to 8"):
        batch_times(points, 1, 1, 9)
    with pytest.raises(ValueError, match="measured up to nothing"):
        batch_times(points, 1, 2, 1)


def test_every_process_of_a_segment_is_a_server() -> None:
    points = (Point(1, 1, 2, 100, 20.0), Point(1, 2, 2, 150, 30.0))
    board = (Segment("s", "m", points[1]), Segment("other", "m", points[0]))
    assert servers_of(Deployment((board,)), {"m": points}, "s") == ((20.0, 30.0), (20.0, 30.0))
