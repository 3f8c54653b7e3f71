"""A real HorizontalPodAutoscaler scales a service by a metric of somebody else's, and no request notices."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import yaml
from e2e.chart import Object
from e2e.system.external_metrics import Metrics, external_metrics
from e2e.system.installation import EXAMPLES, Installation
from e2e.system.scaled import AT_ONCE, QUIET, assert_scaled, scaled_by_others

METRIC = "tessera_requests_per_second"


@pytest.mark.timeout(240, func_only=True)
def test_an_autoscaler_adds_a_replica_and_takes_it_away(
    installed: Installation, namespace: str, tmp_path: Path
) -> None:
    service, expected = scaled_by_others(installed, namespace)
    metrics = Metrics({METRIC: QUIET})
    with external_metrics(installed, tmp_path, metrics):
        installed.apply(autoscaler(namespace))
        try:
            assert_scaled(service, expected, "digits", partial(metrics.values.__setitem__, METRIC))
        finally:
            installed.kubectl("delete", "hpa", "digits", f"--namespace={namespace}")
    assert metrics.asked == {(namespace, METRIC)}


def autoscaler(namespace: str) -> Object:
    """The example, in a hurry: it takes a replica away at once."""
    document: Object = yaml.safe_load((EXAMPLES / "hpa.yaml").read_text())
    document["metadata"]["namespace"] = namespace
    document["spec"]["behavior"] = AT_ONCE
    return document
