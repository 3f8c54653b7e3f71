"""What the operator counts of a service while it holds a core, as Prometheus scrapes it."""

from __future__ import annotations

import re
from zlib import crc32

import pytest
from e2e.system.installation import OPERATOR, Installation
from e2e.system.models import classifier
from e2e.system.services import model_service

PORT = 8080
COUNTED_S = 60.0
"""Rounds are 30 s apart at most."""


@pytest.mark.timeout(180, func_only=True)
def test_a_service_is_charged_for_what_it_holds_until_it_is_gone(
    installed: Installation, namespace: str
) -> None:
    uri = installed.store.put(f"{namespace}/digits.onnx", classifier(crc32(namespace.encode())))
    installed.apply(model_service(namespace, "digits", {"only": uri}))
    service = installed.service(namespace, "digits")
    service.wait_until_serving()
    name = service.served_name

    def value(metric: str) -> float | None:
        return scraped(installed, metric, name)

    installed.wait("the operator counts", lambda: value("tessera_cost_total"), COUNTED_S)
    rate = value("tessera_cost_per_hour")
    assert rate is not None
    # The pool states no price: a core is 1/64 an hour, and other tests may hold a part of it.
    assert 0 < rate <= 1 / 64
    assert value("tessera_gpu_slices") is None
    installed.kubectl("delete", "msvc", "digits", f"--namespace={namespace}", "--wait=true")
    installed.wait(
        "it is charged no more", lambda: value("tessera_cost_per_hour") is None, COUNTED_S
    )
    assert value("tessera_cost_total") is not None, "what it has cost can still be scraped"


def scraped(system: Installation, metric: str, service: str) -> float | None:
    """Of the operator that leads; None where it has no such series."""
    pattern = rf'^{metric}{{[^}}]*service="{re.escape(service)}"}} (\S+)$'
    for pod in system.pods(OPERATOR):
        text = system.cluster.fetch(f"http://{pod['status']['podIP']}:{PORT}/metrics")
        if found := re.search(pattern, text, re.MULTILINE):
            return float(found[1])
    return None
