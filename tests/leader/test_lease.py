"""Leader election: never two leaders at once, whatever is late; always one in the end; epochs only grow."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_operator.lease import Record, Seen, Timing, claim, look, must_stop, still_mine

TIMING = Timing()


def test_without_a_lease_anybody_may_lead() -> None:
    assert claim(None, "a", 0.0, TIMING, 0) == Record("a", 1, "")


def test_a_lease_that_was_given_back_is_free_at_once() -> None:
    seen = Seen(Record("", 4, "v7"), 100.0)
    assert claim(seen, "b", 100.0, TIMING, 0) == Record("b", 5, "v7")


def test_a_candidate_that_was_restarted_leads_anew() -> None:
    seen = Seen(Record("a", 4, "v7"), 100.0)
    assert claim(seen, "a", 100.0, TIMING, 0) == Record("a", 5, "v7")


def test_a_held_lease_is_free_when_it_did_not_change_for_its_duration() -> None:
    seen = look(None, Record("a", 4, "v7"), 100.0)
    seen = look(seen, Record("a", 4, "v7"), 110.0)
    assert claim(seen, "b", 114.9, TIMING, 0) is None
    assert claim(seen, "b", 115.0, TIMING, 0) == Record("b", 5, "v7")


def test_a_renewal_starts_the_wait_again() -> None:
    seen = look(Seen(Record("a", 4, "v7"), 100.0), Record("a", 4, "v8"), 110.0)
    assert claim(seen, "b", 120.0, TIMING, 0) is None


@pytest.mark.parametrize("seen", [None, Seen(Record("", 2, "v1"), 0.0)])
def test_a_lease_that_counts_anew_starts_above_what_was_written_before(seen: Seen | None) -> None:
    wanted = claim(seen, "a", 0.0, TIMING, 41)
    assert wanted is not None
    assert wanted.transitions == 42


def test_a_lease_that_a_person_wrote_to_is_still_held() -> None:
    held = Record("a", 4, "v7")
    assert still_mine(held, Record("a", 4, "v9"))
    assert not still_mine(held, Record("b", 5, "v9"))
    assert not still_mine(held, Record("a", 5, "v9"))
    assert not still_mine(held, None)


@pytest.mark.parametrize("wrong", [(15, 15, 2), (15, 10, 10), (15, 10, 0)])
def test_timing_that_lets_two_lead_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="retry_s < renew_within_s < duration_s"):
        Timing(*wrong)


class Candidate:
    """One operator on a machine whose clock runs at its own speed."""

    def __init__(self, name: str, speed: float) -> None:
        self.name = name
        self.speed = speed
        self.seen: Seen | None = None
        self.held: Record | None = None
        self.renewed_s = -math.inf

    def now(self, time_s: float) -> float:
        return time_s * self.speed

    def leads(self, time_s: float) -> bool:
        return self.held is not None and not must_stop(self.renewed_s, self.now(time_s), TIMING)


class Server:
    """The Lease, with the API server's check of versions."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.writes = 0

    def write(self, wanted: Record) -> Record | None:
        if wanted.version != (self.record.version if self.record else ""):
            return None
        self.writes += 1
        self.record = wanted._replace(version=str(self.writes))
        return self.record


def turn(candidate: Candidate, server: Server, time_s: float, answered: bool) -> None:
    """One look or renewal; when it is not ``answered``, the write lands and its sender does not know."""
    now_s = candidate.now(time_s)
    if candidate.held is not None:
        if not candidate.leads(time_s):
            candidate.held = None
            return
        written = server.write(candidate.held)
        if answered and written is not None:
            candidate.held, candidate.renewed_s = written, now_s
        elif answered:
            found = server.record
            candidate.held = found if still_mine(candidate.held, found) else None
        return
    record = server.record
    candidate.seen = None if record is None else look(candidate.seen, record, now_s)
    wanted = claim(candidate.seen, candidate.name, now_s, TIMING, 0)
    if wanted is not None:
        written = server.write(wanted)
        if answered and written is not None:
            candidate.held, candidate.renewed_s = written, now_s


MOMENTS = st.tuples(
    st.integers(0, 2),
    st.floats(0.05, 9.0),
    st.sampled_from(("answered", "answered", "answered", "lost")),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.lists(MOMENTS, max_size=120),
    st.tuples(*[st.floats(0.9, 1.1)] * 3),
)
def test_two_never_lead_at_once_and_epochs_only_grow(
    moments: list[tuple[int, float, str]], speeds: tuple[float, float, float]
) -> None:
    candidates = [Candidate(name, speed) for name, speed in zip("abc", speeds, strict=True)]
    server, time_s, epoch = Server(), 0.0, 0
    for who, passed_s, fate in moments:
        time_s += passed_s
        turn(candidates[who], server, time_s, fate == "answered")
        assert sum(each.leads(time_s) for each in candidates) <= 1
        if server.record is not None:
            assert server.record.transitions >= epoch
            epoch = server.record.transitions


def test_after_a_crash_another_one_leads_within_duration_and_one_retry() -> None:
    first, second, server = Candidate("a", 1.0), Candidate("b", 1.0), Server()
    time_s = 0.0
    while time_s < 60:
        if time_s < 20:
            turn(first, server, time_s, True)
        turn(second, server, time_s, True)
        if second.leads(time_s):
            break
        time_s += TIMING.retry_s
    assert 18 + TIMING.duration_s <= time_s <= 18 + TIMING.duration_s + 2 * TIMING.retry_s
