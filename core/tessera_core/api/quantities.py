"""Durations, decimals and Kubernetes quantities: numbers that documents hold as text.

The Kubernetes API conventions forbid floating point in documents, because a float changes on its way through
JSON implementations. So decimals and durations travel as strings; here they become floats, and back the
shortest string that reads as the same float. Quantities keep the text that was written.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal

MOST_CHARACTERS = 40
"""Longest accepted number text; bounds the work of exact arithmetic."""

_UNITS = {
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("1e-3"),
    "us": Decimal("1e-6"),
    "µs": Decimal("1e-6"),
}
# ASCII digits only: \d would also take the digits of other scripts.
# 24 digits of the smallest unit hold every float from a nanosecond up.
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]{1,24})?)(h|ms|m|s|us|µs)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_DECIMAL = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)?")

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_SUFFIXES = {
    "": Decimal(1),
    **{prefix: Decimal(10) ** power for prefix, power in zip("num", (-9, -6, -3), strict=True)},
    **{prefix: Decimal(10) ** (3 * power) for power, prefix in enumerate("kMGTPE", start=1)},
    **{f"{prefix}i": Decimal(1024) ** power for power, prefix in enumerate("KMGTPE", start=1)},
}


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``50ms``, ``5m``, ``1h30m`` or ``1.5s``.

    Units are ``h``, ``m``, ``s``, ``ms``, ``us`` and ``µs``; parts are added up. Raises ValueError.
    """
    if len(text) > MOST_CHARACTERS or not _DURATION.fullmatch(text):
        raise ValueError(f"not a duration: {text[:MOST_CHARACTERS]!r}")
    parts = _DURATION_PART.findall(text)
    return float(sum(Decimal(number) * _UNITS[unit] for number, unit in parts))


def format_duration(seconds: float) -> str:
    """A duration that parses to exactly ``seconds``: 0, or finite and at least 1e-9.

    One unit, the largest that divides it: 5400.0 is ``90m``, 0.05 is ``50ms``.
    """
    exact = Decimal(repr(seconds))
    if not exact:
        return "0s"
    for unit in ("h", "m", "s", "ms", "us"):
        if exact % _UNITS[unit] == 0:
            return f"{int(exact / _UNITS[unit])}{unit}"
    return f"{exact.scaleb(6):f}us"


def parse_decimal(text: str) -> float:
    """The number of a decimal string such as ``0.5``, ``99`` or ``1e-2``. Raises ValueError."""
    if len(text) > MOST_CHARACTERS or not _DECIMAL.fullmatch(text):
        raise ValueError(f"not a decimal: {text[:MOST_CHARACTERS]!r}")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"too large: {text}")
    return number


def format_decimal(number: float) -> str:
    """The shortest decimal string that parses to exactly ``number`` (finite): 1.0 is ``1``."""
    return repr(float(number)).removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A Kubernetes quantity as it was written, e.g. ``16Gi``, ``500m`` or ``8``.

    Equality is equality of the text, so that a document reads back as it was written; compare amounts by
    ``value``. Raises ValueError for text that is not a quantity or is negative.
    """

    text: str

    def __post_init__(self) -> None:
        if len(self.text) > MOST_CHARACTERS or not _QUANTITY.fullmatch(self.text):
            raise ValueError(f"not a quantity: {self.text[:MOST_CHARACTERS]!r}")

    @property
    def value(self) -> Decimal:
        """The amount in base units: bytes, cores or a count."""
        match = _QUANTITY.fullmatch(self.text)
        assert match is not None  # __post_init__ checked it
        number, suffix = match.groups(default="")
        return Decimal(number) * _SUFFIXES[suffix]
