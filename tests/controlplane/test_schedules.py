"""Cron schedules: what their fields take, and when a window opens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_operator.schedules import ScheduleError, schedule

NOW = datetime(2026, 1, 31, 12, 0, 30, tzinfo=UTC)  # a Saturday


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "last", "following"),
    [
        ("* * * * *", "2026-01-31T12:00", "2026-01-31T12:01"),
        ("*/15 * * * *", "2026-01-31T12:00", "2026-01-31T12:15"),
        ("5/20 12 * * *", "2026-01-30T12:45", "2026-01-31T12:05"),
        ("0 2 * * 6", "2026-01-31T02:00", "2026-02-07T02:00"),
        ("0 2 * * SAT,sun", "2026-01-31T02:00", "2026-02-01T02:00"),
        ("0 2 * * 7", "2026-01-25T02:00", "2026-02-01T02:00"),
        ("30 23 31 * *", "2025-12-31T23:30", "2026-01-31T23:30"),
        ("0 0 29 feb *", "2024-02-29T00:00", "2028-02-29T00:00"),
        ("0 4 1-7 * *", "2026-01-07T04:00", "2026-02-01T04:00"),
        ("0 4 13 * FRI", "2026-01-30T04:00", "2026-02-06T04:00"),
        ("0 4 */2 * FRI", "2026-01-23T04:00", "2026-02-13T04:00"),
        ("59-0/1 * * * *", "", ""),
        ("0,30 8-18/5 * 1-3,12 *", "2026-01-31T08:30", "2026-01-31T13:00"),
    ],
)
def test_a_window_opened_last_and_opens_next(text: str, last: str, following: str) -> None:
    if not last:
        with pytest.raises(ScheduleError, match="ends before it begins"):
            schedule(text)
        return
    found = schedule(text)
    assert (found.last(NOW), found.next(NOW)) == (at(last), at(following))


def test_a_time_is_its_own_last_and_not_its_own_next() -> None:
    found, noon = schedule("0 12 * * *"), at("2026-01-31T12:00")
    assert found.last(noon) == noon
    assert found.next(noon) == noon + timedelta(days=1)


def test_a_day_that_never_comes_never_comes() -> None:
    found = schedule("0 0 30 2 *")
    assert found.last(NOW) is None
    assert found.next(NOW) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("* * * *", "found 4 fields"),
        ("60 * * * *", "minute: found '60'"),
        ("* 24 * * *", "hour: found '24'"),
        ("* * 0 * *", "day of month: found '0'"),
        ("* * * 13 *", "month: found '13'"),
        ("* * * * 8", "day of week: found '8'"),
        ("* * * * L", "day of week: found 'L'"),
        ("* * * FEBR *", "month: found 'FEBR'"),
        ("*/0 * * * *", "minute: found '\\*/0'"),
        ("1- * * * *", "minute: found '1-'"),
        ("1,,2 * * * *", "minute: found ''"),
        ("-1 * * * *", "minute: found '-1'"),
        ("*-5 * * * *", "minute: found '\\*-5'"),
    ],
)
def test_what_is_no_schedule_is_refused_with_its_field(text: str, found: str) -> None:
    with pytest.raises(ScheduleError, match=found):
        schedule(text)


FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


@st.composite
def fields(draw: st.DrawFn) -> list[tuple[str, set[int]]]:
    """Five fields, and the values that each of them names."""
    found = []
    for least, most in FIELDS:
        kind = draw(st.sampled_from(("star", "step", "values", "range")))
        if kind == "star":
            found.append(("*", set(range(least, most + 1))))
        elif kind == "step":
            step = draw(st.integers(1, most))
            found.append((f"*/{step}", set(range(least, most + 1, step))))
        elif kind == "values":
            values = draw(st.sets(st.integers(least, most), min_size=1, max_size=4))
            found.append((",".join(map(str, values)), values))
        else:
            first, last = sorted(draw(st.tuples(*2 * [st.integers(least, most)])))
            found.append((f"{first}-{last}", set(range(first, last + 1))))
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(fields(), st.integers(0, 120 * 24 * 60))
def test_minute_by_minute_a_schedule_is_what_its_fields_say(
    drawn: list[tuple[str, set[int]]], start: int
) -> None:
    """Beside a definition of its own: every minute of two days is looked at."""
    found = schedule(" ".join(text for text, _ in drawn))
    minutes, hours, days, months, weekdays = (values for _, values in drawn)
    of_days = not drawn[2][0].startswith("*"), not drawn[4][0].startswith("*")

    def is_named(minute: datetime) -> bool:
        month_day = minute.day in days
        week_day = (minute.weekday() + 1) % 7 in {each % 7 for each in weekdays}
        day = month_day or week_day if all(of_days) else month_day and week_day
        return minute.minute in minutes and minute.hour in hours and minute.month in months and day

    first = at("2023-12-01") + timedelta(minutes=start)
    named = [
        minute
        for index in range(2 * 24 * 60)
        for minute in [first + timedelta(minutes=index)]
        if is_named(minute)
    ]
    middle = first + timedelta(days=1, seconds=30)
    before = [each for each in named if each <= middle]
    after = [each for each in named if each > middle]
    last, following = found.last(middle), found.next(middle)
    assert (last == before[-1]) if before else (last is None or last < first)
    assert (following == after[0]) if after else (following is None or following >= first)
    assert not after or following in named
