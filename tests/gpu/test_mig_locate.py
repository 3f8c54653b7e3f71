"""Names for instances whose places are not told: legal, one each, and the same as long as nothing forces another."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.gpu.geometry import Geometry, Placement, layouts, violations
from tessera_core.gpu.locate import locate
from tessera_core.gpu.mig import GpuModel, nearest_profile
from tessera_core.gpu.tables import A30, H100_80_SXM, MODELS

Places = Mapping[str, Placement]
NOTHING: Places = {}


def instances_of(geometry: Geometry) -> dict[str, str]:
    return {f"MIG-{index}": each.profile for index, each in enumerate(geometry)}


@st.composite
def cut_gpus(draw: st.DrawFn) -> tuple[GpuModel, dict[str, str], Places, Places]:
    """A board, instances that can exist on it, real places of some, and names that they and others had."""
    model = draw(st.sampled_from(MODELS))
    real = draw(st.sampled_from(layouts(model)))
    uuids = draw(st.permutations([f"MIG-{index}" for index in range(len(real))]))
    places = dict(zip(uuids, real, strict=True))
    told = {uuid: places[uuid] for uuid in uuids if draw(st.booleans())}
    old = draw(st.sampled_from(layouts(model)))
    names = draw(st.permutations([*uuids, *(f"MIG-old-{index}" for index in range(len(old)))]))
    before = dict(zip(names, old, strict=False))
    return model, {uuid: place.profile for uuid, place in places.items()}, told, before


@given(cut_gpus())
def test_every_instance_has_one_place_and_together_they_are_legal(
    cut: tuple[GpuModel, dict[str, str], Places, Places],
) -> None:
    model, instances, told, before = cut
    found = locate(model, instances, told, before)
    assert {uuid: place.profile for uuid, place in found.items()} == instances
    assert violations(model, found.values()) == ()
    assert len(set(found.values())) == len(instances)


@given(cut_gpus())
def test_a_place_that_is_told_is_taken_over(
    cut: tuple[GpuModel, dict[str, str], Places, Places],
) -> None:
    model, instances, told, before = cut
    found = locate(model, instances, told, before)
    assert told.items() <= found.items()


@given(cut_gpus(), st.randoms(use_true_random=False))
def test_the_order_in_which_instances_are_seen_does_not_matter(
    cut: tuple[GpuModel, dict[str, str], Places, Places], random: object
) -> None:
    model, instances, told, before = cut
    shuffled = list(instances.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert locate(model, dict(shuffled), told, before) == locate(model, instances, told, before)


@given(cut_gpus())
def test_what_was_named_once_is_named_the_same_from_then_on(
    cut: tuple[GpuModel, dict[str, str], Places, Places],
) -> None:
    model, instances, told, before = cut
    found = locate(model, instances, told, before)
    assert locate(model, instances, told, found) == found


@given(cut_gpus(), st.data())
def test_what_stays_keeps_its_name_when_others_go(
    cut: tuple[GpuModel, dict[str, str], Places, Places], data: st.DataObject
) -> None:
    model, instances, told, before = cut
    named = locate(model, instances, told, before)
    stay = {uuid: each for uuid, each in instances.items() if data.draw(st.booleans())}
    assert locate(model, stay, told, named) == {uuid: named[uuid] for uuid in stay}


@given(st.sampled_from([A30, H100_80_SXM]), st.data())
def test_as_many_names_are_kept_as_can_be_when_others_come(
    model: GpuModel, data: st.DataObject
) -> None:
    real = data.draw(st.sampled_from(layouts(model)))
    instances = instances_of(real)
    early = {uuid: each for uuid, each in instances.items() if data.draw(st.booleans())}
    before = locate(model, early, NOTHING, NOTHING)
    after = locate(model, instances, NOTHING, before)
    kept = sum(after[uuid] == place for uuid, place in before.items())
    assert kept == max(
        len(set(layout) & set(before.values()))
        for layout in layouts(model)
        if sorted(each.profile for each in layout) == sorted(instances.values())
    )


def test_a_name_is_given_up_only_where_what_comes_has_no_room() -> None:
    small = locate(H100_80_SXM, {"a": "1g.10gb", "b": "1g.10gb"}, NOTHING, NOTHING)
    assert small == {"a": Placement("1g.10gb", 0), "b": Placement("1g.10gb", 1)}
    with_half = locate(
        H100_80_SXM, {"a": "1g.10gb", "b": "1g.10gb", "c": "3g.40gb"}, NOTHING, small
    )
    assert with_half == {**small, "c": Placement("3g.40gb", 4)}
    with_four = locate(
        H100_80_SXM, {"a": "1g.10gb", "b": "1g.10gb", "d": "4g.40gb"}, NOTHING, small
    )
    assert with_four["d"] == Placement("4g.40gb", 0), "nowhere else"
    assert {with_four["a"].start, with_four["b"].start} <= {4, 5, 6}


def test_a_real_place_pushes_out_a_name_that_was_a_guess() -> None:
    guessed = {"a": Placement("1g.10gb", 0), "b": Placement("1g.10gb", 1)}
    found = locate(
        H100_80_SXM, {"a": "1g.10gb", "b": "1g.10gb"}, {"b": Placement("1g.10gb", 0)}, guessed
    )
    assert found == {"b": Placement("1g.10gb", 0), "a": Placement("1g.10gb", 1)}


def test_what_is_told_of_another_cut_is_passed_over() -> None:
    told = {"a": Placement("3g.40gb", 4), "gone": Placement("1g.10gb", 0)}
    assert locate(H100_80_SXM, {"a": "1g.10gb"}, told, NOTHING) == {"a": Placement("1g.10gb", 0)}
    same = Placement("1g.10gb", 2)
    found = locate(H100_80_SXM, {"a": "1g.10gb", "b": "1g.10gb"}, {"a": same, "b": same}, NOTHING)
    assert found == {"a": same, "b": Placement("1g.10gb", 0)}, "two cannot be at one place"


def test_of_more_than_a_table_has_room_for_as_many_as_possible_are_named() -> None:
    halves = dict.fromkeys("abc", "3g.40gb")
    assert locate(H100_80_SXM, halves, NOTHING, NOTHING) == {
        "a": Placement("3g.40gb", 0),
        "b": Placement("3g.40gb", 4),
    }


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_profile_is_found_by_what_the_unprivileged_see_of_it(model: GpuModel) -> None:
    for profile in model.profiles:
        for part in (0.9, 1.0, 1.1):  # drivers print different memory
            found = nearest_profile(
                model,
                profile.compute_slices,
                int(part * profile.memory_mib),
                media=bool(profile.attributes),
            )
            assert found is profile
    # The widest has the media engines of the board without having a variant.
    widest = model.profiles[0]
    assert nearest_profile(model, widest.compute_slices, widest.memory_mib, media=True) is widest
    assert nearest_profile(model, 5, 1000, media=False) is None
