"""Whole GPUs end as slices that nobody had measured on: on the real cluster, with a stand-in of NVIDIA's library."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e.system import gpus as stand_in
from e2e.system.gpus import Gpus
from e2e.system.installation import Installation
from e2e.system.installation import namespace as one_namespace
from e2e.system.load import Load, zero_failures
from e2e.system.models import answer, classifier, example
from e2e.system.services import Service, model_service

ALLOWED = ("3g.40gb", "1g.10gb")
"""Kinds of slices that fit one GPU together: one cut is enough."""
X = example()
FILES = {"first": classifier(51), "second": classifier(52)}
ALONE = {"placement": {"isolation": "Partition"}, "scaling": {"minReplicas": 1}}
"""On a GPU or a slice of its own."""
MEASURED_S, CALM_S = 180.0, 2.0

pytestmark = pytest.mark.timeout(400, func_only=True)


@pytest.fixture(scope="module")
def gpus(release: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpus]:
    partition = {
        "approval": "Auto",
        "allowedProfiles": [*ALLOWED],
        "disruption": {"minInterval": "1h"},
    }
    with stand_in.gpus(release, tmp_path_factory.mktemp("gpus"), partition) as found:
        yield found


@pytest.fixture(scope="module")
def namespace(gpus: Gpus) -> Iterator[str]:
    with one_namespace(gpus.system, "scouted") as found:
        yield found


def serve(gpus: Gpus, namespace: str, name: str) -> Service:
    uri = gpus.system.store.put(f"{namespace}/{name}.onnx", FILES[name])
    gpus.system.apply(model_service(namespace, name, {"only": uri}, **ALONE))
    return gpus.system.service(namespace, name)


def used(gpus: Gpus) -> dict[str, list[str]]:
    """By GPU, the slices on which something answers."""
    found: dict[str, list[str]] = {}
    for node in gpus.system.objects("RuntimeNode"):
        for device in (node.get("status") or {}).get("devices") or ():
            for each in device.get("instances") or ():
                if each["ready"]:
                    found.setdefault(device["uuid"], []).append(each["slice"].partition("@")[0])
    return found


def measured(gpus: Gpus, namespace: str) -> set[tuple[str, str]]:
    """(model digest, kind of slice)."""
    return {
        (each["spec"]["modelDigest"], each["spec"]["deviceClass"]["slice"])
        for each in gpus.system.objects("ModelProfile", namespace)
        if (each.get("status") or {}).get("rows")
    }


def test_services_on_whole_gpus_end_on_slices_of_one_that_was_cut_to_measure(
    gpus: Gpus, namespace: str
) -> None:
    """No interval keeps the second from what was found out for the first: nothing ran on the GPU that was cut. Once it is known
    where both are better off they go there, also if one model was not measured on the other's slice yet.
    """
    services = [serve(gpus, namespace, name) for name in FILES]
    for each in services:
        each.wait_until_serving()
    loads = [
        Load(each.target(), X, {"right": answer(FILES[each.name], X)}, longest_s=MEASURED_S * 2)
        for each in services
    ]
    with loads[0], loads[1]:
        gpus.system.wait(
            "both share one GPU",
            lambda: (
                len(used(gpus)) == 1
                and all(each.says("Profiled", reason="Measured") for each in services)
            ),
            MEASURED_S,
        )
        for each in services:
            each.wait_until_settled()
        for load in loads:
            load.go_on_for(CALM_S)
    for load in loads:
        zero_failures(load.result)
    [slices] = used(gpus).values()
    assert set(slices) <= set(ALLOWED)
    assert {kind for _, kind in measured(gpus, namespace)} == {"full", *ALLOWED}
    plans = gpus.system.objects("PlacementPlan")
    scouting = [
        each for each in plans if any(", to measure " in line for line in each["spec"]["diff"])
    ]
    assert len(scouting) == 1, "one cut was enough for both models and both kinds of slices"
