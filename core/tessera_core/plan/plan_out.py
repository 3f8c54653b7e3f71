"""A plan as a plain mapping, for JSON, YAML and people. Predictions are rounded to four digits."""

from __future__ import annotations

from typing import Any

from tessera_core.plan.decision import Assignment, DevicePlan, Plan, Refusal, ServicePlan
from tessera_core.plan.nodes import slice_name


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """New dicts, lists and scalars only; devices without instances are left out."""
    used = [device for device in plan.devices if device.assignments or device.recut]
    return {
        "name": plan.name,
        "cost": _rounded(plan.cost),
        "lowerBound": _rounded(plan.lower_bound),
        "gapPercent": _rounded(plan.gap_percent),
        "truncated": plan.truncated,
        "devices": [_device(device) for device in used],
        "services": [_service(service) for service in plan.services],
        "refused": [
            {"service": service, "member": member, **_refusal(refusal)}
            for service, member, refusal in plan.refused
        ],
        "idle": list(plan.idle),
    }


def _device(device: DevicePlan) -> dict[str, Any]:
    return {
        "node": device.node,
        "uuid": device.uuid,
        "product": device.product,
        "geometry": [str(placement) for placement in device.geometry],
        "recut": device.recut,
        "instances": [_assignment(each) for each in device.assignments],
    }


def _assignment(each: Assignment) -> dict[str, Any]:
    return {
        "service": each.service,
        "member": each.member,
        "slice": slice_name(each.slice),
        "batch": each.batch,
        "count": each.instances,
        "rowsPerSecond": _rounded(each.load),
        "maxRowsPerSecond": _rounded(each.rate),
        "latencyMs": _rounded(each.latency_ms),
    }


def _service(service: ServicePlan) -> dict[str, Any]:
    found: dict[str, Any] = {
        "service": service.service,
        "requestsPerSecond": _rounded(service.requests_per_second),
        "maxRequestsPerSecond": _rounded(service.max_requests_per_second),
        "percentile": service.percentile,
        "latencyMs": _rounded(service.latency_ms),
        "targetMs": _rounded(service.target_ms),
    }
    if service.short is not None:
        found["short"] = _refusal(service.short)
    return found


def _refusal(refusal: Refusal) -> dict[str, Any]:
    found: dict[str, Any] = {"reason": refusal.why.value, "detail": refusal.detail}
    if refusal.best_ms is not None:
        found["bestMs"] = _rounded(refusal.best_ms)
    if refusal.shortfall is not None:
        found["shortfall"] = {
            "requestsPerSecond": _rounded(refusal.shortfall.requests_per_second),
            "device": refusal.shortfall.device,
            "devices": refusal.shortfall.devices,
        }
    return found


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
