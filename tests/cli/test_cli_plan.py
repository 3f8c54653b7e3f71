"""`tessera plan`: what is shown, in tables and as data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from support.clusters import applied, cluster, cpu_node, measured, service
from tessera_core.plan import (
    NodeState,
    PoolRules,
    Running,
    Slice,
    plan,
    plan_to_dict,
    state_from_dict,
    state_to_dict,
)


def _overload(state: dict) -> None:
    state["services"][0]["spec"]["traffic"]["requestsPerSecond"] = 1_000_000


def _unmeasured(state: dict) -> None:
    state["profiles"] = [
        each for each in state["profiles"] if each["metadata"]["name"] != "mlp-cpu"
    ]
    state["services"][1]["spec"]["members"][0].pop("profileRef")


def _running(state: dict) -> None:
    device = state["nodes"][0]["status"]["devices"][0]
    device["instances"] = [
        {"service": "vision.old", "member": "m", "slice": "full", "batch": 4, "ready": 1}
    ]


def test_the_example_is_placed_in_full_and_the_json_is_the_plan(tessera, state_file: Path) -> None:
    result = tessera("plan", "-f", state_file, "--output", "json")
    assert result.returncode == 0, result.stderr
    expected = plan_to_dict(plan(state_from_dict(yaml.safe_load(state_file.read_text()))))
    assert json.loads(result.stdout) == expected
    assert {each["service"] for each in expected["services"]} == {"forms.digits", "vision.quality"}
    assert expected["devices"]


def test_the_table_shows_places_rates_predictions_and_cost(tessera, state_file: Path) -> None:
    found = json.loads(tessera("plan", "-f", state_file, "-o", "json").stdout)
    shown = tessera("plan", "-f", state_file).stdout
    assert f"cost {found['cost']:g} per hour, lower bound {found['lowerBound']:g}" in shown
    for device in found["devices"]:
        for each in device["instances"]:
            (line,) = [
                line
                for line in shown.splitlines()
                if line.startswith(f"{each['service']}/{each['member']} ")
            ]
            assert f"{device['node']}/{device['uuid']} {each['slice']}" in line
    for each in found["services"]:
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{each['service']} ")]
        assert f"p{each['percentile']:g} {each['latencyMs']:.3g}" in line
        assert line.rstrip().endswith("fully")


def test_a_service_that_is_short_says_by_how_much_and_ends_with_1(tessera, edited) -> None:
    result = tessera("plan", "-f", edited(_overload), "-o", "json")
    assert result.returncode == 1
    services = {each["service"]: each for each in json.loads(result.stdout)["services"]}
    short = services["vision.quality"]["short"]
    assert short["reason"] == "InsufficientCapacity"
    assert short["shortfall"]["requestsPerSecond"] > 900_000
    assert "short" not in services["forms.digits"]
    assert f"{short['shortfall']['devices']} of {short['shortfall']['device']} would do" in (
        tessera("plan", "-f", edited(_overload)).stdout
    )


def test_a_refused_member_is_named_with_its_reason(tessera, edited) -> None:
    path = edited(_unmeasured)
    result = tessera("plan", "-f", path, "-o", "yaml")
    assert result.returncode == 1
    (refused,) = yaml.safe_load(result.stdout)["refused"]
    assert (refused["service"], refused["member"]) == ("forms.digits", "mlp")
    assert refused["reason"] == "NoProfile"
    assert "forms.digits/mlp  NoProfile: " in tessera("plan", "-f", path).stdout


def test_explain_gives_lines_for_every_service(tessera, state_file: Path) -> None:
    found = json.loads(tessera("plan", "-f", state_file, "--explain", "-o", "json").stdout)
    reasons = {each["service"]: each["lines"] for each in found["explanations"]}
    assert set(reasons) == {"forms.digits", "vision.quality"}
    shown = tessera("plan", "-f", state_file, "--explain").stdout
    assert all(f"  {line}" in shown for lines in reasons.values() for line in lines)


def test_diff_shows_what_goes_and_what_comes(tessera, edited) -> None:
    path = edited(_running)
    found = json.loads(tessera("plan", "-f", path, "--diff", "-o", "json").stdout)["diff"]
    assert [each["service"] for each in found["removed"]] == ["vision.old"]
    assert {each["member"] for each in found["added"]} == {"mlp", "resnet", "vit"}
    shown = tessera("plan", "-f", path, "--diff").stdout
    assert "- vision.old/m: gpu-1/GPU-1 full, 1 of batch 4" in shown
    assert "+ forms.digits/mlp: cores-1/cpu cpu-2@0" in shown


def test_an_applied_plan_changes_nothing(tessera, edited, state_file: Path) -> None:
    found = json.loads(tessera("plan", "-f", state_file, "-o", "json").stdout)
    (device,) = [each for each in found["devices"] if each["uuid"] == "cpu"]

    def apply(state: dict) -> None:
        state["services"] = state["services"][1:]
        state["nodes"][1]["status"]["devices"] = [
            {
                "uuid": "cpu",
                "product": "cpu",
                "memoryMiB": 57344,
                "health": "Healthy",
                "instances": [
                    {key: each[key] for key in ("service", "member", "slice", "batch", "count")}
                    for each in device["instances"]
                ],
            }
        ]

    result = tessera("plan", "-f", edited(apply), "--diff")
    assert result.returncode == 0
    assert "nothing changes" in result.stdout


def test_a_state_comes_from_standard_input_too(tessera, state_file: Path) -> None:
    result = tessera("plan", "-f", "-", "-o", "json", stdin=state_file.read_text())
    assert result.returncode == 0
    assert result.stdout == tessera("plan", "-f", state_file, "-o", "json").stdout


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("kind: ModelService", ["x.yaml: found a ModelService, allowed: a state"]),
        ("nodes: 3\nservces: []", ["x.yaml is not a valid state", "nodes: found 3", "  servces: "]),
        ("nodes: []\n---\nnodes: []", ["x.yaml: found 2 documents, allowed: one state"]),
        ("[]", ["document: found a list of 0 items"]),
        ("", ["x.yaml: found 0 documents"]),
    ],
)
def test_a_file_that_is_no_state_says_why(tessera, tmp_path, text, messages) -> None:
    (tmp_path / "x.yaml").write_text(text)
    result = tessera("plan", "-f", "x.yaml")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("tessera plan: ")
    assert all(message in result.stderr for message in messages)


def test_a_missing_file_and_wrong_usage(tessera) -> None:
    missing = tessera("plan", "-f", "none.yaml")
    assert missing.returncode == 1
    assert missing.stderr == "tessera plan: none.yaml: No such file or directory\n"
    usage = tessera("plan")
    assert usage.returncode == 2
    assert "the following arguments are required: -f/--file" in usage.stderr


def test_help_says_what_the_exit_code_means(tessera) -> None:
    result = tessera("plan", "--help")
    assert result.returncode == 0
    assert "Exit code: 0 when every service is placed" in result.stdout


def test_steps_are_in_order_and_name_what_they_wait_for(tessera, state_file: Path) -> None:
    found = json.loads(tessera("plan", "-f", state_file, "--steps", "-o", "json").stdout)
    steps = {each["id"]: each for each in found["steps"]}
    earlier: set[str] = set()
    for name, step in steps.items():
        assert set(step.get("requires", ())) <= earlier
        earlier.add(name)
    launched = [each["target"] for each in found["steps"] if each["action"] == "Launch"]
    assert {(each["service"], each["member"]) for each in launched} == {
        ("forms.digits", "mlp"),
        ("vision.quality", "resnet"),
        ("vision.quality", "vit"),
    }
    (cut,) = [each for each in found["steps"] if each["action"] == "Partition"]
    assert found["interruptions"] == []
    shown = tessera("plan", "-f", state_file, "--steps").stdout
    order = [shown.index(f"\n{name} ") for name in steps]
    assert order == sorted(order)
    (line,) = [line for line in shown.splitlines() if line.startswith(cut["id"])]
    assert "gpu-1/GPU-1: 1g.10gb@0, 3g.40gb@4" in line


def test_an_applied_plan_needs_no_step(tessera, tmp_path: Path) -> None:
    state = cluster([cpu_node("n1")], [service("one")], [measured("m", 4)])
    path = tmp_path / "applied.yaml"
    path.write_text(yaml.safe_dump(state_to_dict(applied(plan(state), state))))
    assert "no step is needed" in tessera("plan", "-f", path, "--steps").stdout
    assert json.loads(tessera("plan", "-f", path, "--steps", "-o", "json").stdout)["steps"] == []


def test_two_that_have_to_change_places_without_a_spare_are_reported(
    tessera, tmp_path: Path
) -> None:
    def only(pool: str) -> dict:
        return {"poolSelector": {"matchLabels": {"is": pool}}}

    def runs(node: NodeState, name: str) -> NodeState:
        running = (Running(f"vision.{name}", name, Slice("cpu-4", 0, (0, 1, 2, 3)), 16, 1),)
        return replace(node, devices=(replace(node.devices[0], running=running),))

    state = replace(
        cluster(
            [runs(cpu_node("n1", pool="p"), "a"), runs(cpu_node("n2", pool="q"), "b")],
            [
                service("a", ("a",), placement=only("q")),
                service("b", ("b",), placement=only("p")),
            ],
            [measured(name, 4, memory_mib=9000.0) for name in "ab"],
        ),
        pools=tuple(
            PoolRules(p, labels=(("is", p),), shared_between_namespaces=True) for p in "pq"
        ),
    )
    path = tmp_path / "swap.yaml"
    path.write_text(yaml.safe_dump(state_to_dict(state)))
    found = json.loads(tessera("plan", "-f", path, "--steps", "-o", "json").stdout)
    (given_up,) = found["interruptions"]
    assert given_up["loss"] == "Outage"
    assert (given_up["serving"], given_up["expected"]) == (0, 1)
    (step,) = [each for each in found["steps"] if each["id"] == given_up["step"]]
    assert step["action"] == "Unload"
    assert step["target"]["service"] == given_up["service"]
    shown = tessera("plan", "-f", path, "--steps").stdout
    assert f"{given_up['step']}: {given_up['service']}/{given_up['member']} gives up" in shown
