"""Every example decodes, is admitted where it says, and is what its comment claims."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tessera_core.api import Combine, ModelService, OnTimeout, RuntimePool, admission, decode
from tessera_core.api.meta import API_VERSION

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_decodes_and_its_models_are_data(path: Path) -> None:
    decoded = decode(yaml.safe_load(path.read_text()))
    if isinstance(decoded, ModelService):
        assert admission(decoded.spec, local=True, allow_code=False) == ()


def example(name: str) -> object:
    path = next(path for path in EXAMPLES if path.stem == name)
    return decode(yaml.safe_load(path.read_text()))


def test_the_digits_example_averages_three_members_within_50_ms() -> None:
    digits = example("digits")
    assert isinstance(digits, ModelService)
    assert len(digits.spec.members) == 3
    assert digits.spec.ensemble.combine is Combine.MEAN
    assert digits.spec.slo.objectives[0].target_s == 0.05
    assert digits.spec.slo.objectives[0].percent == 99.0


def test_the_quorum_example_answers_without_the_late_members() -> None:
    quorum = example("weighted-quorum")
    assert isinstance(quorum, ModelService)
    assert quorum.spec.ensemble.on_timeout is OnTimeout.PARTIAL
    assert quorum.spec.ensemble.min_members == 2
    assert [member.weight for member in quorum.spec.members] == [0.5, 0.3, 0.2]


def test_the_pool_example_is_a_gpu_pool() -> None:
    pool = example("h100-pool")
    assert isinstance(pool, RuntimePool)
    assert dict(pool.spec.node.resources)["nvidia.com/gpu"].value == 8


@pytest.mark.parametrize("name", ["hpa", "keda"])
def test_an_autoscaler_example_scales_a_kind_that_can_be_scaled(name: str) -> None:
    document = yaml.safe_load((ROOT / "examples" / "kubernetes" / f"{name}.yaml").read_text())
    target = document["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (API_VERSION, ModelService.KIND)
    crd = yaml.safe_load((ROOT / "crds" / "tessera.dev_modelservices.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    assert version["subresources"]["scale"] == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
