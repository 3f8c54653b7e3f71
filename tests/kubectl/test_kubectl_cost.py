"""`kubectl tessera cost`: what nodes were told to run is charged, and what is leaving until it is gone."""

from __future__ import annotations

from typing import Any

import pytest

from tessera_cli.cost_tables import costs_of
from tessera_cli.kubectl.cost import charged
from tessera_core.plan import Policy
from tessera_core.plan.nodes import running

Object = dict[str, Any]


def copy_of(service: str, member: str, piece: str) -> Object:
    return {"service": service, "member": member, "slice": piece, "batch": 4, "count": 1}


def quota(namespace: str, **hard: str) -> Object:
    keys = {f"requests.tessera.dev/{name}": value for name, value in hard.items()}
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus", "namespace": namespace},
        "spec": {"hard": keys},
    }


@pytest.fixture
def told(objects: list[Object]) -> list[Object]:
    """The example cluster, its GPU told to run one slice while another one is leaving."""
    (gpu,) = [each for each in objects if each["metadata"]["name"] == "gpu-1"]
    ordered = copy_of("vision.quality", "vit", "2g.20gb@0")
    gpu["spec"]["devices"] = [{"uuid": "GPU-1", "instances": [ordered]}]
    gpu["status"]["devices"][0]["instances"] = [copy_of("forms.old", "m", "2g.20gb@2")]
    return objects


def test_what_is_ordered_and_what_is_leaving_are_charged(told: list[Object]) -> None:
    state = charged(told, Policy())
    found = costs_of(state, running(state)).bill.by_service()
    assert found["vision.quality"].cost == found["forms.old"].cost
    assert found["vision.quality"].gpu_slices == 2
    assert sum(each.loaded for each in found.values()) == 3_600_000_000


def test_quotas_are_those_of_the_cluster(told: list[Object]) -> None:
    state = charged([*told, quota("vision", slices="5"), quota("text", shares="1")], Policy())
    use = costs_of(state, running(state)).quotas
    assert (use["vision"].slices, use["vision"].quota.slices) == (1, 5)
    assert (use["text"].slices, use["text"].quota.shares) == (0, 1.0)
    assert (use["forms"].slices, use["forms"].quota.slices) == (1, None)
