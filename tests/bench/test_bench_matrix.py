"""The ensemble paper's optimiser and the rate of an allocation, on cases known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from bench.planner.ensemble_paper import IMN1, IMN4, IMN12, PRODUCT, Network, Setting
from bench.planner.matrix_baselines import (
    Infeasible,
    Matrix,
    Tables,
    best_batch_only,
    bounded_greedy,
    worst_fit_and_greedy,
    worst_fit_decreasing,
)

from tessera_core.plan.decision import Assignment
from tessera_core.plan.state import Goal, Slice


def tables(capacity: list[float], memory: list[float], cpu: list[bool] | None = None) -> Tables:
    """One batch size, 8, and 100 rows/s of everything everywhere."""
    return Tables(
        capacity_mib=np.array(capacity),
        cpu=np.array(cpu or [False] * len(capacity)),
        memory_mib=np.array(memory)[:, None],
        rate_per_s=np.full((len(capacity), len(memory), 1), 100.0),
        batches=(8,),
    )


def test_worst_fit_takes_the_largest_first_and_the_emptiest_device() -> None:
    found = worst_fit_decreasing(tables([10, 8], [3, 6, 4]))
    # 6 to the device of 10, 4 to that of 8, 3 where 4 are left twice: the first.
    assert found.tolist() == [[8, 8, 0], [0, 0, 8]]


def test_worst_fit_takes_a_processor_only_when_no_gpu_has_room() -> None:
    found = worst_fit_decreasing(tables([100, 5], [5, 4], cpu=[True, False]))
    assert found.tolist() == [[0, 8], [8, 0]]
    with pytest.raises(Infeasible, match="model 1: 4 MiB"):
        worst_fit_decreasing(tables([5], [5, 4]))


def test_greedy_climbs_cell_by_cell_and_keeps_every_model() -> None:
    seen: list[Matrix] = []

    def most_of_the_first_row(matrix: Matrix) -> float:
        seen.append(matrix)
        return float(matrix[0].sum() - matrix[1].sum())

    start = np.array([[8, 0], [0, 8]])
    found = bounded_greedy(start, most_of_the_first_row, np.random.default_rng(0), (8, 16))
    assert found.matrix == ((16, 16), (0, 0))
    assert found.score == 32
    assert found.benches == len(seen)
    assert all((matrix > 0).any(axis=0).all() for matrix in seen)
    assert start.tolist() == [[8, 0], [0, 8]]


def test_greedy_measures_no_more_than_its_bounds() -> None:
    counter = iter(range(10**6))
    found = bounded_greedy(
        np.full((6, 6), 8), lambda matrix: float(next(counter)), np.random.default_rng(0)
    )
    assert found.benches == 1 + 10 * 100


def test_the_papers_optimiser_is_a_function_of_its_seed() -> None:
    setting = Setting(IMN4, 8)  # 32 cells: more neighbours than are measured
    start = worst_fit_decreasing(setting.tables())
    runs = [
        bounded_greedy(start, setting.rate, np.random.default_rng(seed), max_iterations=3)
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1]
    assert runs[0].matrix != runs[2].matrix


def test_best_batch_only_is_the_best_that_fits_the_memory() -> None:
    given = Tables(
        capacity_mib=np.array([10.0]),
        cpu=np.array([False]),
        memory_mib=np.array([[2.0, 8.0], [2.0, 5.0]]),
        rate_per_s=np.array([[[10.0, 40.0], [10.0, 20.0]]]),
        batches=(8, 16),
    )
    # Both large do not fit; the first alone saves more time per row.
    assert best_batch_only(given, lambda matrix: 1.0).matrix == ((16, 8),)


def network(name: str, rate: float, memory_gib: float = 1.0) -> Network:
    """A network with ``rate`` rows/s at any batch on a V100, and so much memory beside the context."""
    gmacs = 15.7e12 / (2e9 * rate)
    return Network(name, gmacs, 0, memory_gib * 2**30 / 4e6, 0.0, 1.0)


def test_models_of_one_device_share_its_time() -> None:
    setting = Setting((network("a", 100), network("b", 300)), 1)
    # x/100 + x/300 = 1
    assert setting.rate(np.array([[8, 8]])) == pytest.approx(75)


def test_replicas_add_up_and_the_slowest_model_counts() -> None:
    setting = Setting((network("a", 100), network("b", 300)), 3)
    assert setting.rate(np.array([[8, 0], [8, 0], [0, 8]])) == pytest.approx(200)


def test_a_shared_device_gives_its_time_to_whom_it_helps() -> None:
    # The second device belongs to b but for what a lacks: x = 100 + 100 (1 - x/300), so x = 150.
    setting = Setting((network("a", 100), network("b", 300)), 2)
    assert setting.rate(np.array([[8, 0], [8, 8]])) == pytest.approx(150)


def test_a_missing_model_or_memory_gives_nothing() -> None:
    setting = Setting((network("a", 100), network("b", 100, memory_gib=14)), 2)
    assert setting.rate(np.array([[8, 0], [8, 0]])) == 0
    assert setting.rate(np.array([[8, 8], [0, 0]])) == 0
    assert setting.rate(np.array([[8, 0], [0, 8]])) == pytest.approx(100)


def test_a_larger_batch_is_faster_and_takes_more_memory() -> None:
    for model in IMN12:
        assert model.batch_ms(64, cpu=False) / 64 < model.batch_ms(8, cpu=False) / 8
        assert model.memory_mib(64) > model.memory_mib(8)
        assert model.batch_ms(8, cpu=True) > model.batch_ms(8, cpu=False)


def test_greedy_uses_gpus_that_best_batch_leaves_idle() -> None:
    setting = Setting(IMN1, 4)
    alone = best_batch_only(setting.tables(), setting.rate)
    found = worst_fit_and_greedy(setting.tables(), setting.rate, np.random.default_rng(0))
    assert found.score == pytest.approx(4 * alone.score)


def test_twelve_members_do_not_fit_one_gpu_but_a_processor_takes_the_rest() -> None:
    with pytest.raises(Infeasible):
        worst_fit_decreasing(Setting(IMN12, 1).tables())
    matrix = worst_fit_decreasing(Setting(IMN12, 1, cpu=True).tables())
    assert (matrix[1] > 0).any()


def test_cluster_facts_are_the_same_setting() -> None:
    setting = Setting(IMN4, 3, cpu=True)
    state = setting.cluster(500.0)
    (node,) = state.nodes
    assert tuple(device.uuid for device in node.devices) == setting.devices
    assert state.policy.objective is Goal.MAXIMISE_RATE
    assert {each.place.product for each in state.measured} == {PRODUCT, "cpu"}
    assert len(state.services[0].spec.members) == 4
    row = state.measured[0].profile.cells(1)[-1]
    assert row.p50_ms == IMN4[0].batch_ms(128, cpu=False)


def test_a_plan_is_read_as_a_matrix() -> None:
    setting = Setting(IMN4, 2)
    placed = [
        Assignment("bench.ensemble", f"m{m}", "v100-0", f"GPU-{d:02d}", Slice(), "", b, 1, 0, 0, 0)
        for d, m, b in ((0, 1, 16), (1, 3, 32))
    ]
    assert setting.matrix(placed).tolist() == [[0, 16, 0, 0], [0, 0, 0, 32]]


def test_a_setting_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="gpus: must be 1 to 16, found 17"):
        Setting(IMN1, 17)
    with pytest.raises(ValueError, match="models"):
        Setting((), 1)
