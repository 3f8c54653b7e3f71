"""`tessera simulate`: what it compares, and what it refuses."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tessera_core.api.preprocess import ImagePreprocess, Preprocess
from tessera_core.api.stages import stage_of

FEW = ("--requests", "20000", "-o", "json")
QUICK = ("--alpha-ms", "0.5", "--tau0-ms", "2", "--cap", "32")


def _services(result) -> dict[str, dict]:
    return {each["service"]: each for each in json.loads(result.stdout)["services"]}


def test_the_example_keeps_its_slos_and_predictions_are_not_below(tessera, state_file) -> None:
    result = tessera("simulate", "-f", state_file, *FEW)
    assert result.returncode == 0, result.stderr
    found = _services(result)
    assert set(found) == {"forms.digits", "vision.quality"}
    for each in found.values():
        assert each["met"]
        assert each["within"] >= 0.99
        assert each["predicted"]["latencyMs"] <= each["targetMs"]
        # One queue is predicted exactly, an ensemble on the safe side; 5 % is sampling noise.
        assert each["simulated"]["latencyMs"] <= 1.05 * each["predicted"]["latencyMs"]
    (digits,) = found["forms.digits"]["queues"]
    assert digits["member"] == "mlp"
    assert digits["where"] == ["cores-1/cpu cpu-2@0"]
    assert 0 < digits["utilisation"] < 1
    assert digits["meanBatch"] >= 1


def test_the_seed_decides_the_result(tessera, state_file: Path) -> None:
    one, same, other = (
        tessera("simulate", "-f", state_file, *FEW, "--seed", seed).stdout for seed in "001"
    )
    assert one == same
    assert _simulated(one) != _simulated(other)


def _simulated(output: str) -> list[dict]:
    return [each["simulated"] for each in json.loads(output)["services"]]


def test_another_service_does_not_change_a_result(tessera, edited, state_file: Path) -> None:
    alone = edited(lambda state: state["services"].pop(0))
    both = _services(tessera("simulate", "-f", state_file, *FEW))["forms.digits"]
    assert _services(tessera("simulate", "-f", alone, *FEW)) == {"forms.digits": both}


def test_too_much_load_breaks_the_slo_and_ends_with_1(tessera, state_file: Path) -> None:
    result = tessera("simulate", "-f", state_file, *FEW, "--rate-factor", "2", "--keep-late")
    assert result.returncode == 1
    quality = _services(result)["vision.quality"]
    assert quality["requestsPerSecond"] == 1200
    assert quality["predicted"]["latencyMs"] is None
    assert not quality["met"]
    assert quality["simulated"]["latencyMs"] > quality["targetMs"]
    assert quality["simulated"]["goodputPerSecond"] < 100


def test_what_is_late_is_dropped_so_that_the_rest_is_not(tessera, state_file: Path) -> None:
    result = tessera("simulate", "-f", state_file, *FEW, "--rate-factor", "2")
    assert result.returncode == 1
    quality = _services(result)["vision.quality"]
    assert quality["simulated"]["goodputPerSecond"] > 300
    assert quality["simulated"]["p99Ms"] is None
    assert quality["queues"][0]["dropped"] > 1000
    shown = tessera("simulate", "-f", state_file, "--requests", "20000", "--rate-factor", "2")
    assert "dropped" in shown.stdout


def test_one_service_of_a_state_is_simulated_alone(tessera, state_file: Path) -> None:
    both = tessera("simulate", "-f", state_file, *FEW)
    one = tessera("simulate", "-f", state_file, *FEW, "--service", "forms.digits")
    assert _services(one) == {"forms.digits": _services(both)["forms.digits"]}
    none = tessera("simulate", "-f", state_file, *FEW, "--service", "forms.x")
    assert none.returncode == 1
    assert "--service: found 'forms.x', allowed: " in none.stderr


def test_preprocessing_is_simulated_before_the_members_and_named_where_it_is_short(
    tessera, edited
) -> None:
    media = edited(_decode_first)
    found = _services(tessera("simulate", "-f", media, *FEW))["forms.digits"]
    stage, mlp = found["queues"]
    assert (stage["member"], mlp["member"]) == ("preprocess", "mlp")
    assert found["met"]
    assert found["simulated"]["latencyMs"] <= found["predicted"]["latencyMs"]
    shown = tessera("simulate", "-f", media, "--requests", "20000", "--rate-factor", "4").stdout
    (line,) = [line for line in shown.splitlines() if line.startswith("forms.digits")]
    assert line.split()[-1] == "preprocess"


def _decode_first(state: dict) -> None:
    stage = stage_of(Preprocess(image=ImagePreprocess(size=(224, 224))))
    (digits,) = [each for each in state["services"] if each["metadata"]["name"] == "digits"]
    digits["spec"] |= {
        "preprocess": {"image": {"size": [224, 224]}},
        "traffic": {"requestsPerSecond": 300},
        "slo": {"objectives": [{"target": "100ms", "percent": "99"}]},
    }
    profile = deepcopy(next(p for p in state["profiles"] if p["metadata"]["name"] == "mlp-cpu"))
    profile["metadata"]["name"] = "decoding"
    profile["spec"]["modelDigest"] = stage.model.digest
    profile["status"]["rows"] = [
        {"batch": batch, "instances": 1, "p50": f"{5 * batch}ms", "p99": f"{5 * batch}ms"}
        | {"throughput": "200", "memoryMiB": 100}
        for batch in (1, 4, 16)
    ]
    state["profiles"].append(profile)


def test_devices_are_as_busy_as_what_runs_on_them(tessera, state_file: Path) -> None:
    result = json.loads(tessera("simulate", "-f", state_file, *FEW).stdout)
    members = {member for each in result["devices"] for member in each["members"]}
    assert members >= {"forms.digits/mlp"}
    queues = {q["member"]: q for each in result["services"] for q in each["queues"]}
    assert {member.partition("/")[2] for member in members} == set(queues)
    for each in result["devices"]:
        assert 0 < each["utilisation"] <= 1
        assert each["rowsPerSecond"] > 0
    shown = tessera("simulate", "-f", state_file, "--requests", "20000").stdout
    assert all(f"{each['node']}/{each['device']}" in shown for each in result["devices"])


@pytest.mark.parametrize("trace", ["on-off:peak=5,on-s=1,off-s=9", "diurnal:swing=0.8,period-s=20"])
def test_a_trace_has_the_mean_rate_and_a_longer_tail(tessera, trace: str) -> None:
    arguments = ("simulate", *QUICK, "--rate", "400", "--slo-ms", "20", "--keep-late", "-o", "json")
    plain, traced = (
        json.loads(tessera(*arguments, "--duration", "200", "--trace", each).stdout)
        for each in ("poisson", trace)
    )
    assert traced["trace"] == trace
    (smooth,), (uneven,) = plain["services"], traced["services"]
    assert uneven["simulated"]["requestsPerSecond"] == pytest.approx(400, rel=0.25)
    assert uneven["simulated"]["p99Ms"] > 1.05 * smooth["simulated"]["p99Ms"]
    assert smooth["simulated"]["requests"] == pytest.approx(0.95 * 80_000, rel=0.02)


def test_recorded_requests_are_simulated_when_they_came(tessera, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("time_s\n" + "\n".join(map(str, range(100))))
    arguments = ("simulate", *QUICK, "--slo-ms", "20", "-o", "json", "--replay", "trace.csv")
    result = tessera(*arguments)
    assert result.returncode == 0, result.stderr
    (each,) = json.loads(result.stdout)["services"]
    assert each["simulated"]["requests"] == 95
    # Alone every time: one row, 0.5 + 2 ms.
    assert (each["simulated"]["p50Ms"], each["simulated"]["p99Ms"]) == (2.5, 2.5)
    half = json.loads(tessera(*arguments, "--duration", "50").stdout)["services"]
    assert half[0]["simulated"]["requests"] == 48
    fast = json.loads(tessera(*arguments, "--rate-factor", "1000").stdout)["services"]
    assert fast[0]["simulated"]["p99Ms"] > 2.5


def test_recorded_requests_belong_to_services(tessera, state_file: Path, tmp_path: Path) -> None:
    lines = [f"{t / 100},{'forms.digits' if t % 4 else 'vision.quality'}" for t in range(4000)]
    (tmp_path / "trace.csv").write_text("\n".join(["time_s,service", *lines]))
    found = _services(tessera("simulate", "-f", state_file, *REPLAY))
    assert found["forms.digits"]["simulated"]["requests"] == 2850
    assert found["vision.quality"]["simulated"]["requests"] == 950
    # In order of appearance, whatever the seed is.
    again = _services(tessera("simulate", "-f", state_file, *REPLAY, "--seed", "7"))
    assert again["forms.digits"]["simulated"] == found["forms.digits"]["simulated"]


def test_a_service_of_which_nothing_is_recorded_is_left_out(tessera, state_file, tmp_path) -> None:
    lines = "".join(f"{t / 100},forms.digits\n" for t in range(2000))
    (tmp_path / "trace.csv").write_text("time_s,service\n" + lines)
    assert set(_services(tessera("simulate", "-f", state_file, *REPLAY))) == {"forms.digits"}


REPLAY = ("--replay", "trace.csv", "-o", "json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time_s\n1\nx\n", "trace.csv: line 3, time_s: found 'x', allowed: seconds since"),
        ("time_s\n2\n1\n", "line 3, time_s: found '1' after 2, allowed: no less; sort the file"),
        ("1\n2\n", "line 1: found '1', allowed: time_s or time_s,service; write that heading"),
        ("time_s\n1\n", "found no services, allowed: a column service with "),
        (
            "time_s,service\n1,x\n",
            "found the services x, allowed: forms.digits, vision.quality; rename",
        ),
        ("\xff", "not UTF-8 text; export it as CSV"),
    ],
)
def test_a_bad_recording_is_explained(tessera, state_file, tmp_path, text, message) -> None:
    (tmp_path / "trace.csv").write_bytes(text.encode("latin-1"))
    result = tessera("simulate", "-f", state_file, *REPLAY)
    assert result.returncode == 1
    assert result.stderr.startswith("tessera simulate: --replay: ")
    assert message in result.stderr


def test_one_member_has_no_services(tessera, tmp_path) -> None:
    (tmp_path / "trace.csv").write_text("time_s,service\n1,a\n")
    for rate in ((), ("--rate", "5")):
        result = tessera("simulate", *QUICK, "--slo-ms", "20", *rate, *REPLAY)
        assert result.returncode == 1
        assert "--replay: found a column service, allowed: time_s alone" in result.stderr


def test_a_time_without_requests_is_a_failure(tessera, tmp_path) -> None:
    (tmp_path / "trace.csv").write_text("time_s\n10\n")
    short = ("--slo-ms", "20", *REPLAY, "--duration", "5")
    result = tessera("simulate", *QUICK, *short)
    assert result.returncode == 1
    assert result.stderr.startswith("tessera simulate: one member: no request came")


def test_a_missing_recording_is_a_failure(tessera, state_file) -> None:
    result = tessera("simulate", "-f", state_file, "--replay", "none.csv")
    assert result.returncode == 1
    assert result.stderr == "tessera simulate: --replay: none.csv: No such file or directory\n"


def test_more_requests_than_memory_holds_are_refused(tessera, state_file) -> None:
    result = tessera("simulate", "-f", state_file, "--duration", "1e7")
    assert result.returncode == 1
    assert "allowed: 5000000 requests; shorten it" in result.stderr


def test_bursts_make_the_tail_longer(tessera, state_file: Path) -> None:
    smooth, bursty = (
        _services(tessera("simulate", "-f", state_file, *FEW, "--burstiness", cv2))["forms.digits"]
        for cv2 in ("1", "8")
    )
    assert bursty["burstiness"] == 8
    assert bursty["simulated"]["latencyMs"] > 1.1 * smooth["simulated"]["latencyMs"]


def test_a_refused_member_is_reported_and_the_rest_simulated(tessera, edited) -> None:
    def forbid(state: dict) -> None:
        state["services"][1]["spec"]["placement"] = {"products": ["NVIDIA-L4"]}

    path = edited(forbid)
    result = tessera("simulate", "-f", path, *FEW)
    assert result.returncode == 1
    assert set(_services(result)) == {"vision.quality"}
    (refused,) = json.loads(result.stdout)["refused"]
    assert refused["service"] == "forms.digits"
    shown = tessera("simulate", "-f", path, "--requests", "20000").stdout
    assert f"forms.digits/mlp: {refused['reason']}" in shown


def test_one_member_without_a_state_is_predicted_exactly(tessera) -> None:
    load = ("--rate", "1000", "--slo-ms", "20", "--keep-late")
    result = tessera("simulate", *QUICK, *load, "-o", "json")
    assert result.returncode == 0, result.stderr
    (each,) = json.loads(result.stdout)["services"]
    assert each["simulated"]["latencyMs"] == pytest.approx(each["predicted"]["latencyMs"], rel=0.03)
    assert 0 < each["simulated"]["p50Ms"] < each["simulated"]["latencyMs"]


def test_the_table_has_prediction_and_simulation_side_by_side(tessera) -> None:
    arguments = ("simulate", *QUICK, "--rate", "1000", "--slo-ms", "20", "--keep-late")
    (each,) = json.loads(tessera(*arguments, "-o", "json").stdout)["services"]
    shown = tessera(*arguments).stdout
    predicted, simulated = each["predicted"]["latencyMs"], each["simulated"]["latencyMs"]
    assert f"p99 {predicted:.3g} / {simulated:.3g}" in shown


def test_an_overloaded_queue_says_so(tessera) -> None:
    overload = (*QUICK, "--rate", "9000", "--slo-ms", "20", "--requests", "20000")
    result = tessera("simulate", *overload)
    assert result.returncode == 1
    assert "overload / " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a state with -f, or one member: --alpha-ms, --tau0-ms, --cap, --rate, --slo-ms"),
        ((*QUICK, "--rate", "10"), "--slo-ms missing"),
        (("-f", "x.yaml", "--cap", "3"), "--cap: not with -f"),
        (("--alpha-ms", "0"), "--alpha-ms: found '0', allowed: a number above 0 to 1e+06"),
        (("--rate", "nan"), "--rate: found 'nan', allowed"),
        (("--cap", "1.5"), "--cap: found '1.5', allowed: a whole number from 1 to 65536"),
        (("--requests", "10"), "--requests: found '10', allowed: a whole number from 1000"),
        (("--percentile", "100"), "--percentile: found '100'"),
        (("--trace", "gamma:cv=2"), "--trace: gamma: found 'cv=2', allowed: cv2=NUMBER"),
        (("--trace", "weekly"), "--trace: found 'weekly', allowed: poisson, gamma, on-off"),
        (("--trace", "poisson", "--burstiness", "2"), "not allowed with argument"),
        (("--service", "x", *QUICK), "--service: only with -f"),
    ],
)
def test_wrong_usage_names_the_option(tessera, arguments, message) -> None:
    result = tessera("simulate", *arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_missing_state_is_a_failure(tessera) -> None:
    result = tessera("simulate", "-f", "none.yaml")
    assert result.returncode == 1
    assert result.stderr == "tessera simulate: none.yaml: No such file or directory\n"


def test_a_plot_shows_every_service_and_needs_no_library(tessera, state_file, tmp_path) -> None:
    result = tessera("simulate", "-f", state_file, *FEW, "--plot", "latency.svg")
    assert result.returncode == 0, result.stderr
    root = ElementTree.parse(tmp_path / "latency.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    assert {"forms.digits", "vision.quality"} <= {each.text for each in root.iter(f"{name}text")}
    for line in root.iter(f"{name}polyline"):
        points = [tuple(map(float, each.split(","))) for each in line.get("points", "").split()]
        assert len(points) > 100
        # To the right and down: longer times are exceeded by fewer.
        assert points == sorted(points)
    nowhere = tessera("simulate", "-f", state_file, *FEW, "--plot", "none/latency.svg")
    assert nowhere.returncode == 1
    assert nowhere.stderr.startswith("tessera simulate: --plot none/latency.svg: ")


def test_a_plot_is_a_picture(tessera, state_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = tessera("simulate", "-f", state_file, *FEW, "--plot", "latency.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    unknown = tessera("simulate", "-f", state_file, *FEW, "--plot", "latency.doc")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("tessera simulate: --plot latency.doc: ")
