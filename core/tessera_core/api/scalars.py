"""Codecs of values without parts: integers, decimals, durations, quantities, text and choices.

Each is made once, at import, from its bounds, and says in words what it allows; that text is the second half
of every error message. Numbers are strict in the way of the Kubernetes API: an integer is never ``true`` and
never ``3.0``, a decimal is never a float.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any

from tessera_core.api.errors import Report
from tessera_core.api.quantities import (
    Quantity,
    format_decimal,
    format_duration,
    parse_decimal,
    parse_duration,
)

MOST_INTEGER = 2**31 - 1
MOST_SECONDS = 365 * 86400.0
"""Longest duration in a document."""

_EXACT_IN_FLOAT = 2**53
_LONGEST_SUGGESTED = 64
_MILLISECONDS = re.compile(r"([0-9]+(?:\.[0-9]{1,24})?)ms")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A codec from two functions: ``parse`` raises ValueError for what is not allowed."""

    allowed: str
    parse: Callable[[object], object]
    write: Callable[[Any], object] = lambda value: value

    def decode(self, value: object, path: str, report: Report) -> object:
        try:
            return self.parse(value)
        except ValueError:
            return report.refuse(path, value, self.allowed)

    def encode(self, value: Any) -> object:
        return self.write(value)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the values of a string enum."""

    enum: type[Enum]
    but: frozenset[Enum] = frozenset()
    """Values that are not for documents."""

    @property
    def allowed(self) -> str:
        return ", ".join(f'"{value}"' for value in self.values)

    @property
    def values(self) -> list[str]:
        return [member.value for member in self.enum if member not in self.but]

    def decode(self, value: object, path: str, report: Report) -> object:
        if isinstance(value, str):
            if value in self.values:
                return self.enum(value)
            return report.refuse(path, value, self.allowed + suggestion(value, self.values))
        hint = ""
        if isinstance(value, bool):
            hint = " (in quotes: YAML reads a bare On, Off, Yes or No as a truth value)"
        return report.refuse(path, value, self.allowed + hint)

    def encode(self, value: Any) -> object:
        return value.value


def suggestion(found: str, known: list[str]) -> str:
    """`` (did you mean …?)`` where ``found`` is close to one of ``known``, else nothing."""
    if len(found) > _LONGEST_SUGGESTED:  # matching is quadratic in the length
        return ""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(found.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""


def integer(least: int = 0, most: int = MOST_INTEGER) -> Leaf:
    """An integer from ``least`` to ``most``."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError("not such an integer")
        return value

    return Leaf(f"an integer from {least} to {most}", parse)


def decimal(
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    example: str = "0.5",
) -> Leaf:
    """A decimal string within bounds, as a float."""
    words, check = _bounds(format_decimal, least, most, above, below)

    def parse(value: object) -> float:
        return check(parse_decimal(_string(value)))

    return Leaf(f'a decimal string{words} such as "{example}"', parse, format_decimal)


def number(*, least: float | None = None, most: float | None = None) -> Leaf:
    """An integer, or a decimal string where it has a fraction, as a float."""
    words, check = _bounds(format_decimal, least, most)

    def parse(value: object) -> float:
        if isinstance(value, int) and not isinstance(value, bool):
            if abs(value) > _EXACT_IN_FLOAT:
                raise ValueError("not exact as a float")
            return check(float(value))
        return check(parse_decimal(_string(value)))

    def write(value: float) -> object:
        whole = float(value).is_integer() and abs(value) <= _EXACT_IN_FLOAT
        return int(value) if whole else format_decimal(value)

    return Leaf(f'an integer or a decimal string{words} such as 300 or "0.5"', parse, write)


def duration(*, above: float | None = None, most: float = MOST_SECONDS) -> Leaf:
    """A duration string such as ``50ms``, as seconds."""
    words, check = _bounds(format_duration, None, most, above)

    def parse(value: object) -> float:
        return check(parse_duration(_string(value)))

    return Leaf(f'a duration{words} such as "50ms", "5m" or "1h30m"', parse, format_duration)


def milliseconds() -> Leaf:
    """A duration string, as milliseconds: measured latencies keep the unit they are read in."""

    def parse(value: object) -> float:
        text = _string(value)
        if plain := _MILLISECONDS.fullmatch(text):
            return parse_decimal(plain[1])
        return round(parse_duration(text) * 1e3, 9)  # 1.001s is 1001, not 1000.9999999999999

    def write(value: float) -> str:
        return f"{Decimal(format_decimal(value)):f}ms"

    return Leaf('a duration such as "12.5ms"', parse, write)


def quantity() -> Leaf:
    """A Kubernetes quantity: text, or an integer, which the API server accepts as well."""

    def parse(value: object) -> Quantity:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
            return Quantity(str(value))
        return Quantity(_string(value))

    return Leaf('a quantity such as 8, "500m" or "16Gi"', parse, lambda value: value.text)


def text(most: int = 1024) -> Leaf:
    """Any text of at most ``most`` characters."""

    def parse(value: object) -> str:
        if len(found := _string(value)) > most:
            raise ValueError("too long")
        return found

    return Leaf(f"a string of at most {most} characters", parse)


def matching(pattern: str, allowed: str, most: int = 1024) -> Leaf:
    """Text that matches the whole of ``pattern``, which must not backtrack without bound."""
    compiled = re.compile(pattern, re.ASCII)

    def parse(value: object) -> str:
        found = _string(value)
        if len(found) > most or not compiled.fullmatch(found):
            raise ValueError("no match")
        return found

    return Leaf(allowed, parse)


def boolean() -> Leaf:
    """``true`` or ``false``."""

    def parse(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError("not a truth value")
        return value

    return Leaf("true or false", parse)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value


def _bounds(
    write: Callable[[float], str],
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> tuple[str, Callable[[float], float]]:
    """The words for a range, and a check that hands its argument on or raises ValueError."""
    named = (("above", above), ("of at least", least), ("below", below), ("of at most", most))
    words = " and".join(f" {word} {write(bound)}" for word, bound in named if bound is not None)

    def check(found: float) -> float:
        if (
            (least is not None and found < least)
            or (most is not None and found > most)
            or (above is not None and found <= above)
            or (below is not None and found >= below)
        ):
            raise ValueError("out of range")
        return found

    return words, check
