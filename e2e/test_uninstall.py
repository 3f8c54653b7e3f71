"""A release that is taken away: what is left is what users have made, and nothing holds on to that."""

from __future__ import annotations

import pytest
import yaml
from e2e.chart import NAMESPACE, Object, Refused, helm
from e2e.system.installation import Installation
from e2e.system.models import classifier
from e2e.system.services import Service, model_service

USERS, POOL = "users", "cpu"
KINDS = ("modelprofiles", "modelservices", "placementplans", "runtimenodes", "runtimepools")
FILE = classifier(96)
GONE_S = 120.0
NOT_KEPT = ("apiregistration.k8s.io", "events.k8s.io")
"""Groups of objects that the API server makes of others, and that pass."""
HELM_S = 180


@pytest.fixture
def service(release: Installation) -> Service:
    """On both nodes."""
    release.kubectl("create", "namespace", USERS)
    uri = release.store.put("users.onnx", FILE)
    spread = {"scaling": {"minReplicas": 2}, "placement": {"spread": {"minNodes": 2}}}
    release.apply(model_service(USERS, "digits", {"only": uri}, **spread))
    found = release.service(USERS, "digits")
    found.wait_until_settled()
    return found


@pytest.mark.timeout(400, func_only=True)
def test_nothing_is_left_but_what_users_have_made(release: Installation, service: Service) -> None:
    helm(
        *("uninstall", "tessera", f"--namespace={NAMESPACE}", "--wait", f"--timeout={HELM_S}s"),
        kubeconfig=release.cluster.kubeconfig,
    )
    release.wait("the pods have ended", lambda: not release.objects("Pod", NAMESPACE), GONE_S)

    document = service.document()
    assert document["metadata"].get("finalizers", []) == []
    for kind in ("Service", "EndpointSlice"):
        assert release.objects(kind, USERS) == []
    for kind in ("RuntimeNode", "PlacementPlan"):
        assert release.objects(kind) == []
    assert leftovers(release) == {
        *{("CustomResourceDefinition", f"{each}.tessera.dev") for each in KINDS},
        ("ModelService", "digits"),
        ("RuntimePool", POOL),
        *{("ModelProfile", each["metadata"]["name"]) for each in release.objects("ModelProfile")},
    }

    # Nothing holds on to what users take away now, kinds included.
    release.kubectl("delete", "msvc", "digits", f"--namespace={USERS}", "--timeout=20s")
    release.kubectl("delete", "crds", *[f"{each}.tessera.dev" for each in KINDS], "--timeout=30s")
    release.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s")
    assert leftovers(release) == set()


def leftovers(release: Installation) -> set[tuple[str, str]]:
    """Objects of any kind that bear Tessera's name, a label of it, or are of a kind of it."""
    found = set()
    for group, resource, _, verbs in release.client.resources():
        if "/" in resource or "list" not in verbs or group in NOT_KEPT:
            continue
        for each in listed(release, group, resource):
            metadata = each["metadata"]
            labels = metadata.get("labels") or {}
            named = metadata["name"].split(".")[0].startswith("tessera") or group == "tessera.dev"
            labelled = labels.get("app.kubernetes.io/managed-by") == "tessera"
            crd = metadata["name"].endswith(".tessera.dev")
            if (named or labelled or crd) and resource not in ("events", "namespaces"):
                found.add((each["kind"], metadata["name"]))
    return found


def listed(release: Installation, group: str, resource: str) -> list[Object]:
    name = f"{resource}.{group}" if group else resource
    try:
        text = release.kubectl("get", name, "--all-namespaces", "--output=yaml")
    except (RuntimeError, Refused):
        return []  # it went away meanwhile
    found: list[Object] = yaml.safe_load(text)["items"]
    return found
