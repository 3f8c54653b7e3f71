"""What nodes are told of how long batches take: of the plan, and of what was measured. Pure."""

from __future__ import annotations

from functools import lru_cache

from tessera_core.api.modelservice import ScalingMode
from tessera_core.api.runtimenode import MOST_LINES, BatchLine, BatchTime
from tessera_core.perf.profile import LinearFit
from tessera_core.plan.site import known_digests
from tessera_core.plan.state import Measured
from tessera_operator.decide import Decision


def batch_times(
    decision: Decision,
) -> dict[tuple[str, str], BatchTime]:
    """By (service, member): how long a batch takes where it is slowest, for the rule that drops late requests."""
    profiles = {(each.digest, str(each.place)): each.expected for each in decision.state.measured}
    lines: dict[tuple[str, str, int], LinearFit] = {}
    found: dict[tuple[str, str], BatchTime] = {}
    digests = known_digests(decision.state)
    for each in decision.plan.assignments:
        digest = digests.get((each.service, each.member))
        profile = profiles.get((digest or "", each.device_class))
        if profile is None or each.instances not in profile.instance_counts:
            continue
        fit = digest or "", each.device_class, each.instances
        if fit not in lines:
            lines[fit] = profile.slow_line(each.instances)
        line = lines[fit]
        key = each.service, each.member
        if key not in found or line.tau0_ms > found[key].tau0_ms:
            found[key] = BatchTime(_rounded(line.alpha_ms), _rounded(line.tau0_ms))
    return found


def batch_lines(decision: Decision) -> dict[tuple[str, str], tuple[BatchLine, ...]]:
    """By (service, member): how long batches take on the kinds of device where it is placed, for nodes that steer batches
    and instances beneath the plan. None for services whose capacity is not the SLO's to decide: they keep to the plan.

    As measured, whatever has drifted since: what a node reports is over these lines, and what is recorded is what nodes
    report. With lines that follow the record a node would report 1 as soon as a drift is recorded, which would end it.
    """
    measured = {(each.digest, str(each.place)): each for each in decision.state.measured}
    kinds: dict[tuple[str, str], set[tuple[str, str]]] = {}
    digests = known_digests(decision.state)
    for each in decision.plan.assignments:
        version = decision.versions.get(each.service)
        if version is None or version.service.spec.scaling.mode is not ScalingMode.SLO:
            continue
        kind = digests.get((each.service, each.member)) or "", each.device_class
        if kind in measured:
            kinds.setdefault((each.service, each.member), set()).add(kind)
    return {
        key: tuple(line for kind in sorted(found) for line in _lines(measured[kind]))[:MOST_LINES]
        for key, found in kinds.items()
    }


@lru_cache(maxsize=4096)  # asked for each round, and fitting takes ten times as long as looking up
def _lines(measured: Measured) -> tuple[BatchLine, ...]:
    place, profile = measured.place, measured.profile
    return tuple(
        BatchLine(
            place.product,
            place.slice,
            instances,
            profile.cells(instances)[-1].batch,
            _rounded(line.alpha_ms),
            _rounded(line.tau0_ms),
            _rounded(profile.spread_ms(instances)),
        )
        for instances in profile.instance_counts
        for line in [profile.fit(instances, relative=True)]
    )


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
