"""The fewest geometries that together have every one of some profiles: legal, complete and no more than needed."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.gpu.covers import covers
from tessera_core.gpu.geometry import Geometry, GeometryError, layouts, place, violations
from tessera_core.gpu.mig import GpuModel
from tessera_core.gpu.tables import A30, A100_80, MODELS


def plain(model: GpuModel) -> list[str]:
    return [each.name for each in model.profiles if not each.attributes]


def names(geometry: Geometry) -> list[str]:
    return [each.profile for each in geometry]


@st.composite
def questions(draw: st.DrawFn) -> tuple[GpuModel, frozenset[str]]:
    model = draw(st.sampled_from(MODELS))
    return model, draw(st.frozensets(st.sampled_from([each.name for each in model.profiles])))


@given(questions())
def test_each_profile_is_in_one_geometry_once_and_every_geometry_is_legal(
    question: tuple[GpuModel, frozenset[str]],
) -> None:
    model, wanted = question
    found = covers(model, wanted)
    assert sorted(name for geometry in found for name in names(geometry)) == sorted(wanted)
    assert not any(violations(model, geometry) for geometry in found)


@given(questions())
def test_no_fewer_geometries_would_do(question: tuple[GpuModel, frozenset[str]]) -> None:
    """Compared with all ways to put the profiles into fewer GPUs."""
    model, wanted = question
    fits = {frozenset(names(each)) for each in layouts(model, tuple(sorted(wanted)))}
    found = covers(model, wanted)
    if len(found) > 1:
        fewer = combinations(fits, len(found) - 1)
        assert not any(frozenset().union(*some) == wanted for some in fewer)


@given(questions())
def test_the_first_geometry_is_as_full_as_can_be_where_that_costs_no_further_one(
    question: tuple[GpuModel, frozenset[str]],
) -> None:
    model, wanted = question
    found = covers(model, wanted)
    for count in range(len(found[0]) + 1 if found else 1, len(wanted) + 1):
        for some in combinations(sorted(wanted), count):
            if place(model, some) is not None:
                assert len(covers(model, wanted.difference(some))) >= len(found)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_all_profiles_of_any_board_take_three_geometries_at_most(model: GpuModel) -> None:
    assert len(covers(model, plain(model))) == (2 if model is A30 else 3)


def test_an_a100_is_tried_on_its_small_slices_first() -> None:
    assert [names(each) for each in covers(A100_80, plain(A100_80))] == [
        ["1g.10gb", "1g.20gb", "2g.20gb"],
        ["3g.40gb", "4g.40gb"],
        ["7g.80gb"],
    ]


def test_nothing_takes_no_geometry_and_a_strange_profile_is_refused() -> None:
    assert covers(A100_80, ()) == ()
    with pytest.raises(GeometryError, match=r"9g\.90gb"):
        covers(A100_80, ["9g.90gb"])
