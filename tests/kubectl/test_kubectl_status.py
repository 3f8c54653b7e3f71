"""`kubectl tessera status`: which condition tells, and what one service's page says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table

from tessera_cli.kubectl.service_page import (
    ServicePage,
    drifts_of,
    page_data,
    page_parts,
    places_of,
    shortfall_words,
    slo_words,
    tunings_of,
)
from tessera_cli.kubectl.status import line_data, line_of, lines_table, telling_condition
from tessera_cli.plan_tables import page
from tessera_core.api import Condition, ConditionStatus, ModelProfile, ModelService, RuntimeNode

Make = Callable[..., ModelService]


def conditions(**verdicts: str) -> list[dict[str, str]]:
    """``Ready="False NoCapacity too few devices"``: verdict, reason, message."""
    found = []
    for name, text in verdicts.items():
        status, reason, *message = text.split(" ", 2)
        found.append(
            {"type": name, "status": status, "reason": reason, "message": " ".join(message)}
        )
    return found


def text_of(table: Table) -> str:
    console = Console(width=250)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.mark.parametrize(
    ("verdicts", "telling"),
    [
        ({}, None),
        ({"Ready": "True Serving", "SLOMet": "True Met"}, "Serving"),
        # The first stage that fails explains those after it.
        ({"Ready": "False NotPlaced", "Planned": "False Infeasible"}, "Infeasible"),
        ({"Ready": "True Serving", "SLOMet": "False Late"}, "Late"),
        ({"Ready": "True Serving", "CapacityShortfall": "True Short"}, "Short"),
        ({"SLOMet": "False Late", "CapacityShortfall": "True Short"}, "Late"),
        ({"Ready": "False Starting", "Profiled": "Unknown Measuring"}, "Starting"),
        ({"Ready": "Unknown NotYet", "Profiled": "Unknown Measuring"}, "Measuring"),
        # No traffic is no problem.
        ({"Ready": "True Serving", "SLOMet": "Unknown NoTraffic"}, "Serving"),
    ],
)
def test_the_condition_that_tells_is_the_one_to_look_at(
    verdicts: dict[str, str], telling: str | None
) -> None:
    made = [
        Condition(each["type"], ConditionStatus(each["status"]), each["reason"])
        for each in conditions(**verdicts)
    ]
    found = telling_condition(made)
    assert (found.reason if found else None) == telling


def test_a_line_says_what_was_measured_and_what_runs(service_with: Make) -> None:
    line = line_of(
        service_with(
            conditions=conditions(Ready="True Serving", SLOMet="False Late p99 is 61 ms"),
            members=[
                {"name": "resnet", "ready": 2, "instances": 3},
                {"name": "vit", "ready": 1, "instances": 1},
            ],
            slo={"good": 90, "total": 100, "p99": "61.25ms", "requestsPerSecond": "12.5"},
        )
    )
    assert line_data(line) == {
        "namespace": "vision",
        "name": "quality",
        "ready": "True",
        "sloMet": "False",
        "p99Ms": 61.25,
        "targetMs": 50.0,
        "percent": 99.0,
        "requestsPerSecond": 12.5,
        "instances": {"ready": 3, "placed": 4},
        "reason": "Late",
        "message": "p99 is 61 ms",
    }
    head, row = text_of(lines_table([line], with_namespace=True)).split("\n")[:2]
    assert " ".join(head.split()) == "NAMESPACE NAME READY SLO P99 TARGET RPS INSTANCES REASON"
    assert " ".join(row.split()) == "vision quality True False 61.2ms p99 50ms 12.5 3/4 Late"


def test_a_service_that_nobody_has_looked_at_has_a_line_too(service_with: Make) -> None:
    line = line_of(service_with())
    assert (line.ready, line.slo_met, line.p99_ms, line.reason) == (None, None, None, None)
    row = text_of(lines_table([line], with_namespace=False)).split("\n")[1]
    assert " ".join(row.split()) == "quality - - - p99 50ms 0 0/0 -"
    shown = text_of(page(page_parts(ServicePage(service_with(), (), None))))
    assert "no operator has looked at it yet" in shown


def test_a_status_of_an_older_generation_is_called_that(service_with: Make) -> None:
    old = service_with(generation=3, observedGeneration=2)
    shown = text_of(page(page_parts(ServicePage(old, (), None))))
    assert "the status is of generation 2, the spec is at 3" in shown
    new = service_with(generation=3, observedGeneration=3)
    assert "generation" not in text_of(page(page_parts(ServicePage(new, (), None))))


def node(name: str, wanted: list[dict], present: list[dict]) -> RuntimeNode:
    return RuntimeNode.from_dict(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "RuntimeNode",
            "metadata": {"name": name},
            "spec": {"epoch": 1, "devices": [{"uuid": "cpu", "instances": wanted}]},
            "status": {
                "cpu": {"cores": 8},
                "devices": [
                    {"uuid": "cpu", "product": "cpu", "memoryMiB": 9000, "instances": present}
                ],
            },
        }
    )


def copies(service: str, piece: str, **more: object) -> dict[str, object]:
    return {"service": service, "member": "m", "slice": piece, "batch": 4, **more}


def test_places_are_those_wanted_and_those_present() -> None:
    stays, comes, leaves = (copies("vision.quality", f"cpu-2@{core}") for core in (0, 2, 4))
    other = copies("vision.other", "cpu-1@6")
    found = places_of(
        "vision.quality",
        [
            node(
                "n1",
                [{**stays, "count": 2}, comes, other],
                [
                    {**stays, "count": 2, "ready": 1, "memoryMiB": 300},
                    {**leaves, "ready": 1},
                    other,
                ],
            ),
            node("n2", [other], []),
        ],
    )
    assert [
        (each.slice, each.wanted, each.present, each.ready, each.memory_mib) for each in found
    ] == [("cpu-2@0", 2, 2, 1, 300), ("cpu-2@2", 1, 0, 0, 0), ("cpu-2@4", 0, 1, 1, 0)]


def test_what_is_wrong_with_a_device_is_said_beside_the_place(service_with: Make) -> None:
    document = node("n1", [copies("vision.quality", "cpu-2@0")], []).to_dict()
    document["status"]["devices"][0] |= {"health": "Unhealthy", "problem": "Xid 95"}
    places = places_of("vision.quality", [RuntimeNode.from_dict(document)])
    assert [each.problem for each in places] == ["Xid 95"]
    found = ServicePage(service_with(), places, None)
    assert "Xid 95" in text_of(page(page_parts(found)))
    assert page_data(found)["places"][0]["problem"] == "Xid 95"


OTHER_DIGEST = "sha256:" + "cd" * 32


def measured(digest: str, ratio: str | None) -> ModelProfile:
    drift = {"ratio": ratio, "since": "2026-01-31T12:00:00Z", "nodes": 1} if ratio else None
    return ModelProfile.from_dict(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "ModelProfile",
            "metadata": {"name": "p", "namespace": "vision"},
            "spec": {
                "modelDigest": digest,
                "deviceClass": {"product": "cpu", "slice": "cpu-2", "smCount": 2, "memoryMiB": 99},
                "engine": "onnxruntime 1.22.0",
            },
            "status": {"drift": drift},
        }
    )


def test_the_page_shows_members_places_conditions_drift_and_what_is_short(
    service_with: Make,
) -> None:
    digest = "sha256:" + "ab" * 32
    service = service_with(
        observedGeneration=1,
        url="http://quality.vision.svc",
        planRef={"name": "00ff"},
        conditions=conditions(Planned="False InsufficientCapacity vit needs one device more"),
        members=[
            {"name": "vit", "digest": digest, "ready": 1, "instances": 2, "batch": 16}
            | {"device": "NVIDIA-A100-SXM4-80GB/2g.20gb"}
        ],
        slo={"good": 99, "total": 100, "p50": "8ms", "p99": "49ms", "requestsPerSecond": 20},
        shortfall={"requestsPerSecond": 120, "devices": 1, "reason": "no free 2g.20gb"},
    )
    place = places_of("vision.quality", [node("n1", [copies("vision.quality", "cpu-2@0")], [])])
    profiles = [measured(digest, "1.5"), measured(digest, None), measured(OTHER_DIGEST, "3")]
    found = ServicePage(service, place, None, drifts_of(service, profiles))
    shown = text_of(page(page_parts(found)))
    for line in (
        "vision.quality  http://quality.vision.svc",
        "Planned    False   InsufficientCapacity  vit needs one device more",
        "vit     NVIDIA-A100-SXM4-80GB/2g.20gb     16           1/2  sha256:abababababab",
        "n1/cpu cpu-2@0",
        "vit takes 1.5 times as long as measured on cpu-2 since 2026-01-31T12:00:00Z",
        "99 % of 100 requests in the last 5m, p50 8ms, p99 49ms; 20 requests/s",
        "short of 120 requests/s; 1 more device would do: no free 2g.20gb",
        "plan 00ff",
    ):
        assert line in shown
    data = page_data(found)
    assert data["status"]["members"][0]["digest"] == digest
    assert data["shortfall"] == shortfall_words(service)
    assert data["places"][0]["wanted"] == 1
    assert data["drifts"] == [
        {"member": "vit", "device": "cpu-2", "ratio": 1.5, "since": "2026-01-31T12:00:00Z"}
    ]


def test_no_traffic_is_said_in_words(service_with: Make) -> None:
    assert slo_words(service_with()) == "SLO 99 % within 50ms: no request in the last 5m"
    quiet = service_with(slo={"good": 0, "total": 0, "window": "1m"})
    assert slo_words(quiet) == "SLO 99 % within 50ms: no request in the last 1m"
    assert shortfall_words(quiet) is None


def test_tuning_is_shown_of_services_that_ask_for_it(service_with: Make) -> None:
    document = service_with().to_dict()
    document["status"] = {"members": [{"name": "cnn", "digest": OTHER_DIGEST, "uri": "s3://m"}]}
    document["spec"]["tuning"] = {"mode": "Auto"}
    tuning = {
        "phase": "Tuning",
        "done": 3,
        "total": 7,
        "promoted": "openvino/bf16",
        "quarantined": [{"variant": "torch/bf16", "reason": "3 batches in a row failed"}],
    }
    profile = ModelProfile.from_dict(
        {
            "apiVersion": "tessera.dev/v1alpha1",
            "kind": "ModelProfile",
            "metadata": {"name": "p"},
            "spec": {
                "modelDigest": OTHER_DIGEST,
                "deviceClass": {"product": "cpu", "slice": "cpu-2", "smCount": 2, "memoryMiB": 64},
                "engine": "onnxruntime 1.22.0",
            },
            "status": {"tuning": tuning},
        }
    )
    service = ModelService.from_dict(document)
    found = ServicePage(service, (), None, (), tunings_of(service, [profile]))
    text = text_of(page(page_parts(found)))
    assert "tuning cnn on cpu-2: Tuning, 3 of 7 variants tried, openvino/bf16 is used" in text
    assert "torch/bf16 is not: 3 batches in a row failed" in text
    (told,) = page_data(found)["tuning"]
    assert (told["phase"], told["promoted"], told["device"]) == ("Tuning", "openvino/bf16", "cpu-2")
    document["spec"]["tuning"] = {"mode": "Off"}
    assert tunings_of(ModelService.from_dict(document), [profile]) == ()
