"""`tessera simulate`: what it compares, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
    result = tessera("simulate", "-f", state_file, *FEW, "--rate-factor", "2")
    assert result.returncode == 1
    quality = _services(result)["vision.quality"]
    assert quality["requestsPerSecond"] == 1200
    assert quality["predicted"]["latencyMs"] is None
    assert not quality["met"]
    assert quality["simulated"]["latencyMs"] > quality["targetMs"]


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
    result = tessera("simulate", *QUICK, "--rate", "1000", "--slo-ms", "20", "-o", "json")
    assert result.returncode == 0, result.stderr
    (each,) = json.loads(result.stdout)["services"]
    assert each["simulated"]["latencyMs"] == pytest.approx(each["predicted"]["latencyMs"], rel=0.03)
    assert 0 < each["simulated"]["p50Ms"] < each["simulated"]["latencyMs"]


def test_the_table_has_prediction_and_simulation_side_by_side(tessera) -> None:
    arguments = ("simulate", *QUICK, "--rate", "1000", "--slo-ms", "20")
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


def test_a_plot_is_a_picture(tessera, state_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = tessera("simulate", "-f", state_file, *FEW, "--plot", "latency.png")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    unknown = tessera("simulate", "-f", state_file, *FEW, "--plot", "latency.doc")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("tessera simulate: --plot latency.doc: ")
