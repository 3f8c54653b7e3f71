import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.tuning.verdict import (
    GAIN,
    Figures,
    Paired,
    Reason,
    best,
    chance,
    judge,
)

TURNS = 5


def cell(
    share: float, p99: float, throughput: float, batch: int = 1, wins: int | None = None
) -> Paired:
    """The ratios over an untuned model of 10 ms and 100 rows a second; ``wins``: by default all turns or none."""
    return Paired(
        share,
        batch,
        1,
        Figures(5.0 * p99, 10.0 * p99, 100.0 * throughput),
        Figures(5.0, 10.0, 100.0),
        TURNS,
        (TURNS if p99 < 1.0 else 0) if wins is None else wins,
        (TURNS if throughput > 1.0 else 0) if wins is None else wins,
    )


def verdict(*cells: Paired, problem: str = "", error: float = 0.0, variant: str = "torch/bf16"):
    return judge(variant, problem, error, 1e-2, cells)


@pytest.mark.parametrize(
    ("p99", "throughput", "promoted"),
    [
        (1.0, 1.0, False),
        (0.98, 1.02, False),
        (0.96, 1.0, True),
        (1.0, 1.04, True),
        (0.5, 0.9, False),
        (1.1, 2.0, False),
    ],
)
def test_a_gain_at_the_serving_share_promotes_unless_the_other_figure_loses(
    p99: float, throughput: float, promoted: bool
) -> None:
    found = verdict(cell(1.0, p99, throughput))
    assert found.promote == promoted
    assert found.reason is (Reason.FASTER if promoted else Reason.NOT_FASTER)
    assert found.p99_ratio == pytest.approx(p99)
    assert found.throughput_ratio == pytest.approx(throughput)


def test_a_loss_at_another_share_is_said_and_does_not_decide() -> None:
    found = verdict(cell(1.0, 0.5, 2.0), cell(0.5, 1.2, 0.8), cell(2.0, 0.9, 1.1))
    assert found.promote
    assert found.losses == ("at 0.5 of the share: p99 1.20 and throughput 0.80 of untuned",)
    assert "slower at 0.5 of the share" in found.words


def test_a_gain_at_another_share_alone_does_not_promote() -> None:
    assert not verdict(cell(1.0, 1.0, 1.0), cell(0.5, 0.1, 9.0)).promote


def test_the_median_over_sizes_of_batches_counts() -> None:
    assert not verdict(cell(1.0, 0.5, 2.0), cell(1.0, 1.0, 1.0, 2), cell(1.0, 1.0, 1.0, 4)).promote


@pytest.mark.parametrize(("wins", "promoted"), [(4, False), (5, True)])
def test_a_gain_that_may_be_chance_does_not_promote(wins: int, promoted: bool) -> None:
    found = verdict(cell(1.0, 0.9, 1.0, wins=wins))
    assert found.promote == promoted
    assert ("may be chance" in found.words) != promoted


def test_what_is_faster_with_large_batches_alone_is_promoted_where_most_sizes_are_large() -> None:
    large = [cell(1.0, 0.6, 1.6, batch=batch) for batch in (8, 64)]
    assert verdict(cell(1.0, 1.0, 1.0, wins=2), *large).promote


def test_turns_of_one_size_do_not_make_the_gain_of_another_certain() -> None:
    certain, doubtful = cell(1.0, 0.9, 1.0, 1), [cell(1.0, 0.9, 1.0, n, wins=4) for n in (8, 64)]
    found = verdict(certain, *doubtful)
    assert not found.promote
    assert "may be chance" in found.words
    assert found.p99_ratio == pytest.approx(0.9)


@given(
    st.lists(
        st.tuples(st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.integers(0, TURNS)),
        min_size=1,
        max_size=4,
    )
)
def test_turns_lost_to_the_untuned_model_never_promote(found) -> None:
    won = [cell(1.0, p99, throughput, batch) for batch, (p99, throughput, _) in enumerate(found)]
    lost = [
        cell(1.0, p99, throughput, batch, wins)
        for batch, (p99, throughput, wins) in enumerate(found)
    ]
    assert verdict(*won).promote or not verdict(*lost).promote


@pytest.mark.parametrize("turns", [1, 5, 10])
def test_chance_is_the_part_of_all_sequences_of_turns_with_as_many_wins(turns: int) -> None:
    won = [sum(each) for each in itertools.product((0, 1), repeat=turns)]
    for wins in range(turns + 1):
        part = sum(each >= wins for each in won) / len(won)
        assert chance(wins, turns) == pytest.approx(part)


@pytest.mark.parametrize("error", [0.02, math.inf, math.nan])
def test_answers_that_differ_are_refused_however_fast(error: float) -> None:
    found = verdict(cell(1.0, 0.1, 9.0), error=error)
    assert (found.promote, found.reason) == (False, Reason.DIFFERS)


def test_what_failed_says_why() -> None:
    found = verdict(problem="no compiler", error=-1.0)
    assert (found.promote, found.reason, found.words) == (False, Reason.FAILED, "no compiler")


def test_what_was_not_measured_where_it_serves_is_not_promoted() -> None:
    assert verdict(cell(2.0, 0.1, 9.0)).reason is Reason.NOT_MEASURED


@given(st.floats(0.1, 3.0), st.floats(0.1, 3.0), st.floats(0.0, 0.02))
def test_whoever_is_promoted_gains_and_loses_nothing_where_it_serves(
    p99, throughput, error
) -> None:
    found = verdict(cell(1.0, p99, throughput), error=error)
    if found.promote:
        assert error <= 1e-2
        assert p99 <= 1 - GAIN + 1e-9 or throughput >= 1 + GAIN - 1e-9
        assert p99 < 1 + GAIN
        assert throughput > 1 - GAIN


def test_the_best_is_a_promoted_one_whatever_the_order() -> None:
    found = [
        verdict(cell(1.0, 0.9, 1.1), variant="b"),
        verdict(cell(1.0, 0.5, 1.5), variant="c"),
        verdict(cell(1.0, 0.1, 9.0), error=1.0, variant="a"),
    ]
    for order in (found, found[::-1]):
        chosen = best(order)
        assert chosen is not None
        assert chosen.variant == "c"
    assert best(found[2:]) is None
