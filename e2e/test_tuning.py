"""A model is tuned on cores that nothing uses while it serves, what is faster takes over, and no request fails."""

from __future__ import annotations

import pytest
from e2e.chart import Object
from e2e.system.installation import Installation
from e2e.system.load import Load, zero_failures
from e2e.system.models import answer, classifier, example
from e2e.system.services import Service, model_service

X = example()
FILE = classifier(95, layers=4)
TUNED_S = 360.0
"""A handful of variants, some twenty seconds each on one core that is shared."""

pytestmark = pytest.mark.timeout(600, func_only=True)


def tuning(system: Installation, namespace: str) -> Object:
    """Of the ModelProfile of the untuned model."""
    found = [
        each["status"].get("tuning", {})
        for each in system.objects("ModelProfile", namespace)
        if not each["spec"].get("variant")
    ]
    return found[0] if found else {}


def variants(system: Installation, service: Service, part: str) -> set[str]:
    """What nodes are told to run, or, in the ``status``, run."""
    return {
        each.get("variant", "")
        for node in system.objects("RuntimeNode")
        for device in node.get(part, {}).get("devices") or ()
        for each in device.get("instances") or ()
        if each["service"] == service.served_name
    }


def test_what_is_faster_takes_over_under_load_and_goes_when_tuning_is_switched_off(
    installed: Installation, namespace: str
) -> None:
    system = installed
    uri = system.store.put(f"{namespace}/digits.onnx", FILE)
    wanted = {"mode": "Auto", "tolerance": "0.001"}
    # Nobody is refused for being late here: what is asked is whether trials and swaps fail requests.
    slo = {"objectives": [{"target": "15s", "percent": "99"}]}
    system.apply(model_service(namespace, "digits", {"only": uri}, tuning=wanted, slo=slo))
    service = system.service(namespace, "digits")
    service.wait_until_serving()
    with Load(service.target(), X, {"right": answer(FILE, X)}) as load:
        found = system.wait(
            "every variant to be tried",
            lambda: (now := tuning(system, namespace)).get("phase") == "Tuned" and now,
            TUNED_S,
        )
        outcomes = {each["variant"]: each["verdict"] for each in found["outcomes"]}
        assert len(outcomes) == found["done"] == found["total"]
        # What the image holds runs, and answers as the untuned model does.
        assert outcomes["openvino/fp32"] in ("Faster", "NotFaster")
        if "Faster" in outcomes.values():
            system.wait(
                "the fastest variant to run",
                lambda: (
                    (best := tuning(system, namespace)["promoted"])
                    and variants(system, service, "status") == {best}
                ),
                120.0,
            )
        load.go_on_for(5)
        service.change(tuning={"mode": "Off"})
        system.wait(
            "the untuned model to run",
            lambda: (
                variants(system, service, "spec") == variants(system, service, "status") == {""}
            ),
        )
        load.go_on_for(5)
    zero_failures(load.result)
