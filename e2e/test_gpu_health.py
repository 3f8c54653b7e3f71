"""A GPU that must not be used any more is left without losing a request: on the real cluster, with a stand-in of NVML."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.chart import Object
from e2e.system import gpus as stand_in
from e2e.system.gpus import Gpus
from e2e.system.installation import Installation
from e2e.system.installation import namespace as one_namespace
from e2e.system.load import Load, zero_failures
from e2e.system.models import answer, classifier, example
from e2e.system.services import Service, model_service

FILE, X = classifier(61), example()
ALONE = {"placement": {"isolation": "Exclusive"}, "scaling": {"minReplicas": 1}}
LEFT_S, CALM_S = 90.0, 2.0
_TESTS = Path(__file__).parents[1] / "tests"
_AIL = """
import sys
import pynvml
from support.nvml_stand_in import Ailment, ail

pynvml.nvmlInit()
ail(int(sys.argv[1]), Ailment[sys.argv[2]])
"""

pytestmark = pytest.mark.timeout(300, func_only=True)


@pytest.fixture(scope="module")
def gpus(release: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gpus]:
    never = {"approval": "Auto", "measure": "Never"}
    with stand_in.gpus(release, tmp_path_factory.mktemp("gpus"), never) as found:
        yield found


@pytest.fixture
def served(gpus: Gpus) -> Iterator[Service]:
    """On a GPU of its own."""
    with one_namespace(gpus.system, "health") as namespace:
        uri = gpus.system.store.put(f"{namespace}/only.onnx", FILE)
        gpus.system.apply(model_service(namespace, "only", {"only": uri}, **ALONE))
        found = gpus.system.service(namespace, "only")
        found.wait_until_serving()
        yield found


def ail(gpus: Gpus, node: str, index: int, ailment: str) -> None:
    """The GPU ails from now on, as everybody on ``node`` who asks NVML is told."""
    paths = os.pathsep.join(filter(None, (str(_TESTS), os.environ.get("PYTHONPATH"))))
    subprocess.run(
        [sys.executable, "-c", _AIL, str(index), ailment],
        env=os.environ | stand_in.environment(gpus.system, node) | {"PYTHONPATH": paths},
        timeout=30,
        check=True,
    )


def devices(gpus: Gpus) -> dict[tuple[str, str], Object]:
    """GPUs as agents tell of them, by (node, GPU)."""
    return {
        (node["metadata"]["name"], device["uuid"]): device
        for node in gpus.system.objects("RuntimeNode")
        for device in (node.get("status") or {}).get("devices") or ()
        if "index" in device
    }


def homes(gpus: Gpus, service: Service) -> set[tuple[str, str]]:
    """The GPUs where it answers."""
    return {
        gpu
        for gpu, device in devices(gpus).items()
        for each in device.get("instances") or ()
        if each["service"] == service.served_name and each["ready"]
    }


def test_a_service_leaves_a_gpu_that_asks_for_a_reset(gpus: Gpus, served: Service) -> None:
    [sick] = homes(gpus, served)
    load = Load(served.target(), X, {"right": answer(FILE, X)}, longest_s=2 * LEFT_S)
    with load:
        ail(gpus, sick[0], devices(gpus)[sick]["index"], "RECOVERY_ACTION")
        gpus.system.wait(
            "it has another GPU", lambda: sick not in homes(gpus, served) != set(), LEFT_S
        )
        served.wait_until_settled()
        load.go_on_for(CALM_S)
    zero_failures(load.result)
    assert devices(gpus)[sick]["health"] == "Unhealthy"
    assert devices(gpus)[sick]["problem"]
    assert all(
        device["health"] == "Healthy" for gpu, device in devices(gpus).items() if gpu != sick
    )
    pool = gpus.system.read("RuntimePool", stand_in.POOL)
    assert pool is not None
    (told,) = [c for c in pool["status"]["conditions"] if c["type"] == "DevicesHealthy"]
    assert (told["status"], told["reason"]) == ("False", "DeviceUnhealthy")
    assert sick[1] in told["message"]
    assert any(
        each["reason"] == "DeviceUnhealthy" and each["involvedObject"]["name"] == sick[0]
        for each in gpus.system.objects("Event", "default")
    )
