"""GPUs for counts of slices, and what is cut when they change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from tessera_core.gpu.geometry import maximal_multisets, place
from tessera_core.gpu.tables import A30, A100_80, H100_80_SXM
from tessera_core.simulate.fleet.cutting import KEPT_FREE, Ledger
from tessera_core.simulate.fleet.packing import packing_of

COUNTS = st.lists(st.integers(0, 60), min_size=5, max_size=5)


@given(COUNTS)
def test_the_fewest_gpus_are_those_of_the_linear_program(counts: list[int]) -> None:
    packing = packing_of(A100_80)
    names = [each.name for each in packing.profiles]
    ways = [
        [multi.count(name) for name in names] for multi in maximal_multisets(A100_80, tuple(names))
    ]
    found = linprog(np.ones(len(ways)), A_ub=-np.array(ways).T, b_ub=-np.array(counts))
    assert packing.gpus(np.array(counts, dtype=float)) == pytest.approx(found.fun, abs=1e-6)


@pytest.mark.parametrize("model", [A100_80, A30, H100_80_SXM], ids=lambda model: model.name)
def test_a_gpu_that_is_full_is_one_gpu(model) -> None:
    packing = packing_of(model)
    names = [each.name for each in packing.profiles]
    for multiset in maximal_multisets(model, tuple(names)):
        counts = np.array([multiset.count(name) for name in names], dtype=float)
        assert place(model, multiset) is not None
        assert packing.gpus(counts) <= 1 + 1e-9


def test_many_counts_are_answered_at_once() -> None:
    packing = packing_of(A100_80)
    counts = np.arange(30.0).reshape(2, 3, 5)
    assert packing.gpus(counts).shape == (2, 3)
    assert packing.gpus(counts)[1, 2] == packing.gpus(counts[1, 2])


def _ledger(whole: bool = False) -> Ledger:
    return Ledger(packing_of(A100_80), 2, 90.0, 300.0, np.zeros(6), np.zeros(6), whole)


def test_slices_that_fell_free_are_taken_again_without_a_cut() -> None:
    ledger = _ledger()
    some = np.array([10.0, 0, 0, 4, 0, 0])
    assert ledger.change(some, np.zeros(6)) > 0
    cut = ledger.recuts
    two = np.array([0.0, 0, 0, 2, 0, 0])
    ledger.change(np.zeros(6), two)
    assert ledger.change(two, np.zeros(6)) == 0
    assert ledger.recuts == cut
    assert np.array_equal(ledger.used, some)


def test_what_goes_is_free_only_after_what_comes_serves() -> None:
    ledger = _ledger()
    two = np.array([0.0, 0, 0, 2, 0, 0])
    ledger.change(two, np.zeros(6))
    before = ledger.recuts
    ledger.change(two, two)
    assert ledger.recuts > before


def test_cuts_beyond_the_budget_wait_for_those_before() -> None:
    few, many = _ledger(), _ledger()
    one = np.array([1.0, 0, 0, 0, 0, 0])
    assert few.change(one, np.zeros(6)) < many.change(40 * one, np.zeros(6))
    assert few.waiting == 0
    assert many.waiting == pytest.approx(40 - 2 * 300 / 90)
    assert many.change(one, np.zeros(6)) > few.change(one, np.zeros(6))


def test_no_more_than_a_part_is_left_free() -> None:
    ledger = _ledger()
    slices = np.array([20.0, 0, 0, 0, 0, 70])
    ledger.change(slices, np.zeros(6))
    ledger.change(np.zeros(6), np.array([0.0, 0, 0, 0, 0, 70]))
    assert ledger.gpus(ledger.used) == 20
    assert ledger.gpus(ledger.cut) == pytest.approx(20 * (1 + KEPT_FREE))


def test_whole_gpus_are_never_cut() -> None:
    ledger = _ledger(whole=True)
    assert ledger.change(np.array([5.0, 0, 0, 0, 0, 0]), np.zeros(6)) == 0
    assert ledger.recuts == 0
