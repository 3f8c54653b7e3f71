from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.tuning.shards import merge, remaining, share_out


@dataclass(frozen=True)
class Found:
    variant: str
    problem: str = ""
    error: float = 0.0


NAMES = [f"torch/{number}" for number in range(6)]

found = st.builds(Found, st.sampled_from(NAMES), st.sampled_from(["", "failed"]), st.floats(0, 1))
parts = st.lists(found, max_size=6).map(lambda each: {one.variant: one for one in each})


@given(st.lists(st.text(max_size=3), unique=True), st.integers(1, 9))
def test_every_candidate_has_one_worker_and_loads_are_even(candidates, workers) -> None:
    shares = share_out(candidates, workers)
    assert len(shares) == workers
    assert sorted(each for share in shares for each in share) == sorted(candidates)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_all_workers_have_promising_ones_first() -> None:
    assert share_out("abcde", 2) == (("a", "c", "e"), ("b", "d"))


def test_without_workers_nothing_is_shared_out() -> None:
    with pytest.raises(ValueError, match="0 workers"):
        share_out(["a"], 0)


@given(parts, parts, parts)
def test_merging_is_associative_commutative_and_idempotent(one, other, third) -> None:
    assert merge(merge(one, other), third) == merge(one, merge(other, third))
    assert merge(one, other) == merge(other, one)
    assert merge(one, one) == merge(one)
    assert list(merge(one, other)) == sorted({*one, *other})


@given(parts, parts)
def test_what_was_measured_is_never_lost_to_a_failure(one, other) -> None:
    merged = merge(one, other)
    for part in (one, other):
        for name, outcome in part.items():
            assert not merged[name].problem or outcome.problem


@given(parts)
def test_what_remains_is_what_is_not_known(known) -> None:
    assert remaining(NAMES, known) == tuple(name for name in NAMES if name not in known)
