"""`tessera cost`: what services would cost as planned, or cost as they run, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

PRICES = {"a100": 3.6, "cores": 0.4}
"""Of the nodes in the example."""


def _running(state: dict) -> None:
    (gpu,) = state["nodes"][0]["status"]["devices"]
    gpu["migMode"] = "Enabled"
    gpu["slices"] = [{"uuid": "MIG-0", "profile": "2g.20gb", "start": 0}]
    gpu["instances"] = [
        {"service": "vision.quality", "member": "vit", "slice": "2g.20gb@0", "batch": 4, "ready": 1}
    ]
    state["quotas"] = [
        {"namespace": "vision", "slices": 4, "shares": "0.5"},
        {"namespace": "speech", "slices": 3},
    ]


def _overload(state: dict) -> None:
    state["services"][0]["spec"]["traffic"]["requestsPerSecond"] = 1_000_000


def cells(shown: str, name: str) -> list[str]:
    (line,) = [line for line in shown.splitlines() if name in line.split()[:2]]
    return line.split()


def test_what_services_bear_adds_up_to_the_price_of_the_nodes(tessera, state_file: Path) -> None:
    result = tessera("cost", "-f", state_file, "-o", "json")
    assert result.returncode == 0, result.stderr
    services = {each["name"]: each for each in json.loads(result.stdout)}
    assert set(services) == {"quality", "digits"}
    assert sum(each["loadedPerHour"] for each in services.values()) == pytest.approx(4.0, abs=1e-9)
    for each in services.values():
        assert each["costPerHour"] == pytest.approx(
            sum(part["costPerHour"] for part in each["parts"]), abs=1e-9
        )
    pools = {
        each["pool"]: each
        for each in json.loads(tessera("cost", "pools", "-f", state_file, "-o", "json").stdout)
    }
    for name, price in PRICES.items():
        pool = pools[name]
        assert pool["pricePerHour"] == price
        assert pool["usedPerHour"] + sum(pool["idlePerHour"].values()) == pytest.approx(price)


def test_the_tables_show_the_same_with_a_total(tessera, state_file: Path) -> None:
    data = json.loads(tessera("cost", "-f", state_file, "-o", "json").stdout)
    shown = tessera("cost", "-f", state_file).stdout
    for each in data:
        row = cells(shown, each["name"])
        amounts = [each[key] for key in ("costPerHour", "idlePerHour", "loadedPerHour")]
        assert row[5:8] == [f"{amount:.4g}" for amount in amounts]
        assert all(part["pool"] in row for part in each["parts"])
    assert cells(shown, "total")[-1] == "4"
    assert cells(tessera("cost", "pools", "-f", state_file).stdout, "cores")[:3] == [
        *("cores", "1", "0.4")
    ]


def test_what_runs_is_charged_when_it_is_asked_for(tessera, edited) -> None:
    path = edited(_running)
    (service,) = yaml.safe_load(tessera("cost", "-f", path, "--running", "-o", "yaml").stdout)
    assert (service["name"], service["gpuSlices"], service["cores"]) == ("quality", 2, 0)
    assert service["costPerHour"] == pytest.approx(3.6 * 30 / 112)
    assert service["loadedPerHour"] == 3.6
    planned = json.loads(tessera("cost", "-f", path, "-o", "json").stdout)
    assert {each["name"] for each in planned} == {"quality", "digits"}


def test_namespaces_show_what_their_quotas_leave(tessera, edited) -> None:
    path = edited(_running)
    found = json.loads(tessera("cost", "namespaces", "-f", path, "--running", "-o", "json").stdout)
    spaces = {each["namespace"]: each for each in found}
    assert spaces["vision"]["quota"] == {
        "slices": {"used": 1, "hard": 4},
        "shares": {"used": pytest.approx(28 / 108, rel=1e-3), "hard": 0.5},
    }
    assert spaces["speech"]["quota"]["slices"] == {"used": 0, "hard": 3}
    assert spaces["speech"]["costPerHour"] == 0
    shown = tessera("cost", "namespaces", "-f", path, "--running").stdout
    assert cells(shown, "vision")[-2:] == ["1/4", "0.2593/0.5"]
    assert cells(shown, "speech")[-2:] == ["0/3", "0/-"]


def test_services_that_lack_something_are_named_beside_the_costs(tessera, edited) -> None:
    result = tessera("cost", "-f", edited(_overload))
    assert result.returncode == 0
    assert "tessera plan says why: vision.quality" in result.stderr


def test_a_state_that_is_none_is_refused(tessera, tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text("nodes: 3\n")
    result = tessera("cost", "-f", path)
    assert result.returncode == 1
    assert "tessera cost: " in result.stderr
    assert "nodes: found 3" in result.stderr
