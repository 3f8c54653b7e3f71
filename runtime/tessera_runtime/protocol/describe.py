"""What the server says about itself and its models, the same over HTTP and gRPC: plain dicts of the data
plane's facts, with the field names of the protocol, ready for JSON or a protobuf constructor.
"""

from __future__ import annotations

from typing import Any

from tessera_core import __version__
from tessera_runtime.dataplane import (
    DurationStat,
    ModelMetadata,
    ModelStatistics,
    RepositoryEntry,
    TensorSpec,
)
from tessera_runtime.datatypes import BYTES

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")


def server_metadata() -> dict[str, Any]:
    return {"name": "tessera", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: ModelMetadata) -> dict[str, Any]:
    return {
        "name": model.name,
        "versions": list(model.versions),
        "platform": model.platform,
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def model_config(model: ModelMetadata) -> dict[str, Any]:
    """The part of Triton's model configuration that is true here: clients read the batch limit from it.

    ``dims`` leave the batch dimension out, since ``max_batch_size`` stands for it.
    """
    return {
        "name": model.name,
        "platform": model.platform,
        "max_batch_size": model.max_rows,
        "input": [_config_tensor(spec) for spec in model.inputs],
        "output": [_config_tensor(spec) for spec in model.outputs],
        "dynamic_batching": {},
    }


def _config_tensor(spec: TensorSpec) -> dict[str, Any]:
    name = "STRING" if spec.datatype == BYTES else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{name}", "dims": list(spec.shape[1:])}


def model_statistics(model: ModelStatistics) -> dict[str, Any]:
    """``last_inference`` in milliseconds since the epoch, durations in nanoseconds."""
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": model.last_inference_ms,
        "inference_count": model.inference_count,
        "execution_count": model.execution_count,
        "inference_stats": {
            "success": _duration(model.success),
            "fail": _duration(model.fail),
            "queue": _duration(model.queue),
            "compute_input": _duration(model.compute_input),
            "compute_infer": _duration(model.compute_infer),
            "compute_output": _duration(model.compute_output),
            # There is no response cache; clients expect the fields all the same.
            "cache_hit": _duration(DurationStat()),
            "cache_miss": _duration(DurationStat()),
        },
        "batch_stats": [
            {
                "batch_size": batch.batch_size,
                "compute_input": _duration(batch.compute_input),
                "compute_infer": _duration(batch.compute_infer),
                "compute_output": _duration(batch.compute_output),
            }
            for batch in model.batches
        ],
    }


def _duration(stat: DurationStat) -> dict[str, int]:
    return {"count": stat.count, "ns": stat.ns}


def repository_entry(entry: RepositoryEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "version": entry.version,
        "state": entry.state,
        "reason": entry.reason,
    }
