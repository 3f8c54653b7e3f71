"""Automata of boards against the vendor's placement tables: every multiset and every value by enumeration."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from support.clusters import cluster, gpu_node, gpu_place, measured
from tessera_core.gpu.devices import FULL
from tessera_core.gpu.geometry import Geometry, Placement, maximal_multisets, violations
from tessera_core.gpu.mig import GpuModel
from tessera_core.gpu.tables import A30, A100_80, H100_80_SXM, H200_141
from tessera_core.plan import PoolRules
from tessera_core.plan.build import problem_of
from tessera_core.plan.shapes import NEVER, Packing, Shape, shape_of, shape_of_cores

MODELS = (A30, A100_80, H100_80_SXM, H200_141)

boards = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def names(model: GpuModel) -> tuple[str, ...]:
    return tuple(profile.name for profile in model.profiles)


@cache
def placeable(model: GpuModel) -> frozenset[Packing]:
    """Counts by profile of everything that has legal start positions, found by trying them all."""
    slots = [Placement(each.name, start) for each in model.profiles for start in each.starts]
    found: set[Packing] = set()

    def grow(first: int, geometry: Geometry) -> None:
        counts = Counter(each.profile for each in geometry)
        found.add(tuple(counts[name] for name in names(model)))
        for index in range(first, len(slots)):
            # What is legal stays legal without any one instance, so nothing is missed here.
            if not violations(model, (*geometry, slots[index])):
                grow(index + 1, (*geometry, slots[index]))

    grow(0, ())
    return frozenset(found)


def automaton(model: GpuModel, profiles: tuple[str, ...]) -> Shape:
    cuts = maximal_multisets(model, tuple(sorted(profiles)))
    return shape_of(tuple(tuple(cut.count(name) for name in profiles) for cut in cuts))


def maximal(multisets: frozenset[Packing]) -> set[Packing]:
    """Those to which no part of any class can be added."""
    return {
        counts
        for counts in multisets
        if not any(
            (*counts[:i], counts[i] + 1, *counts[i + 1 :]) in multisets for i in range(len(counts))
        )
    }


@boards
def test_exactly_the_multisets_with_legal_positions_are_states(model: GpuModel) -> None:
    shape = automaton(model, names(model))
    assert len(set(shape.states)) == len(shape.states)
    assert set(shape.states) == placeable(model)
    assert shape.states[0] == (0,) * len(model.profiles)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MODELS), st.data())
def test_a_board_with_fewer_profiles_has_the_states_without_the_others(
    model: GpuModel, data: st.DataObject
) -> None:
    used = data.draw(st.sets(st.sampled_from(range(len(model.profiles))), min_size=1))
    kept = sorted(used)
    expected = {
        tuple(counts[i] for i in kept)
        for counts in placeable(model)
        if not any(count for i, count in enumerate(counts) if i not in used)
    }
    shape = automaton(model, tuple(names(model)[i] for i in kept))
    assert set(shape.states) == expected


@boards
def test_an_edge_adds_one_part_wherever_that_is_legal(model: GpuModel) -> None:
    shape = automaton(model, names(model))
    for state, edges in zip(shape.states, shape.after, strict=True):
        for each, following in enumerate(edges):
            grown = (*state[:each], state[each] + 1, *state[each + 1 :])
            if following == NEVER:
                assert grown not in placeable(model)
            else:
                assert shape.states[following] == grown


@boards
def test_states_come_in_an_order_that_every_edge_goes_back_in(model: GpuModel) -> None:
    shape = automaton(model, names(model))
    assert sorted(shape.order) == list(range(len(shape.states)))
    turn = {state: position for position, state in enumerate(shape.order)}
    for state, edges in enumerate(shape.after):
        assert all(turn[following] < turn[state] for following in edges if following != NEVER)


@boards
def test_mixes_are_the_packings_to_which_nothing_can_be_added(model: GpuModel) -> None:
    shape = automaton(model, names(model))
    assert set(shape.mixes) == maximal(placeable(model))
    assert shape.most_parts == max(map(sum, placeable(model)))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MODELS), st.data())
def test_worth_is_the_most_that_any_further_parts_bring(
    model: GpuModel, data: st.DataObject
) -> None:
    shape = automaton(model, names(model))
    size = len(model.profiles)
    prices = data.draw(st.lists(st.floats(0, 1e6), min_size=size, max_size=size))
    states: NDArray[np.int64] = np.array(shape.states)
    further = states[None, :, :] - states[:, None, :]
    value = np.where((further >= 0).all(axis=2), further @ np.array(prices), 0.0)
    assert shape.worth(prices) == pytest.approx(value.max(axis=1).tolist())


def test_the_second_half_of_an_a100_costs_the_slice_that_it_wastes() -> None:
    profiles = ("3g.40gb", "1g.10gb")
    shape = automaton(A100_80, profiles)
    worth = shape.worth((3.0, 1.0))
    one, two = shape.states.index((1, 0)), shape.states.index((2, 0))
    # Seven 1g, or a 3g and four 1g, or two 3g and nothing.
    assert worth[0] == 7
    assert worth[one] == 4
    assert worth[two] == 0


@boards
def test_a_cuttable_board_is_whole_or_one_of_its_legal_multisets(model: GpuModel) -> None:
    device = model.products[0]
    places = [gpu_place(name, device) for name in (FULL, *names(model))]
    problem = problem_of(
        cluster(
            [gpu_node("n", product=device)],
            [],
            [measured("m", place) for place in places],
            PoolRules("p", partition=True),
        ),
        (),
    )
    (kind,) = problem.kinds
    found = [problem.places[place] for place in kind.classes]
    assert sorted(found) == sorted(places)
    widths = [place.sm_count for place in found]
    assert widths == sorted(widths, reverse=True)
    assert [kind.position[place] for place in kind.classes] == list(range(len(found)))
    order = [place.slice for place in found]
    legal = {
        tuple(0 if name == FULL else counts[names(model).index(name)] for name in order)
        for counts in placeable(model)
    }
    whole = tuple(int(name == FULL) for name in order)
    assert set(kind.shape.states) == {*legal, whole}


def test_packings_that_contain_others_add_nothing() -> None:
    assert shape_of(((2, 1), (1, 1), (0, 1))).mixes == ((2, 1),)


def test_a_board_that_takes_nothing_has_only_its_unused_state() -> None:
    shape = shape_of(())
    assert shape.states == ((),)
    assert shape.worth(()) == (0.0,)
    assert shape.most_parts == 0


def core_sets(sizes: tuple[int, ...], cores: int) -> list[Packing]:
    """Counts by size of all sets that fit into ``cores``."""
    ranges = [range(cores // size + 1) for size in sizes]
    return [
        counts
        for counts in product(*ranges)
        if sum(n * size for n, size in zip(counts, sizes, strict=True)) <= cores
    ]


core_sizes = st.sets(st.integers(1, 6), min_size=1, max_size=3).map(
    lambda sizes: tuple(sorted(sizes, reverse=True))
)


@settings(deadline=None)
@given(core_sizes, st.integers(6, 14))
def test_sets_of_cores_fit_when_their_sum_does(sizes: tuple[int, ...], cores: int) -> None:
    shape = shape_of_cores(sizes, cores)
    assert shape.states[0] == (0,)
    for state, edges in zip(shape.states, shape.after, strict=True):
        for size, following in zip(sizes, edges, strict=True):
            if state[0] + size > cores:
                assert following == NEVER
            else:
                assert shape.states[following] == (state[0] + size,)
    assert sorted(shape.order) == list(range(cores + 1))


@settings(deadline=None)
@given(core_sizes, st.integers(6, 14), st.data())
def test_cores_are_worth_the_best_sets_that_still_fit(
    sizes: tuple[int, ...], cores: int, data: st.DataObject
) -> None:
    prices = data.draw(
        st.lists(st.integers(0, 20).map(float), min_size=len(sizes), max_size=len(sizes))
    )
    shape = shape_of_cores(sizes, cores)
    expected = [
        max(float(np.dot(counts, prices)) for counts in core_sets(sizes, cores - used))
        for (used,) in shape.states
    ]
    assert list(shape.worth(prices)) == expected


@settings(deadline=None)
@given(core_sizes, st.integers(6, 14))
def test_every_set_of_cores_is_a_combination_of_the_mixes(
    sizes: tuple[int, ...], cores: int
) -> None:
    shape = shape_of_cores(sizes, cores)
    mixes: NDArray[np.float64] = np.array(shape.mixes)
    assert np.array_equal(mixes != 0, np.eye(len(sizes)))
    for counts in core_sets(sizes, cores):
        shares = np.array(counts) / mixes.diagonal()
        assert shares.sum() <= 1 + 1e-9
        assert sum(counts) <= shape.most_parts
    # And no mix is more than the processor has.
    assert mixes @ np.array(sizes) == pytest.approx([cores] * len(sizes))


def test_equal_boards_share_one_automaton() -> None:
    assert shape_of(((1, 0), (0, 2))) is shape_of(((1, 0), (0, 2)))
    assert shape_of_cores((4, 2), 8) is shape_of_cores((4, 2), 8)
    kinds = [automaton(model, names(model)) for model in (A100_80, H100_80_SXM, H200_141)]
    assert all(a is b for a, b in combinations(kinds, 2))
