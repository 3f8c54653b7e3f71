"""What load generators and judges print, as recorded from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.dataplane.counters import parse_copied, parse_strace
from bench.dataplane.generators import LoadBroke, parse_h2load, parse_wrk
from bench.dataplane.judges import JudgeBroke, parse_loadgen, parse_perf_analyzer
from bench.dataplane.profiles import heaviest

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def test_wrk_tells_requests_seconds_and_percentiles() -> None:
    seen = parse_wrk(recorded("wrk.txt"))
    assert (seen.requests, seen.seconds) == (2697, 1.000781)
    assert (seen.p50_ms, seen.p99_ms) == (0.793, 7.352)


def test_a_wrk_run_with_a_bad_status_measures_nothing() -> None:
    with pytest.raises(LoadBroke, match="'status': 3"):
        parse_wrk(recorded("wrk.txt").replace('"status": 0', '"status": 3'))


def test_wrk_counts_refusals_where_they_are_allowed() -> None:
    output = recorded("wrk.txt").replace('"status": 0', '"status": 97')
    seen = parse_wrk(output, refusals=True)
    assert (seen.requests, seen.refused) == (2600, 97)
    with pytest.raises(LoadBroke, match="'timeout': 1"):
        parse_wrk(output.replace('"timeout": 0', '"timeout": 1'), refusals=True)


def test_wrk_without_a_result_says_what_it_printed() -> None:
    with pytest.raises(LoadBroke, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:1 Connection refused\n")


ANSWER_BYTES = 105


def test_h2load_tells_requests_and_its_log_the_percentiles() -> None:
    seen = parse_h2load(recorded("h2load.txt"), recorded("h2load.tsv"), 0.3, ANSWER_BYTES)
    assert (seen.requests, seen.seconds) == (202, 0.3)
    assert 4 < seen.p50_ms < 7
    assert seen.p50_ms < seen.p99_ms < 15


def test_answers_without_messages_are_failed_calls() -> None:
    with pytest.raises(LoadBroke, match="calls failed"):
        parse_h2load(recorded("h2load.txt"), recorded("h2load.tsv"), 0.3, 2 * ANSWER_BYTES)


def test_failed_streams_are_told() -> None:
    output = recorded("h2load.txt").replace("0 failed", "7 failed")
    with pytest.raises(LoadBroke, match="7 of 209"):
        parse_h2load(output, recorded("h2load.tsv"), 0.3, ANSWER_BYTES)


def test_an_empty_h2load_run_is_no_result() -> None:
    output = recorded("h2load.txt").replace("202 succeeded", "0 succeeded")
    assert parse_h2load(output, "", 0.3, ANSWER_BYTES).requests == 0


@pytest.mark.parametrize(
    ("name", "at", "rate", "p99_ms"),
    [("closed", 4.0, 2474.32, 7.153), ("poisson", 200.0, 189.78, 13.04)],
)
def test_perf_analyzer_table(name: str, at: float, rate: float, p99_ms: float) -> None:
    said = parse_perf_analyzer(recorded(f"perf_analyzer_{name}.csv"))
    assert (said.at, said.rate_per_s, said.p99_ms) == (at, rate, p99_ms)


def test_an_empty_perf_analyzer_table_is_no_verdict() -> None:
    with pytest.raises(JudgeBroke, match="empty"):
        parse_perf_analyzer(recorded("perf_analyzer_closed.csv").splitlines()[0])


def test_loadgen_summary() -> None:
    said = parse_loadgen(recorded("mlperf_log_summary.txt"))
    assert not said.valid
    assert (said.target_per_s, said.scheduled_per_s) == (200.0, 187.85)
    assert said.p99_ms == pytest.approx(13.171903)
    assert parse_loadgen(recorded("mlperf_log_summary.txt").replace("INVALID", "VALID")).valid


def test_a_loadgen_summary_without_a_result_is_no_verdict() -> None:
    with pytest.raises(JudgeBroke, match="Result is"):
        parse_loadgen("MLPerf Results Summary\n")


def test_strace_counts_calls() -> None:
    assert parse_strace(recorded("strace.txt")) == 144
    assert parse_strace("") == 0


def test_copies_are_summed_over_labels_and_other_counters_left_out() -> None:
    page = (
        "# HELP tessera_input_copied_bytes_total x\n"
        'tessera_input_copied_bytes_total{step="receive"} 10\n'
        'tessera_input_copied_bytes_total{step="gather"} 5.5\ntessera_requests_total 7\n'
    )
    assert parse_copied(page) == 15.5


def test_the_heaviest_functions_are_those_where_samples_end() -> None:
    stacks = (
        "main (a/b.py:1);run (a/b.py:7);write (libc.so.6) 5\n"
        "main (a/b.py:1);run (a/b.py:9) 2\n"
        "main (a/b.py:1);run (a/b.py:8);_PyEval (ceval.c:77) 1\n"
        "main (a/b.py:1);epoll_wait (libc.so.6) 90\n"
        "uv_run (loop.so) 2\n"
    )
    assert heaviest(stacks) == {
        "samples": 10,
        "run (b.py) > write (libc.so.6)": 0.5,
        "run (b.py)": 0.3,
        "uv_run (loop.so)": 0.2,
    }
    assert list(heaviest(stacks, most=1)) == ["samples", "run (b.py) > write (libc.so.6)"]
    assert heaviest("") == {}
