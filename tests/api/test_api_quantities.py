"""Durations, decimals and quantities: what is read, and that writing loses nothing."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera_core.api.errors import UNREAD, Report
from tessera_core.api.quantities import (
    Quantity,
    format_decimal,
    format_duration,
    parse_decimal,
    parse_duration,
)
from tessera_core.api.scalars import decimal, duration, integer, milliseconds, number

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SECONDS = st.floats(min_value=1e-9, max_value=1e8)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50ms", 0.05),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("250us", 250e-6),
        ("250µs", 250e-6),
        ("0s", 0.0),
        ("1m1m", 120.0),
    ],
)
def test_durations_are_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "50", "ms", "-1s", "1 s", "1d", "1e3s", ".5s", "5.s", "٣s", "1s\n", "9" * 40 + "s"],
)
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["50ms", "5m", "90m", "1h", "1500ms", "90s", "250us", "0s"])
def test_durations_are_written_as_people_write_them(text: str) -> None:
    assert format_duration(parse_duration(text)) == text


@given(SECONDS)
def test_a_written_duration_reads_as_the_same_float(seconds: float) -> None:
    text = format_duration(seconds)
    assert parse_duration(text) == seconds


@given(st.integers(0, 10**12))
def test_whole_microseconds_are_written_in_whole_units(microseconds: int) -> None:
    text = format_duration(float(Fraction(microseconds, 10**6)))
    assert "." not in text


@given(FINITE)
def test_a_written_decimal_reads_as_the_same_float(value: float) -> None:
    assert parse_decimal(format_decimal(value)) == value


@pytest.mark.parametrize("text", ["nan", "inf", "1e999", "0x10", "1_000", "", " 1", "1.", "½"])
def test_what_is_not_a_finite_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a decimal|too large"):
        parse_decimal(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16Gi", 16 * 1024**3),
        ("500m", Decimal("0.5")),
        ("8", 8),
        ("1.5k", 1500),
        ("100n", Decimal("1e-7")),
        ("2E", 2 * 10**18),
        ("1Ei", 1024**6),
    ],
)
def test_quantities_have_a_value_and_keep_their_text(text: str, value: Decimal | int) -> None:
    assert Quantity(text).value == value
    assert Quantity(text).text == text


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1GiB", "1 Gi", "1e3", "8Gi\n"])
def test_what_is_not_a_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        Quantity(text)


@given(st.floats(min_value=1e-6, max_value=1e12))
def test_a_written_latency_reads_as_the_same_milliseconds(value: float) -> None:
    codec = milliseconds()
    assert codec.decode(codec.encode(value), "p50", Report()) == value


@pytest.mark.parametrize(
    ("text", "value"), [("12.5ms", 12.5), ("1.25s", 1250.0), ("80us", 0.08), ("0.3s", 300.0)]
)
def test_latencies_may_be_written_in_any_unit(text: str, value: float) -> None:
    assert milliseconds().decode(text, "p50", Report()) == value


@given(st.floats(min_value=-1e300, max_value=1e300))
def test_a_written_number_reads_as_the_same_float(value: float) -> None:
    codec = number()
    assert codec.decode(codec.encode(value), "", Report()) == value


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (integer(1, 5), 0),
        (integer(1, 5), 6),
        (integer(0, 1), True),
        (integer(1, 5), 3.0),
        (integer(1, 5), "3"),
        (decimal(above=0), "0"),
        (decimal(below=100), "100"),
        (decimal(), 0.5),
        (decimal(), 1),
        (duration(above=0), "0s"),
        (duration(), "9000h"),
        (duration(), 5),
        (number(least=0), -1),
        (number(), 0.5),
        (number(), True),
        (number(), 2**60 + 1),
    ],
)
def test_values_out_of_bounds_or_of_another_type_are_refused(codec: object, value: object) -> None:
    report = Report()
    assert codec.decode(value, "at", report) is UNREAD  # type: ignore[attr-defined]
    assert [error.path for error in report.errors] == ["at"]
