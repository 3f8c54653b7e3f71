"""A release whose settings are changed, and what Helm says of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.chart import NAMESPACE, helm
from e2e.system.installation import ACTIVATOR, OPERATOR, RUNTIME, Installation
from e2e.system.installation import namespace as one_namespace
from e2e.system.load import Load, zero_failures
from e2e.system.models import answer, classifier, example
from e2e.system.services import Service, model_service

FILE = classifier(91)
X = example()
GONE_S = 120.0


@pytest.fixture(scope="module")
def service(release: Installation) -> Iterator[Service]:
    """On both nodes."""
    with one_namespace(release, "settings") as namespace:
        uri = release.store.put("digits.onnx", FILE)
        spread = {"scaling": {"minReplicas": 2}, "placement": {"spread": {"minNodes": 2}}}
        release.apply(model_service(namespace, "digits", {"only": uri}, **spread))
        found = release.service(namespace, "digits")
        found.wait_until_serving()
        yield found


def uids(release: Installation, selector: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in release.pods(selector)}


@pytest.mark.timeout(300, func_only=True)
def test_changed_settings_restart_the_operator_and_nothing_else(
    release: Installation, service: Service, tmp_path: Path
) -> None:
    before = {each: uids(release, each) for each in (OPERATOR, RUNTIME, ACTIVATOR)}
    with Load(service.target(), X, {"right": answer(FILE, X)}) as load:
        release.upgrade(tmp_path, config={"headroom": "1.3"}, operator={"logLevel": "debug"})
        release.wait(
            "new operators", lambda: not before[OPERATOR] & uids(release, OPERATOR), GONE_S
        )
        service.change(traffic={"requestsPerSecond": 21})
        service.wait_until_settled()
    zero_failures(load.result)
    for each in (RUNTIME, ACTIVATOR):
        assert uids(release, each) == before[each]
    assert 'headroom: "1.3"' in release.kubectl(
        "get", "configmaps", f"--namespace={NAMESPACE}", "--output=jsonpath={.items[*].data}"
    ).replace('\\"', '"')


def test_what_helm_tests_passes(release: Installation, service: Service) -> None:
    said = helm(
        *("test", "tessera", f"--namespace={NAMESPACE}", "--timeout=90s"),
        kubeconfig=release.cluster.kubeconfig,
    )
    assert "Phase:          Succeeded" in said
