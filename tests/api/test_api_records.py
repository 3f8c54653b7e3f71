"""The walker itself: declarations, rules over what could be read, classes that guard themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest

from tessera_core.api.errors import FieldError, Report, child
from tessera_core.api.records import ListOf, Name, Rule, record
from tessera_core.api.scalars import duration, integer


def _low_below_high(span: Span) -> Iterator[FieldError]:
    if span.low > span.high:
        yield FieldError("low", str(span.low), f"at most {span.high}")


def _not_thirteen(span: Span) -> Iterator[FieldError]:
    if span.high == 13:
        yield FieldError("high", "13", "another number")


@dataclass(frozen=True, slots=True)
class Span:
    RULES: ClassVar[tuple[Rule, ...]] = (_low_below_high, _not_thirteen)

    low: int
    high: int
    wait_s: Annotated[float, duration(), Name("wait")] = 1.0
    max_tries: Annotated[int | None, integer(1)] = None


@dataclass(frozen=True, slots=True)
class Guarded:
    even: int

    def __post_init__(self) -> None:
        if self.even % 2:
            raise ValueError("an even number")


@dataclass(frozen=True, slots=True)
class Holder:
    spans: Annotated[tuple[Span, ...], ListOf(record(Span), most=2)] = ()
    guarded: Guarded | None = None


def _broken_rule(_: object) -> Iterator[FieldError]:
    yield FieldError("", str(_.nothing), "")  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Broken:
    RULES: ClassVar[tuple[Rule, ...]] = (_broken_rule,)


def paths_of(cls: type, document: object, *, strict: bool = True) -> list[str]:
    report = Report(strict)
    record(cls).decode(document, "", report)
    return [error.path for error in report.errors]


def test_names_are_camel_case_or_declared() -> None:
    assert [field.name for field in record(Span).fields] == ["low", "high", "wait", "maxTries"]


def test_defaults_are_written_and_empty_fields_left_out() -> None:
    assert record(Span).encode(Span(1, 2)) == {"low": 1, "high": 2, "wait": "1s"}
    assert record(Holder).encode(Holder()) == {}


def test_a_rule_runs_on_what_could_be_read_and_ends_at_what_could_not() -> None:
    assert paths_of(Span, {"low": "x", "high": 13}) == ["low", "high"]
    assert paths_of(Span, {"low": 9, "high": "x"}) == ["high"]
    assert paths_of(Span, {"low": 9, "high": 1, "wait": 5}) == ["wait", "low"]


def test_paths_of_rules_are_seen_from_the_document() -> None:
    assert paths_of(Holder, {"spans": [{"low": 1, "high": 2}, {"low": 2, "high": 1}]}) == [
        "spans[1].low"
    ]


def test_a_class_that_refuses_its_fields_is_an_error_of_the_document() -> None:
    report = Report()
    record(Holder).decode({"guarded": {"even": 3}}, "", report)
    assert [str(error) for error in report.errors] == [
        "guarded: found fields that do not go together, allowed: an even number"
    ]


def test_a_mistake_in_a_rule_is_not_taken_for_a_missing_field() -> None:
    with pytest.raises(AttributeError):
        paths_of(Broken, {})


def test_unknown_fields_are_errors_only_when_strict() -> None:
    document = {"low": 1, "high": 2, 3: "x", "loww": 4}
    assert paths_of(Span, document) == ["[3]", "loww"]
    assert paths_of(Span, document, strict=False) == []


@pytest.mark.parametrize(
    ("parent", "key", "path"),
    [
        ("", "spec", "spec"),
        ("spec", "a-b", "spec.a-b"),
        ("labels", "a.b/c", "labels[a.b/c]"),
        ("labels", 3, "labels[3]"),
        ("spec", "k" * 1000, f"spec[{'k' * 64}…]"),
    ],
)
def test_paths_stay_readable_whatever_the_key(parent: str, key: object, path: str) -> None:
    assert child(parent, key) == path
