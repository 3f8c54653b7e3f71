"""`tessera plan --what-if`: edits as they are written, and both plans side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tessera_core.plan import plan, plan_to_dict, state_from_dict
from tessera_core.plan.what_if import NodesAdded, RateTimes
from tessera_core.plan.what_if import edited as with_edits

DIGEST = "sha256:" + "4" * 64
SERVICE = {
    "apiVersion": "tessera.dev/v1alpha1",
    "kind": "ModelService",
    "metadata": {"name": "new", "namespace": "forms"},
    "spec": {
        "members": [
            {
                "name": "m",
                "model": {"uri": "s3://models/new.onnx", "format": "ONNX"},
                "profileRef": {"name": "new-cpu"},
            }
        ],
        "slo": {"objectives": [{"target": "20ms", "percent": "99"}]},
        "traffic": {"requestsPerSecond": 50},
    },
}
PROFILE = {
    "apiVersion": "tessera.dev/v1alpha1",
    "kind": "ModelProfile",
    "metadata": {"name": "new-cpu", "namespace": "forms"},
    "spec": {
        "modelDigest": DIGEST,
        "deviceClass": {"product": "cpu", "slice": "cpu-2", "smCount": 2, "memoryMiB": 32768},
        "engine": "onnxruntime 1.22.0",
    },
    "status": {
        "rows": [
            {
                "batch": batch,
                "instances": 1,
                "p50": ms,
                "p99": ms,
                "throughput": "1",
                "memoryMiB": 99,
            }
            for batch, ms in ((1, "0.5ms"), (4, "1ms"), (16, "3ms"))
        ]
    },
}


def _by_service(found: dict) -> dict[str, dict]:
    return {each["service"]: each for each in found["changes"]["services"]}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(*documents: dict) -> Path:
        path = tmp_path / "new.yaml"
        path.write_text(yaml.safe_dump_all(documents))
        return path

    return write


def test_both_plans_are_those_of_the_states(tessera, state_file: Path) -> None:
    edits = ("--what-if", "rate=*1.5", "--what-if", "node-added=gpu-1*2")
    result = tessera("plan", "-f", state_file, *edits, "-o", "json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    state = state_from_dict(yaml.safe_load(state_file.read_text()))
    after = with_edits(state, [RateTimes(1.5), NodesAdded("gpu-1", 2)])
    assert found["base"] == plan_to_dict(plan(state))
    assert found["whatIf"] == plan_to_dict(plan(after))
    assert found["changes"]["edits"] == ["rate=*1.5", "node-added=gpu-1*2"]
    for side in ("base", "whatIf"):
        figures = found["changes"][side]
        assert figures["cost"] == found[side]["cost"]
        assert figures["usedDevices"] == sum(bool(d["instances"]) for d in found[side]["devices"])


def test_a_lost_node_refuses_what_only_it_could_serve(tessera, state_file: Path) -> None:
    arguments = ("plan", "-f", state_file, "--what-if", "node-lost=gpu-1")
    result = tessera(*arguments, "-o", "json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    change = _by_service(found)["vision.quality"]
    assert (change["before"], change["after"]) == ("Placed", "Refused")
    assert change["instances"]["after"] == 0
    assert {(each["member"], each["reason"]) for each in change["reasons"]} == {
        ("resnet", "NoProfile"),
        ("vit", "NoProfile"),
    }
    assert "forms.digits" not in _by_service(found)
    shown = tessera(*arguments).stdout
    assert "what if node-lost=gpu-1" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("vision.quality ")]
    assert line.split()[1:3] == ["Placed", "Refused"]
    assert "resnet: NoProfile" in line
    (cost,) = [line for line in shown.splitlines() if line.startswith("cost per hour")]
    assert cost.split()[3:] == [f"{found[side]['cost']:g}" for side in ("base", "whatIf")]


def test_one_rate_changes_one_service(tessera, state_file: Path) -> None:
    arguments = ("plan", "-f", state_file, "--what-if", "rate=vision.quality*1000")
    result = tessera(*arguments, "-o", "json")
    assert result.returncode == 1
    found = json.loads(result.stdout)
    change = _by_service(found)["vision.quality"]
    assert change["after"] == "Short"
    assert change["reasons"][0]["reason"] == "InsufficientCapacity"
    rates = [
        {each["service"]: each["requestsPerSecond"] for each in found[side]["services"]}
        for side in ("base", "whatIf")
    ]
    assert rates[0] == {"forms.digits": 800, "vision.quality": 600}
    assert rates[1] == {"forms.digits": 800, "vision.quality": 600_000}
    assert found["changes"]["whatIf"]["short"] == 1


def test_nothing_is_said_to_change_where_nothing_does(tessera, state_file: Path) -> None:
    shown = tessera("plan", "-f", state_file, "--what-if", "rate=*1").stdout
    assert "no service is placed otherwise" in shown


def test_an_added_service_is_placed_with_what_its_file_measured(
    tessera, state_file: Path, written
) -> None:
    arguments = ("plan", "-f", state_file, "--what-if", f"add={written(SERVICE, PROFILE)}")
    result = tessera(*arguments, "-o", "json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    change = _by_service(found)["forms.new"]
    assert (change["before"], change["after"]) == ("Absent", "Placed")
    assert change["instances"]["before"] == 0
    assert found["changes"]["edits"] == ["add=forms.new"]


def test_the_added_service_may_come_from_standard_input(tessera, state_file, written) -> None:
    text = written(SERVICE, PROFILE).read_text()
    result = tessera("plan", "-f", state_file, "--what-if", "add=-", stdin=text)
    assert result.returncode == 0, result.stderr
    twice = tessera("plan", "-f", "-", "--what-if", "add=-", stdin=state_file.read_text())
    assert twice.returncode == 1
    assert "--what-if add=-: standard input can be read only once" in twice.stderr


def test_instances_move_from_what_runs(tessera, edited, state_file: Path) -> None:
    """The plan is carried out, then its node goes while another one like it stands by."""
    planned = json.loads(tessera("plan", "-f", state_file, "-o", "json").stdout)
    (gpu,) = [each for each in planned["devices"] if each["uuid"] == "GPU-1"]
    keys = ("service", "member", "slice", "batch", "count")

    def carried_out(state: dict) -> None:
        device = state["nodes"][0]["status"]["devices"][0]
        device["migMode"] = "Enabled"
        device["slices"] = [
            {"uuid": f"MIG-{index}", "profile": profile, "start": int(start)}
            for index, each in enumerate(gpu["geometry"])
            for profile, start in [each.split("@")]
        ]
        device["instances"] = [{key: each[key] for key in keys} for each in gpu["instances"]]

    edits = ("--what-if", "node-added=gpu-1", "--what-if", "node-lost=gpu-1")
    result = tessera("plan", "-f", edited(carried_out), *edits, "-o", "json")
    assert result.returncode == 0, result.stderr
    changes = json.loads(result.stdout)["changes"]
    running = sum(each["count"] for each in gpu["instances"])
    assert changes["base"]["moved"] == 0
    assert changes["whatIf"]["moved"] == running
    assert changes["base"]["stopped"] == changes["whatIf"]["stopped"] == 0


def test_explain_and_diff_are_about_the_edited_state(tessera, state_file: Path) -> None:
    arguments = ("plan", "-f", state_file, "--what-if", "node-lost=gpu-1", "--explain", "--diff")
    found = json.loads(tessera(*arguments, "-o", "json").stdout)
    for side in ("base", "whatIf"):
        assert {each["service"] for each in found[side]["explanations"]} == {
            "forms.digits",
            "vision.quality",
        }
    assert {each["node"] for each in found["base"]["diff"]["added"]} == {"cores-1", "gpu-1"}
    assert {each["node"] for each in found["whatIf"]["diff"]["added"]} == {"cores-1"}
    shown = tessera(*arguments).stdout
    assert "  not placed" in shown
    assert "+ forms.digits/mlp: cores-1/cpu" in shown
    assert "gpu-1/GPU-1" not in shown


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ("nodelost=x", "found 'nodelost=x', allowed: node-lost=NAME, node-added=NAME*N, rate="),
        ("nodelost=x", "add=FILE (did you mean node-lost?)"),
        ("node-lost", "found 'node-lost', allowed: node-lost=NAME"),
        ("node-lost=", "found 'node-lost=', allowed: node-lost=NAME"),
        ("rate=vision.quality", "allowed: node-lost=NAME, node-added=NAME*N, rate=NAMESPACE.SERV"),
        ("rate=vision.quality*lots", "allowed: a decimal factor after *, such as 1.5"),
        ("rate=*nan", "allowed: a decimal factor after *, such as 1.5"),
        ("rate=*-2", "rate=*-2: found the factor -2, allowed: a finite factor of at least 0"),
        (
            "rate=vision.qualty*2",
            "no service 'vision.qualty', allowed: forms.digits, vision.quality",
        ),
        ("node-lost=gpu-2", "found no node 'gpu-2', allowed: cores-1, gpu-1 (did you mean gpu-1?)"),
        ("node-added=gpu-1*1.5", "allowed: a whole number of nodes after *, such as 2"),
        ("node-added=gpu-1*0", "found 0, allowed: 1 to 10000 copies"),
        ("add=", "found 'add=', allowed: node-lost=NAME"),
        ("add=none.yaml", "add=none.yaml: No such file or directory"),
        ("", "found '', allowed: node-lost=NAME"),
    ],
)
def test_an_edit_that_is_not_valid_says_what_is(tessera, state_file, edit, message) -> None:
    result = tessera("plan", "-f", state_file, "--what-if", edit)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("tessera plan: --what-if")
    assert message in result.stderr


def _digits_again(service: dict) -> dict:
    return {**service, "metadata": {"name": "digits", "namespace": "forms"}}


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([PROFILE], "found no ModelService, allowed: one or more"),
        ([{"kind": "Pod"}], "(document 1): kind: found 'Pod', allowed: ModelService"),
        ([SERVICE, {**SERVICE, "spec": {}}], "(document 2): spec.members: found nothing"),
        (
            [
                {
                    "apiVersion": "tessera.dev/v1alpha1",
                    "kind": "RuntimePool",
                    "metadata": {"name": "p"},
                    "spec": {"node": {"resources": {"cpu": 1}}, "size": {"max": 1}},
                }
            ],
            "(document 1): kind: found RuntimePool, allowed: ModelService, and ModelProfile beside",
        ),
        ([SERVICE], "add=forms.new: found spec.members[0].profileRef.name 'new-cpu', allowed: a"),
        (
            [_digits_again(SERVICE), PROFILE],
            "add=forms.digits: found a second service forms.digits",
        ),
        ([], "found no ModelService"),
    ],
)
def test_a_file_that_adds_no_service_says_why(
    tessera, state_file: Path, written, documents: list[dict], message: str
) -> None:
    result = tessera("plan", "-f", state_file, "--what-if", f"add={written(*documents)}")
    assert result.returncode == 1
    assert result.stderr.startswith("tessera plan: --what-if add=")
    assert message in result.stderr


def test_help_shows_the_edits(tessera) -> None:
    shown = "".join(tessera("plan", "--help").stdout.split())  # lines break within words
    for syntax in ("node-lost=NAME", "node-added=NAME*N", "rate=NAMESPACE.SERVICE*X", "add=FILE"):
        assert syntax in shown
