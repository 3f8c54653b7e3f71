"""Reads plain mappings into frozen dataclasses and writes them back.

The problem: five kinds with some two hundred fields, each with a type, a range and a default, decoded with
errors that name the field, and encoded so that both directions agree. The approach: a field's annotation is
its whole declaration, and one walker reads and writes all of them::

    percent: Annotated[float, decimal(above=0, below=100)]                    # no default: required
    window_s: Annotated[float, duration(above=0), Name("window")] = 300.0     # "5m" in the document

Without an annotation of its own, ``bool``, ``int``, ``str``, enums, dataclasses, ``X | None`` and
``tuple[X, ...]`` mean the obvious codec. A field is called in the document as in Python but in camelCase,
unless a Name says otherwise. ``null`` is the same as an absent field. Encoding writes defaults out and leaves
out what is empty.

A walk follows the declarations, never the document, so its depth is bounded by the schema; list lengths
are checked before their items are read.

Cross-field rules are the functions in a class's RULES. They run even when other fields were refused, so that
one pass reports all there is to say: a field that could not be read is simply absent from the object, and a
rule that touches it ends there.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Protocol, Union

from tessera_core.api.errors import UNREAD, FieldError, Report, child
from tessera_core.api.scalars import Choice, boolean, integer, suggestion, text

Rule = Callable[[Any], Iterable[FieldError]]
"""Checks a decoded object; the errors' paths are relative to that object."""

_SHOWN_UNKNOWN = 8


class Codec(Protocol):
    """Both directions of one type of value."""

    @property
    def allowed(self) -> str:
        """What may stand in a document, in words."""

    def decode(self, value: object, path: str, report: Report) -> object:
        """The decoded value, or UNREAD and an entry in ``report``."""

    def encode(self, value: Any) -> object:
        """The plain value for a document."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a field is called in a document, where the attribute's name adds a unit to it."""

    text: str


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of ``least`` to ``most`` items, as a tuple; no two with the same value of attribute ``key``."""

    item: Codec
    least: int = 0
    most: int = 256
    key: str | None = None

    @property
    def allowed(self) -> str:
        size = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"a list of {size} items"

    def decode(self, value: object, path: str, report: Report) -> object:
        if not isinstance(value, list | tuple) or not self.least <= len(value) <= self.most:
            return report.refuse(path, value, self.allowed)
        items = tuple(
            self.item.decode(item, f"{path}[{index}]", report) for index, item in enumerate(value)
        )
        if self.key:
            self._refuse_repeated(items, path, self.key, report)
        return UNREAD if UNREAD in items else items

    def _refuse_repeated(
        self, items: tuple[object, ...], path: str, key: str, report: Report
    ) -> None:
        seen: dict[object, int] = {}
        for index, item in enumerate(items):
            name = getattr(item, key, None)
            first = seen.setdefault(name, index)
            if name is not None and first != index:
                allowed = f"a {key} of its own; {path}[{first}] has this one"
                report.refuse(f"{path}[{index}].{key}", name, allowed)

    def encode(self, value: Any) -> object:
        return [self.item.encode(item) for item in value]


@dataclass(frozen=True, slots=True)
class MapOf:
    """A mapping with free keys, as pairs sorted by key: hashable, and equal whatever the order was."""

    key: Codec
    value: Codec
    least: int = 0
    most: int = 64

    @property
    def allowed(self) -> str:
        return f"a mapping of {self.least} to {self.most} fields"

    def decode(self, value: object, path: str, report: Report) -> object:
        if not isinstance(value, Mapping) or not self.least <= len(value) <= self.most:
            return report.refuse(path, value, self.allowed)
        pairs = [
            (
                self.key.decode(key, child(path, key), report),
                self.value.decode(item, child(path, key), report),
            )
            for key, item in value.items()
        ]
        if any(UNREAD in pair for pair in pairs):
            return UNREAD
        return tuple(sorted(pairs, key=lambda pair: str(pair[0])))

    def encode(self, value: Any) -> object:
        return {key: self.value.encode(item) for key, item in value}


@dataclass(frozen=True, slots=True)
class Field:
    """One declared field of a record."""

    attribute: str
    name: str
    codec: Codec
    required: bool
    default: object


class Record:
    """A mapping with declared fields, as an instance of the frozen, slotted dataclass ``cls``.

    ``declared`` gives annotations for the fields of a class that is defined elsewhere and carries none.
    """

    allowed = "a mapping"

    def __init__(self, cls: type[Any], **declared: object) -> None:
        self.cls = cls
        self.fields = _fields(cls, declared)
        self._names = [field.name for field in self.fields]
        self._known = frozenset(self._names) | getattr(cls, "IGNORED", frozenset())

    def decode(self, value: object, path: str, report: Report) -> object:
        if not isinstance(value, Mapping):
            report.refuse(path, value, self.allowed)
            return self._partial({})
        if report.strict:
            self._refuse_unknown(value, path, report)
        document: Mapping[Any, Any] = value
        if complete := getattr(self.cls, "complete", None):
            document = complete(document)
        values = self._values(document, path, report)
        record = self._made(values, path, report)
        self._apply_rules(record, path, report)
        return record

    def _values(self, document: Mapping[Any, Any], path: str, report: Report) -> dict[str, object]:
        """Attributes by name, without those that were refused."""
        values = {}
        for field in self.fields:
            found = document.get(field.name)
            result = field.default
            if found is not None:
                result = field.codec.decode(found, child(path, field.name), report)
            elif field.required:
                result = report.refuse(child(path, field.name), None, field.codec.allowed)
            if result is not UNREAD:
                values[field.attribute] = result
        return values

    def _made(self, values: dict[str, object], path: str, report: Report) -> object:
        if len(values) < len(self.fields):
            return self._partial(values)
        try:
            return self.cls(**values)
        except ValueError as violated:  # the class guards itself
            report.errors.append(FieldError(path, "fields that do not go together", str(violated)))
            return self._partial(values)

    def _partial(self, values: dict[str, object]) -> object:
        """An instance without the attributes that were refused; it never leaves a failed walk."""
        record = object.__new__(self.cls)
        for name, value in values.items():
            object.__setattr__(record, name, value)
        return record

    def _apply_rules(self, record: object, path: str, report: Report) -> None:
        for rule in getattr(self.cls, "RULES", ()):
            try:
                for error in rule(record):
                    report.errors.append(error.within(path))
            except AttributeError:
                if not report.errors:  # every field was read, so the rule itself is wrong
                    raise

    def _refuse_unknown(self, value: Mapping[object, object], path: str, report: Report) -> None:
        unknown = [key for key in value if key not in self._known]
        for key in unknown[:_SHOWN_UNKNOWN]:
            hint = suggestion(key, self._names) if isinstance(key, str) else ""
            allowed = f"{', '.join(self._names)}{hint}"
            report.errors.append(FieldError(child(path, key), "an unknown field", allowed))
        if len(unknown) > _SHOWN_UNKNOWN:
            found = f"{len(unknown) - _SHOWN_UNKNOWN} more unknown fields"
            report.errors.append(FieldError(path, found, ", ".join(self._names)))

    def encode(self, value: Any) -> dict[str, object]:
        document: dict[str, object] = {}
        for field in self.fields:
            held = getattr(value, field.attribute)
            plain = None if held is None else field.codec.encode(held)
            if field.required or plain not in (None, {}, []):
                document[field.name] = plain
        return document


@cache
def _record(cls: Any) -> Record:
    return Record(cls)


def record(cls: type[Any]) -> Record:
    """The codec of a dataclass, made once."""
    codec: Any = cls  # typeshed's cache wants Hashable, which mypy denies to type[Self]
    return _record(codec)


def codec_for(annotation: Any) -> Codec:
    """The codec that a field's annotation stands for."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        for extra in annotation.__metadata__:
            if not isinstance(extra, Name):
                codec: Codec = extra
                return codec
        return codec_for(annotation.__origin__)
    if origin in (Union, types.UnionType):
        (present,) = (argument for argument in arguments if argument is not type(None))
        return codec_for(present)
    if origin is tuple:
        return ListOf(codec_for(arguments[0]))
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    return Choice(annotation) if issubclass(annotation, Enum) else record(annotation)


_PLAIN: dict[object, Codec] = {bool: boolean(), int: integer(), str: text()}


def _fields(cls: type[Any], declared: Mapping[str, object]) -> tuple[Field, ...]:
    annotations = {**typing.get_type_hints(cls, include_extras=True), **declared}
    return tuple(_field(field, annotations[field.name]) for field in dataclasses.fields(cls))


def _field(field: dataclasses.Field[Any], annotation: Any) -> Field:
    names = [
        extra.text for extra in getattr(annotation, "__metadata__", ()) if isinstance(extra, Name)
    ]
    head, *tail = field.name.split("_")
    return Field(
        attribute=field.name,
        name=names[0] if names else head + "".join(word.capitalize() for word in tail),
        codec=codec_for(annotation),
        required=field.default is dataclasses.MISSING,
        default=field.default,
    )
