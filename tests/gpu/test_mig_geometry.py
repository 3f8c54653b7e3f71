"""Legality, enumeration and placement against counts and rules that were computed independently."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.gpu.geometry import (
    Geometry,
    GeometryError,
    Placement,
    Rule,
    canonical,
    layouts,
    maximal_layouts,
    maximal_multisets,
    place,
    violations,
)
from tessera_core.gpu.mig import GpuModel
from tessera_core.gpu.tables import A30, A100_80, B200_180, MODELS

SEVEN_SLICE_MODELS = tuple(model for model in MODELS if model is not A30)
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
every_seven_slice_model = pytest.mark.parametrize(
    "model", SEVEN_SLICE_MODELS, ids=lambda model: model.name
)


def named(model: GpuModel, *kinds: tuple[int, int]) -> tuple[str, ...]:
    """Profile names of these (compute slices, memory slices), without media extensions."""
    return tuple(
        profile.name
        for profile in model.profiles
        if (profile.compute_slices, profile.memory_slices) in kinds and not profile.attributes
    )


def base(model: GpuModel) -> tuple[str, ...]:
    return named(model, (1, 1), (2, 2), (3, 4), (4, 4), (7, 8))


def placements(*texts: str) -> Geometry:
    """Placements written as ``3g.40gb@4``."""
    pairs = (text.split("@") for text in texts)
    return tuple(Placement(profile, int(start)) for profile, start in pairs)


@every_seven_slice_model
def test_base_profiles_have_298_layouts_19_maximal_14_multisets(model: GpuModel) -> None:
    profiles = base(model)
    assert len(layouts(model, profiles)) == 298
    assert len(maximal_layouts(model, profiles)) == 19
    assert len(maximal_multisets(model, profiles)) == 14


@every_seven_slice_model
def test_with_double_memory_there_are_723_layouts_78_maximal_38_multisets(model: GpuModel) -> None:
    profiles = base(model) + named(model, (1, 2))
    assert len(layouts(model, profiles)) == 723
    assert len(maximal_layouts(model, profiles)) == 78
    assert len(maximal_multisets(model, profiles)) == 38


def test_the_a30_has_26_layouts_5_maximal_4_multisets() -> None:
    profiles = named(A30, (1, 1), (2, 2), (4, 4))
    assert len(layouts(A30, profiles)) == 26
    assert len(maximal_layouts(A30, profiles)) == 5
    assert maximal_multisets(A30, profiles) == (
        ("1g.6gb", "1g.6gb", "1g.6gb", "1g.6gb"),
        ("1g.6gb", "1g.6gb", "2g.12gb"),
        ("2g.12gb", "2g.12gb"),
        ("4g.24gb",),
    )


@every_model
def test_enumerated_layouts_are_distinct_canonical_and_legal(model: GpuModel) -> None:
    found = layouts(model)
    assert len(set(found)) == len(found)
    assert () in found
    for layout in found:
        assert layout == canonical(layout)
        assert violations(model, layout) == ()


def test_layouts_are_exactly_the_subsets_that_legality_accepts() -> None:
    """Enumeration and legality are separate code: on the A30 all 2^13 subsets are compared."""
    every = [Placement(each.name, start) for each in A30.profiles for start in each.starts]
    legal = {
        canonical(subset)
        for size in range(5)
        for subset in combinations(every, size)
        if not violations(A30, subset)
    }
    assert set(layouts(A30)) == legal


@pytest.mark.parametrize("model", [A100_80, A30], ids=lambda model: model.name)
def test_a_maximal_layout_takes_no_further_instance_and_the_others_do(model: GpuModel) -> None:
    maximal = set(maximal_layouts(model))
    for layout in layouts(model):
        extensible = any(
            place(model, [profile.name], layout) is not None for profile in model.profiles
        )
        assert (layout in maximal) != extensible


@pytest.mark.parametrize(
    ("geometry", "rules"),
    [
        (("3g.40gb@4", "2g.20gb@0", "2g.20gb@2"), []),
        (("4g.40gb@0", "3g.40gb@4"), []),
        (("1g.10gb+me@6", "3g.40gb@0"), []),
        (("3g.39gb@0",), [Rule.UNKNOWN_PROFILE]),
        (("3g.40gb@1",), [Rule.ILLEGAL_START]),
        (("1g.10gb@7",), [Rule.ILLEGAL_START]),
        (("2g.20gb@6",), [Rule.ILLEGAL_START]),
        (("1g.10gb@-1",), [Rule.ILLEGAL_START]),
        (("3g.40gb@0", "1g.10gb@3"), [Rule.OVERLAP]),
        (("1g.10gb+me@0", "1g.10gb+me@1"), [Rule.TOO_MANY]),
        (("1g.10gb@0", "1g.10gb@0"), [Rule.OVERLAP]),
        (("7g.80gb@0", "4g.40gb@0"), [Rule.OVERLAP, Rule.SM_BUDGET]),
        (("7g.80gb@0", "7g.80gb@0"), [Rule.OVERLAP, Rule.TOO_MANY, Rule.SM_BUDGET]),
        (("8g.80gb@0", "3g.40gb@2"), [Rule.ILLEGAL_START, Rule.UNKNOWN_PROFILE]),
    ],
)
def test_violations_name_every_broken_rule(geometry: tuple[str, ...], rules: list[Rule]) -> None:
    found = violations(A100_80, placements(*geometry))
    assert sorted(each.rule for each in found) == sorted(rules)


def test_a_violation_says_what_was_found_and_what_is_allowed() -> None:
    (start,) = violations(A100_80, placements("3g.40gb@1"))
    assert start.detail == "3g.40gb@1 may start at 0, 4"
    (overlap,) = violations(A100_80, placements("1g.10gb@3", "2g.20gb@2"))
    assert overlap.detail == "1g.10gb@3 and 2g.20gb@2 share memory slices 3"
    assert overlap.placements == placements("1g.10gb@3", "2g.20gb@2")


def test_only_one_instance_may_have_the_media_extensions() -> None:
    (found,) = violations(A30, placements("1g.6gb+me@0", "2g.12gb+me@2"))
    assert found.rule is Rule.TOO_MANY
    assert place(A30, ["1g.6gb+me", "2g.12gb+me"]) is None


def test_a_discovered_table_may_exceed_the_sm_budget_without_an_overlap() -> None:
    greedy = tuple(replace(profile, sm_count=60) for profile in A100_80.profiles)
    model = replace(A100_80, name="discovered", profiles=greedy)
    (found,) = violations(model, placements("3g.40gb@0", "3g.40gb@4"))
    assert found.rule is Rule.SM_BUDGET
    assert "120 SMs" in found.detail


def test_a_discovered_table_may_allow_fewer_instances_than_it_has_starts() -> None:
    scarce = tuple(replace(profile, max_count=1) for profile in A30.profiles)
    model = replace(A30, name="discovered", profiles=scarce)
    assert place(model, ["2g.12gb", "2g.12gb"]) is None
    assert [each.rule for each in violations(model, placements("1g.6gb@0", "1g.6gb@1"))] == [
        Rule.TOO_MANY
    ]
    assert set(layouts(model)) == {
        layout
        for layout in layouts(A30)
        if max(Counter(each.profile for each in layout).values(), default=0) <= 1
    }


def test_unrecorded_sm_counts_do_not_make_a_geometry_illegal() -> None:
    assert violations(B200_180, placements("4g.90gb@0", "3g.90gb@4")) == ()


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        ([], ()),
        (["1g.10gb"], ("1g.10gb@6",)),
        (["1g.10gb", "1g.10gb"], ("1g.10gb@4", "1g.10gb@5")),
        (["3g.40gb"], ("3g.40gb@4",)),
        (["2g.20gb", "3g.40gb", "2g.20gb"], ("2g.20gb@0", "2g.20gb@2", "3g.40gb@4")),
        (["1g.20gb"], ("1g.20gb@6",)),
        (["3g.40gb"] * 2, ("3g.40gb@0", "3g.40gb@4")),
        (["3g.40gb"] * 3, None),
        (["4g.40gb", "2g.20gb", "2g.20gb"], None),
        (["1g.10gb"] * 8, None),
        (["1g.10gb+me"] * 2, None),
    ],
)
def test_place_on_an_empty_gpu_keeps_the_wide_places_free(
    profiles: list[str], expected: tuple[str, ...] | None
) -> None:
    assert place(A100_80, profiles) == (None if expected is None else placements(*expected))


def test_place_works_around_what_is_occupied() -> None:
    assert place(A100_80, ["3g.40gb"], placements("1g.10gb@6")) == placements("3g.40gb@0")
    assert place(A100_80, ["3g.40gb"], placements("1g.10gb@6", "1g.10gb@3")) is None
    assert place(A100_80, ["7g.80gb"], placements("1g.10gb@6")) is None


def test_place_does_not_depend_on_the_order_of_its_arguments() -> None:
    wanted = ["3g.40gb", "1g.10gb", "2g.20gb"]
    occupied = placements("1g.10gb@0")
    answers = {place(A100_80, order, occupied) for order in permutations(wanted)}
    assert len(answers) == 1


def test_place_refuses_illegal_occupation_and_unknown_profiles() -> None:
    with pytest.raises(GeometryError, match=r"A100-80: 3g\.40gb@1 may start at 0, 4") as caught:
        place(A100_80, ["1g.10gb"], placements("3g.40gb@1"))
    assert [each.rule for each in caught.value.violations] == [Rule.ILLEGAL_START]
    with pytest.raises(GeometryError, match=r"unknown profile '1g\.5gb', has 7g\.80gb, 4g\.40gb"):
        place(A100_80, ["1g.5gb"])
    with pytest.raises(GeometryError, match="unknown profile"):
        layouts(A100_80, ("1g.5gb",))


@every_seven_slice_model
def test_every_layout_can_be_placed_from_its_counts_alone(model: GpuModel) -> None:
    for profiles in {tuple(each.profile for each in layout) for layout in layouts(model)}:
        found = place(model, profiles)
        assert found is not None
        assert violations(model, found) == ()
        assert Counter(each.profile for each in found) == Counter(profiles)


@st.composite
def occupied_gpus(draw: st.DrawFn) -> tuple[GpuModel, Geometry, list[str]]:
    model = draw(st.sampled_from((A100_80, A30)))
    occupied = draw(st.sampled_from(layouts(model)))
    names = [profile.name for profile in model.profiles]
    return model, occupied, draw(st.lists(st.sampled_from(names), max_size=5))


@given(occupied_gpus())
def test_place_finds_a_geometry_exactly_when_one_exists(
    case: tuple[GpuModel, Geometry, list[str]],
) -> None:
    model, occupied, wanted = case
    found = place(model, wanted, occupied)
    target = Counter(wanted)
    exists = any(
        set(occupied) <= set(layout)
        and Counter(each.profile for each in set(layout) - set(occupied)) == target
        for layout in layouts(model)
    )
    assert (found is not None) == exists
    if found is not None:
        assert Counter(each.profile for each in found) == target
        assert violations(model, (*occupied, *found)) == ()
