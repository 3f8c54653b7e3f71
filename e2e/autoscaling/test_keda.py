"""The real KEDA scales a service on real nodes by what Prometheus says, and no request notices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest
import yaml
from e2e.autoscaling.keda import Prometheus, keda, prometheus
from e2e.chart import Object
from e2e.native import build
from e2e.system.installation import EXAMPLES, Installation
from e2e.system.scaled import AT_ONCE, QUIET, assert_scaled, scaled_by_others


@pytest.fixture(scope="module")
def programs(said_aloud: Callable[[], AbstractContextManager[None]]) -> Path:
    with said_aloud():
        return build.keda()


@pytest.mark.timeout(240, func_only=True)
def test_keda_adds_a_replica_and_takes_it_away(
    installed: Installation, programs: Path, namespace: str, tmp_path: Path
) -> None:
    service, expected = scaled_by_others(installed, namespace)
    with keda(installed, programs, tmp_path), prometheus(QUIET) as found:
        installed.apply(scaled_object(namespace, found))
        try:
            assert_scaled(service, expected, "keda-hpa-digits", partial(setattr, found, "value"))
        finally:
            installed.kubectl("delete", "scaledobject", "digits", f"--namespace={namespace}")


def scaled_object(namespace: str, metrics: Prometheus) -> Object:
    """The example, in a hurry: it takes a replica away at once."""
    document: Object = yaml.safe_load((EXAMPLES / "keda.yaml").read_text())
    document["metadata"]["namespace"] = namespace
    document["spec"]["advanced"] = {"horizontalPodAutoscalerConfig": {"behavior": AT_ONCE}}
    (trigger,) = document["spec"]["triggers"]
    trigger["metadata"]["serverAddress"] = metrics.url
    return document
