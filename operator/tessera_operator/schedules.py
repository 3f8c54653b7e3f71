"""Five-field cron schedules, in UTC: when a window opened last, and when it opens next. Pure.

What the fields mean is as in POSIX crontab(1) and Vixie's cron: minute 0-59, hour 0-23, day of month 1-31, month 1-12 or
JAN-DEC, day of week 0-7 or SUN-SAT, of which 0 and 7 are Sunday. A field is ``*``, a value, a range ``a-b``, either with a
step ``/n``, or a list of those. Where both days are restricted, either of them is enough. What cron dialects add to
that (``L``, ``W``, ``#``, ``?``) is refused rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache

_FIELDS = (
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day of month", 1, 31, ""),
    ("month", 1, 12, "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"),
    ("day of week", 0, 7, "SUN MON TUE WED THU FRI SAT"),
)
_PART = re.compile(r"(?P<star>\*)|(?P<first>[0-9A-Za-z]+)(?:-(?P<last>[0-9A-Za-z]+))?")
_MOST_DAYS = 8 * 366 + 1
"""Between two days that a schedule names: the 29th of February comes after eight years at most."""


class ScheduleError(ValueError):
    """A schedule that names no time; says which field, what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The minutes at which a window opens."""

    times: tuple[time, ...]
    """Of a day, ascending."""
    days: frozenset[int]
    """Of the month."""
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    either_day: bool
    """Whether one of the two kinds of day is enough."""

    def takes(self, day: date) -> bool:
        """Whether it names times of ``day``."""
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        named = of_month or of_week if self.either_day else of_month and of_week
        return day.month in self.months and named

    def last(self, now: datetime) -> datetime | None:
        """The latest time that is not after ``now``; None: none in eight years before."""
        return next((at for at in self._from(now, -1) if at <= now), None)

    def next(self, now: datetime) -> datetime | None:
        """The first time after ``now``; None: none in eight years, so there is none."""
        return next((at for at in self._from(now, 1) if at > now), None)

    def _from(self, now: datetime, step: int) -> Iterator[datetime]:
        """Times from the day of ``now`` on, forth or back."""
        for count in range(_MOST_DAYS):
            day = now.date() + timedelta(days=step * count)
            if self.takes(day):
                for each in self.times[::step]:
                    yield datetime.combine(day, each, UTC)


@lru_cache(maxsize=256)
def schedule(text: str) -> Schedule:
    """Read five fields. Raises ScheduleError."""
    parts = text.split()
    if len(parts) != len(_FIELDS):
        raise ScheduleError(f"schedule {text!r}: found {len(parts)} fields, expected 5")
    minutes, hours, days, months, weekdays = (
        frozenset(_values(part, *field)) for part, field in zip(parts, _FIELDS, strict=True)
    )
    return Schedule(
        tuple(time(hour, minute) for hour in sorted(hours) for minute in sorted(minutes)),
        days,
        months,
        frozenset(each % 7 for each in weekdays),
        not parts[2].startswith("*") and not parts[4].startswith("*"),
    )


def _values(text: str, name: str, least: int, most: int, names: str) -> Iterator[int]:
    words = names.split()
    allowed = f"{name}: {{}}, expected *, {least}-{most}, a list or a step such as */2"

    def number(word: str) -> int:
        if word.upper() in words:
            return least + words.index(word.upper())
        if not word.isdecimal() or not least <= int(word) <= most:
            raise ScheduleError(allowed.format(f"found {word!r}"))
        return int(word)

    for part in text.split(","):
        span, slash, step = part.partition("/")
        found = _PART.fullmatch(span)
        if found is None or (slash and not (step.isdecimal() and int(step))):
            raise ScheduleError(allowed.format(f"found {part!r}"))
        if found["star"]:
            first, last = least, most
        else:
            first = number(found["first"])
            last = number(found["last"]) if found["last"] else (most if slash else first)
        if last < first:
            raise ScheduleError(allowed.format(f"found {part!r}, which ends before it begins"))
        yield from range(first, last + 1, int(step) if slash else 1)
