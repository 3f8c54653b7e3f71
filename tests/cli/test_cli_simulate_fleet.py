"""`tessera simulate --cluster`: what it prints, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

POLICIES = ["tessera", "one model per GPU", "static peak", "HPA at 70%"]


@pytest.fixture
def fleet_file(examples: Path) -> Path:
    return examples / "fleet" / "fleet.yaml"


@pytest.fixture
def fleet(tmp_path: Path, fleet_file: Path):
    """The example with a change, as a file."""

    def edit(**changed: object) -> Path:
        path = tmp_path / "edited.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(fleet_file.read_text()), **changed}))
        return path

    return edit


def test_the_example_shows_every_policy_and_how_far_to_trust_it(tessera, fleet_file) -> None:
    result = tessera("simulate", "--cluster", fleet_file, "--check", "3")
    assert result.returncode == 0, result.stderr
    for policy in POLICIES:
        assert policy in result.stdout
    assert "64 GPUs, 24 services, 3 days" in result.stdout
    assert "by events" in result.stdout


def test_the_document_has_the_books(tessera, fleet) -> None:
    result = tessera("simulate", "--cluster", fleet(horizon="12h"), "--check", "2", "-o", "json")
    found = json.loads(result.stdout)
    assert [each["policy"] for each in found["policies"]] == POLICIES
    for each in found["policies"]:
        answered = each["inTime"] + each["late"] + each["lost"]
        assert each["requests"] == pytest.approx(answered, abs=3)
        assert sum(each["gpuHoursByPool"].values()) == pytest.approx(each["gpuHours"], abs=0.2)
    assert found["checked"][0]["count"] == 2
    assert found["slots"] == 144


def test_policies_are_chosen_by_name(tessera, fleet) -> None:
    result = tessera(
        "simulate",
        "--cluster",
        fleet(horizon="2h"),
        "--policy",
        "static-peak",
        "--check",
        "0",
        "-o",
        "json",
    )
    found = json.loads(result.stdout)
    assert [each["policy"] for each in found["policies"]] == ["static peak"]
    assert found["checked"] == []


def test_too_few_gpus_end_with_1_and_are_said(tessera, fleet, fleet_file) -> None:
    pools = yaml.safe_load(fleet_file.read_text())["pools"]
    small = fleet(horizon="6h", pools=[{**pools[0], "gpus": 2}])
    result = tessera("simulate", "--cluster", small, "--check", "0")
    assert result.returncode == 1
    assert "short in 72 slots" in result.stdout


def test_the_picture_has_a_line_for_each_policy_in_each_panel(tessera, fleet, tmp_path) -> None:
    drawn = tmp_path / "year.svg"
    result = tessera("simulate", "--cluster", fleet(), "--check", "0", "--plot", drawn)
    assert result.returncode == 0, result.stderr
    lines = ElementTree.parse(drawn).getroot().findall(".//{*}polyline")
    assert len(lines) == 3 * len(POLICIES)


def test_a_picture_is_an_svg(tessera, fleet_file) -> None:
    result = tessera("simulate", "--cluster", fleet_file, "--plot", "year.png")
    assert result.returncode == 1
    assert "--plot: found year.png" in result.stderr


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pool": []}, "did you mean pools?"),
        ({"slot": "5 minutes"}, "slot: "),
        ({"control": {"headroom": 1.2}}, "control.headroom: "),
        ({"services": []}, "services: "),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tessera, fleet, changed, said) -> None:
    result = tessera("simulate", "--cluster", fleet(**changed))
    assert result.returncode == 1
    assert "is not a valid fleet" in result.stderr
    assert said in result.stderr


def test_a_target_out_of_reach_is_named(tessera, fleet, fleet_file) -> None:
    (pool,) = yaml.safe_load(fleet_file.read_text())["pools"]
    group = {
        **yaml.safe_load(fleet_file.read_text())["services"][0],
        "burstiness": {"from": "900", "to": "900"},
    }
    result = tessera("simulate", "--cluster", fleet(pools=[pool], services=[group]))
    assert result.returncode == 1
    assert "pages-0000: no part of its pool" in result.stderr


@pytest.mark.parametrize(
    "option", [("--seed", "3"), ("-f", "state.yaml"), ("--rate", "5"), ("--trace", "poisson")]
)
def test_options_of_a_state_do_not_go_with_a_fleet(tessera, fleet_file, option) -> None:
    result = tessera("simulate", "--cluster", fleet_file, *option)
    assert result.returncode == 2
    assert "not with --cluster" in result.stderr


@pytest.mark.parametrize("option", [("--policy", "hpa"), ("--check", "3")])
def test_options_of_a_fleet_need_one(tessera, state_file, option) -> None:
    result = tessera("simulate", "-f", state_file, *option)
    assert result.returncode == 2
    assert f"{option[0]}: only with --cluster" in result.stderr


def test_a_file_that_is_not_there_is_named(tessera) -> None:
    result = tessera("simulate", "--cluster", "nowhere.yaml")
    assert result.returncode == 1
    assert "nowhere.yaml: No such file or directory" in result.stderr
