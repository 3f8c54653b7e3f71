"""From one geometry of a GPU to another: every step legal, what stays untouched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.gpu.geometry import (
    Geometry,
    GeometryError,
    Placement,
    canonical,
    layouts,
    violations,
)
from tessera_core.gpu.mig import GpuModel
from tessera_core.gpu.recut import Create, Destroy, recut
from tessera_core.gpu.tables import A30, H100_80_SXM, MODELS


@st.composite
def changes(draw: st.DrawFn) -> tuple[GpuModel, Geometry, Geometry, Geometry]:
    """A board, what it has, what is wanted of it, and what of the first is unfinished."""
    model = draw(st.sampled_from(MODELS))
    present = draw(st.sampled_from(layouts(model)))
    wanted = draw(st.sampled_from(layouts(model)))
    unfinished = draw(st.sets(st.sampled_from(present))) if present else set()
    return model, present, wanted, canonical(unfinished)


@given(changes())
def test_every_step_is_legal_and_the_last_leaves_what_is_wanted(
    change: tuple[GpuModel, Geometry, Geometry, Geometry],
) -> None:
    model, present, wanted, unfinished = change
    held = set(present)
    for step in recut(model, present, wanted, unfinished):
        match step:
            case Destroy(placement):
                held.remove(placement)
            case Create(placement):
                assert placement not in held
                held.add(placement)
        assert violations(model, held) == ()
    assert canonical(held) == wanted


@given(changes())
def test_what_is_wanted_and_whole_is_not_touched(
    change: tuple[GpuModel, Geometry, Geometry, Geometry],
) -> None:
    model, present, wanted, unfinished = change
    touched = [step.placement for step in recut(model, present, wanted, unfinished)]
    stays = (set(present) & set(wanted)) - set(unfinished)
    assert stays.isdisjoint(touched)


@given(changes(), st.data())
def test_cut_off_anywhere_the_rest_of_the_steps_is_what_remains(
    change: tuple[GpuModel, Geometry, Geometry, Geometry], data: st.DataObject
) -> None:
    model, present, wanted, unfinished = change
    steps = recut(model, present, wanted, unfinished)
    done = data.draw(st.integers(0, len(steps)))
    held, left = set(present), set(unfinished)
    for step in steps[:done]:
        if isinstance(step, Destroy):
            held.remove(step.placement)
            left.discard(step.placement)
        else:
            held.add(step.placement)
    assert recut(model, held, wanted, left) == steps[done:]


def test_destroys_come_first_and_wide_instances_before_narrow_ones() -> None:
    present = (Placement("1g.10gb", 6),)
    wanted = (
        Placement("1g.10gb", 0),
        Placement("1g.10gb", 1),
        Placement("2g.20gb", 2),
        Placement("3g.40gb", 4),
    )
    assert recut(H100_80_SXM, present, wanted) == (
        Destroy(Placement("1g.10gb", 6)),
        Create(Placement("3g.40gb", 4)),
        Create(Placement("2g.20gb", 2)),
        Create(Placement("1g.10gb", 0)),
        Create(Placement("1g.10gb", 1)),
    )


def test_a_profile_that_no_table_has_is_destroyed() -> None:
    foreign, wanted = Placement("1g.6gb+gfx", 0), Placement("4g.24gb", 0)
    assert recut(A30, [foreign], [wanted]) == (Destroy(foreign), Create(wanted))


def test_an_illegal_goal_is_refused_with_the_rule() -> None:
    with pytest.raises(GeometryError, match="share memory slices 4, 5"):
        recut(H100_80_SXM, (), (Placement("3g.40gb", 4), Placement("2g.20gb", 4)))
