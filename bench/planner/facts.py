"""Cluster facts in the planner's words, as all cases write them: digests and ModelServices."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from tessera_core.api import ModelService


def digest(model: str) -> str:
    """A well-formed digest that is the model's own."""
    return "sha256:" + sha256(model.encode()).hexdigest()


def model_service(
    name: str,
    models: Sequence[str],
    *,
    rate_per_s: float,
    target_ms: float,
    namespace: str = "bench",
    percent: float = 99.0,
    batch_max: int = 256,
    **spec: Any,
) -> ModelService:
    """A service with one member per model; ``spec`` is added to the document's spec as it is."""
    members = [
        {
            "name": f"m{index}",
            "model": {
                "uri": f"s3://bench/{model}",
                "format": "TorchExport",
                "digest": digest(model),
            },
            "batch": {"max": batch_max},
        }
        for index, model in enumerate(models)
    ]
    document = {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "members": members,
            "ensemble": {"combine": "Mean" if len(members) > 1 else "None"},
            "slo": {"objectives": [{"target": f"{target_ms:g}ms", "percent": f"{percent:g}"}]},
            "traffic": {"requestsPerSecond": f"{rate_per_s:.9g}"},
            **spec,
        },
    }
    return ModelService.from_dict(document)
