"""Kinds of traces: rate, variation, order, seed; and recorded ones, with what is wrong in them named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera_core.simulate.traces import (
    Diurnal,
    Gamma,
    OnOff,
    Trace,
    TraceInvalid,
    parse_trace,
    recorded_traces,
    trace_text,
)

REQUESTS = 40_000

gammas = st.builds(Gamma, st.floats(0.25, 16.0))
diurnals = st.builds(Diurnal, st.floats(0.0, 1.0), st.just(1.0))
on_offs = st.builds(
    lambda on_s, off_s, share: OnOff(1 + share * off_s / on_s, on_s, off_s),
    st.floats(0.02, 0.1),
    st.floats(0.02, 0.1),
    st.floats(0.0, 1.0),
)
traces = gammas | diurnals | on_offs
seeds = st.integers(0, 2**32)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(traces, seeds, st.floats(100.0, 10_000.0))
@settings(deadline=None, max_examples=60)
def test_times_ascend_and_come_at_the_mean_rate(trace: Trace, seed: int, rate: float) -> None:
    # Whole periods, and many turns.
    duration_s = max(1.0, round(REQUESTS / rate)) if isinstance(trace, Diurnal) else REQUESTS / rate
    duration_s = max(duration_s, 60.0) if isinstance(trace, OnOff) else duration_s
    times = trace.times_ms(rate, duration_s, rng(seed))
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] <= 1e3 * duration_s
    expected = rate * duration_s
    # Five standard deviations of the count.
    variation = 1.0
    if isinstance(trace, Gamma):
        variation = trace.cv2
    if isinstance(trace, OnOff):
        cycle = trace.on_s + trace.off_s
        low = (1 - trace.on_share * trace.peak) / (1 - trace.on_share)
        jump = rate * (trace.peak - low)
        variation += 2 * jump**2 * (trace.on_s * trace.off_s) ** 2 / cycle**3 / rate
    assert abs(len(times) - expected) < 5 * (variation * expected) ** 0.5 + 10 * variation


@given(traces, seeds)
@settings(deadline=None, max_examples=30)
def test_a_seed_gives_one_trace(trace: Trace, seed: int) -> None:
    one, same, other = (trace.times_ms(500.0, 2.0, rng(s)).tolist() for s in (seed, seed, seed + 1))
    assert one == same
    assert one != other


@given(st.floats(0.25, 16.0), seeds)
@settings(deadline=None, max_examples=20)
def test_gaps_have_the_asked_variation(cv2: float, seed: int) -> None:
    gaps = np.diff(Gamma(cv2).times_ms(1000.0, 300.0, rng(seed)))
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(cv2, rel=0.15)


def test_turns_make_counts_more_uneven_than_those_of_poisson() -> None:
    def unevenness(trace: Trace) -> float:
        times = trace.times_ms(1000.0, 300.0, rng(1))
        counts, _ = np.histogram(times, bins=300)
        return float(counts.var() / counts.mean())

    assert unevenness(parse_trace("poisson")) == pytest.approx(1.0, abs=0.3)
    assert unevenness(OnOff(5.0, 1.0, 9.0)) > 100


def test_a_trace_with_no_rate_while_off_is_silent_then() -> None:
    gaps = np.diff(OnOff(10.0, 1.0, 9.0).times_ms(100.0, 300.0, rng(1)))
    assert gaps.max() > 5000


@given(traces)
def test_a_trace_is_read_as_it_is_written(trace: Trace) -> None:
    assert parse_trace(trace_text(trace)) == trace


def test_what_is_left_out_has_a_default() -> None:
    assert parse_trace("poisson") == Gamma(1.0)
    assert parse_trace("on-off:peak=2") == OnOff(2.0, 1.0, 9.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weekly", "found 'weekly', allowed: poisson, gamma, on-off, diurnal"),
        ("poisson:cv2=2", "poisson: found 'cv2=2', allowed: nothing after it"),
        ("gamma:cv=2", "gamma: found 'cv=2', allowed: cv2=NUMBER"),
        ("gamma:cv2=x", "gamma: cv2: found 'x', allowed: a number"),
        ("gamma:cv2=0", "gamma: cv2: found 0, allowed: above 0"),
        ("gamma:cv2=1,cv2=2", "gamma: cv2: found twice"),
        ("on-off:peak=11", "on-off: peak: found 11, allowed: 1 to 10, .* shorten on-s"),
        ("on-off:peak=nan", "on-off: peak: found nan"),
        ("on-off:off-s=0", "on-off: off-s: found 0"),
        ("diurnal:swing=2", "diurnal: swing: found 2, allowed: 0 to 1"),
        ("diurnal:period-s=inf", "diurnal: period-s: found inf"),
    ],
)
def test_what_is_no_trace_is_named(text: str, message: str) -> None:
    with pytest.raises(TraceInvalid, match=message):
        parse_trace(text)


def test_a_recorded_trace_is_divided_by_service() -> None:
    found = recorded_traces(["time_s,service\n", "0,a\n", "0.5,b\n", "\n", "0.5,a\n"])
    assert {name: times.tolist() for name, times in found.items()} == {"a": [0, 500], "b": [500]}
    assert recorded_traces(["time_s", "1.25"])[""].tolist() == [1250]


@given(st.lists(st.floats(0, 1e6), min_size=1).map(sorted))
def test_recorded_times_are_kept(times: list[float]) -> None:
    found = recorded_traces(["time_s", *map(repr, times)])
    assert found[""].tolist() == pytest.approx([1e3 * each for each in times])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1: found '', allowed: time_s or time_s,service; write that heading"),
        (["0.1", "0.2"], "line 1: found '0.1', allowed: time_s"),
        (["time_s"], "line 2: found no request"),
        (["time_s", "1", "x"], "line 3, time_s: found 'x', allowed: seconds since the start"),
        (["time_s", "nan"], "line 2, time_s: found 'nan'"),
        (["time_s", "-1"], "line 2, time_s: found '-1'"),
        (["time_s", "2", "1"], "line 3, time_s: found '1' after 2, .* sort the file by time_s"),
        (["time_s", "1700000000"], "line 2, time_s: .* subtract the time of the first request"),
        (["time_s", "1,a"], "line 2: found 2 fields, allowed: 1, as in the heading"),
        (["time_s,service", "1, "], "line 2, service: found nothing, allowed: the name"),
        (["time_s,service", '1,"a'], "line 2: .*write one request a line"),
    ],
)
def test_what_is_wrong_in_a_recorded_trace_is_named(lines: list[str], message: str) -> None:
    with pytest.raises(TraceInvalid, match=message):
        recorded_traces(lines)
