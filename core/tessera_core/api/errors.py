"""Why a document was refused, as values.

    ValueError
     └─ SpecInvalid          every FieldError of one document, in document order, cross-field rules last

A user repairs a file in one go only when all of its errors are shown at once, each with the path of the
field, what stands there and what may stand there. So decoding collects, and raises once at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

SHOWN_ERRORS = 20
"""Errors printed in a message; ``SpecInvalid.errors`` holds all of them."""

_SHOWN_CHARACTERS = 64
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CREDENTIALS = re.compile(r"://[^/@\s]*@")


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with one field."""

    path: str
    """Where, e.g. ``spec.members[1].weight``."""
    found: str
    """What stands there, shortened; credentials in a URI are masked."""
    allowed: str
    """What may stand there, or what to do about it."""

    def __str__(self) -> str:
        return f"{self.path or 'document'}: found {self.found}, allowed: {self.allowed}"

    def within(self, parent: str) -> FieldError:
        """The same error, seen from a document that holds this one at ``parent``."""
        joint = "" if not parent or not self.path or self.path.startswith("[") else "."
        return replace(self, path=f"{parent}{joint}{self.path}")


class SpecInvalid(ValueError):
    """A document that is not a valid object of its kind."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__(self.errors)

    def __str__(self) -> str:
        lines = [str(error) for error in self.errors[:SHOWN_ERRORS]]
        if more := len(self.errors) - len(lines):
            lines.append(f"and {more} more errors")
        return "\n".join(lines)


class _Unread(Enum):
    UNREAD = 0


UNREAD: Final = _Unread.UNREAD
"""Stands for a value that was refused: neither a value nor an absent one."""


@dataclass(slots=True)
class Report:
    """What one walk over a document found wrong."""

    strict: bool = True
    """Whether an unknown field is an error."""
    errors: list[FieldError] = field(default_factory=list)

    def refuse(self, path: str, value: object, allowed: str) -> _Unread:
        """Note that ``value`` may not stand at ``path``."""
        self.errors.append(FieldError(path, describe(value), allowed))
        return UNREAD


def child(parent: str, key: object) -> str:
    """The path of field ``key`` of the mapping at ``parent``."""
    if not isinstance(key, str):
        return f"{parent}[{describe(key)}]"
    if not _PLAIN_KEY.fullmatch(key):
        return f"{parent}[{_shortened(key)}]"
    return f"{parent}.{key}" if parent else key


def describe(value: object) -> str:
    """A short text for a value of any size and depth.

    Containers are counted and never walked: a hostile document must not cost time or recursion here.
    """
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return repr(_shortened(_CREDENTIALS.sub("://***@", value)))
        case int() if value.bit_length() > 128:
            return f"an integer of {value.bit_length()} bits"
        case int() | float():
            return str(value)
        case Mapping():
            return f"a mapping with {len(value)} fields"
        case list() | tuple():
            return f"a list of {len(value)} items"
        case _:
            return f"a value of type {type(value).__name__}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
