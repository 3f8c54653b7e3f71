"""A small fleet as a document, and read."""

from __future__ import annotations

from typing import Any

from tessera_core.simulate.fleet import Fleet, fleet_from_dict


def fleet_document(**changed: Any) -> dict[str, Any]:
    """64 A100s and 12 services for six hours; ``changed`` replaces fields of it, or of its group with ``group=``."""
    group = {
        "name": "pages",
        "pool": "a100",
        "count": 12,
        "requestsPerSecond": {"from": "5", "to": "800"},
        "target": {"from": "30ms", "to": "150ms"},
        "rowMs": {"from": "0.05", "to": "1.5"},
        "batchMs": {"from": "0.5", "to": "4"},
        "burstiness": {"from": "1", "to": "3"},
        "bursts": {"perWeek": "40"},
        **changed.pop("group", {}),
    }
    pool = {
        "name": "a100",
        "product": "NVIDIA-A100-SXM4-80GB",
        "gpus": 64,
        "costPerGpuHour": "3.0",
        **changed.pop("pool", {}),
    }
    return {"seed": 3, "horizon": "6h", "pools": [pool], "services": [group], **changed}


def small_fleet(**changed: Any) -> Fleet:
    """``fleet_document``, read."""
    return fleet_from_dict(fleet_document(**changed))
