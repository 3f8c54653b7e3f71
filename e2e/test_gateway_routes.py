"""Routes of the Gateway API, whose CRDs come from its Go module: they appear with their services, follow them, and go."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from e2e.chart import Object
from e2e.faults.agents import Agents
from e2e.faults.fixtures import Operators
from e2e.faults.kube import until
from e2e.faults.operators import SETTINGS
from e2e.faults.scene import USERS, Scene, model_service

MODULE = "sigs.k8s.io/gateway-api@v1.4.0"
KINDS = {"HTTPRoute": 80, "GRPCRoute": 8001}
"""And the ports of the Service that they lead to."""
GATEWAY = "gateway: {name: public, namespace: gateways, domain: models.example.com}\n"
_DOWNLOAD_S = 120


@pytest.fixture(scope="module")
def standard() -> Path:
    """The folder of the module's CRDs."""
    said = subprocess.run(
        ["go", "mod", "download", "-json", MODULE],
        capture_output=True,
        check=True,
        timeout=_DOWNLOAD_S,
    )
    return Path(json.loads(said.stdout)["Dir"]) / "config" / "crd" / "standard"


@pytest.fixture
def gateways(scene: Scene, standard: Path) -> Iterator[Scene]:
    """A platform that has the Gateway API."""
    crds = [
        yaml.safe_load((standard / f"gateway.networking.k8s.io_{kind.lower()}s.yaml").read_text())
        for kind in KINDS
    ]
    for crd in crds:
        scene.install(crd)
    yield scene
    for crd in crds:
        scene.kube.delete(crd)


def routes(scene: Scene) -> dict[tuple[str, str], Object]:
    """By kind and name."""
    return {
        (kind, each["metadata"]["name"]): each
        for kind in KINDS
        for each in scene.kube.all(kind, USERS)
    }


def test_routes_follow_their_services(
    gateways: Scene, agents: Agents, operators: Operators
) -> None:
    operators(settings=SETTINGS + GATEWAY)
    gateways.serve(model_service("digits"), model_service("words"))
    gateways.settled("digits", "words")
    found = routes(gateways)
    assert found.keys() == {(kind, name) for kind in KINDS for name in ("digits", "words")}
    for (kind, name), route in found.items():
        assert route["spec"]["parentRefs"] == [
            {"group": "gateway.networking.k8s.io", "kind": "Gateway"}
            | {"name": "public", "namespace": "gateways"}
        ]
        assert route["spec"]["hostnames"] == [f"{name}.{USERS}.models.example.com"]
        (rule,) = route["spec"]["rules"]
        (backend,) = rule["backendRefs"]
        assert (backend["name"], backend["port"]) == (name, KINDS[kind])
        (owner,) = route["metadata"]["ownerReferences"]
        assert owner["uid"] == gateways.service(name)["metadata"]["uid"]  # by which it goes

    gateways.kube.delete(found["HTTPRoute", "digits"])
    moved = {"spec": {"hostnames": ["elsewhere.example.com"]}}
    gateways.kube.merge(found["GRPCRoute", "words"], moved)
    until(
        lambda: (
            {key: each["spec"] for key, each in routes(gateways).items()}
            == {key: each["spec"] for key, each in found.items()}
        ),
        "the routes to be as they were",
    )


def test_without_the_setting_nothing_is_routed(
    gateways: Scene, agents: Agents, operators: Operators
) -> None:
    operators()
    gateways.serve(model_service("digits"))
    gateways.settled("digits")
    assert routes(gateways) == {}


def test_where_the_platform_has_no_gateway_api_the_operator_ends_and_says_so(
    scene: Scene, operators: Operators
) -> None:
    """A rolling update then leaves the one before it at work."""
    operator = operators(settings=SETTINGS + GATEWAY)
    assert operator.wait() == 2
    for word in ("gateway", "HTTPRoute", "remove"):
        assert word in operator.tail()
