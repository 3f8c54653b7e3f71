"""What ModelProfiles say of tuning: outcomes of all nodes merged, what failed where it served, how far it is. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from tessera_core.api import Condition, ModelProfile, RuntimeNode
from tessera_core.api.meta import ConditionStatus
from tessera_core.api.tuning import (
    MOST_VARIANTS,
    Outcome,
    Quarantined,
    Reason,
    TuningPhase,
    TuningStatus,
)
from tessera_core.gpu.mig import label
from tessera_operator.remembered import Place as Model
from tessera_operator.remembered import place_of
from tessera_operator.tunable import AGAIN, CANCELLED, Want
from tessera_operator.variants import Uses

TUNED = "Tuned"
_NOTHING = TuningStatus(TuningPhase.PENDING)


@dataclass(frozen=True, slots=True)
class Reported:
    """What nodes say of one model on one kind of device."""

    outcomes: tuple[Outcome, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()
    """Variants that failed where they served, or when they were measured, and why."""


def reports(nodes: Iterable[RuntimeNode]) -> dict[Model, Reported]:
    """What ``nodes`` say, by model and kind of device."""
    found: dict[Model, Reported] = {}
    for node in nodes:
        products = {device.uuid: label(device.product) for device in node.status.devices}
        for result in node.status.tuning:
            if result.model_digest is not None and result.device in products:
                kind = result.slice.partition("@")[0]
                key = result.model_digest, products[result.device], kind
                seen = found.get(key, Reported())
                found[key] = replace(seen, outcomes=(*seen.outcomes, *result.outcomes))
        for key, failure in _failures(node):
            seen = found.get(key, Reported())
            found[key] = replace(seen, failures=(*seen.failures, failure))
    return found


def _failures(node: RuntimeNode) -> Iterator[tuple[Model, tuple[str, str]]]:
    for each in node.status.fallbacks:
        yield (each.model_digest, label(each.product), each.slice), (each.variant, each.reason)
    for measured in node.status.profiles:
        place, digest = measured.device_class, measured.model_digest
        if measured.variant and measured.problem and place is not None and digest is not None:
            why = f"it could not be measured: {measured.problem}"
            yield (digest, label(place.product), place.slice), (measured.variant, why)


def slowed(profile: ModelProfile, tuned: Iterable[ModelProfile]) -> Iterator[tuple[str, str]]:
    """Variants that are no longer faster, by what their batches take where they run. ``tuned``: profiles of variants of
    this very model, on the same kind of device.
    """
    status = profile.status.tuning
    ratios = {
        each.variant: each.p99_ratio
        for each in (status.outcomes if status is not None else ())
        if each.p99_ratio is not None
    }
    own = profile.status.drift.ratio if profile.status.drift is not None else 1.0
    for each in tuned:
        drift, ratio = each.status.drift, ratios.get(each.spec.variant)
        if drift is None or ratio is None:
            continue
        if drift.ratio > 1 and drift.ratio * ratio >= own:
            why = (
                f"batches take {drift.ratio:g} times what was measured of it, so that it is no faster "
                "than the untuned model"
            )
            yield each.spec.variant, why


def merged(
    profile: ModelProfile, reported: Reported, slow: Iterable[tuple[str, str]], now: str
) -> TuningStatus | None:
    """The status with what is new; None where nothing is known. ``now``: RFC 3339.

    A variant whose outcome is known keeps it, unless it was too far off for those who asked then and has been tried for others.
    """
    before = profile.status.tuning
    again = dict(profile.metadata.annotations).get(AGAIN, "")[:128]
    if before is not None and before.again != again:
        return replace(_NOTHING, again=again)
    status = before or replace(_NOTHING, again=again)
    outcomes = {each.variant: each for each in status.outcomes}
    for each in reported.outcomes:
        known = outcomes.get(each.variant)
        if known is None or _supersedes(each, known):
            outcomes[each.variant] = each
    held = {each.variant: each for each in status.quarantined}
    for variant, why in (*reported.failures, *slow):
        if variant in outcomes and variant not in held:
            held[variant] = Quarantined(variant, why[:1024], now)
    kept = tuple(outcomes[name] for name in sorted(outcomes))[:MOST_VARIANTS]
    quarantined = tuple(held[name] for name in sorted(held))[:MOST_VARIANTS]
    found = replace(status, outcomes=kept, quarantined=quarantined)
    return found if before is not None or kept else None


def _supersedes(new: Outcome, known: Outcome) -> bool:
    if known.verdict is not Reason.DIFFERS:
        return False
    return new.verdict is not Reason.DIFFERS or (new.error or 0.0) > (known.error or 0.0)


def progressed(
    profile: ModelProfile,
    status: TuningStatus | None,
    want: Want | None,
    under_way: bool,
    uses: Uses,
) -> TuningStatus | None:
    """``status`` with how far it is. ``want``: what is to be tried; None: nobody asks any more. ``under_way``: whether some
    node has a task of it. ``uses``: which variant each service uses.
    """
    if want is None:
        if status is None:
            return None
        open_phases = TuningPhase.PENDING, TuningPhase.TUNING
        phase = TuningPhase.CANCELLED if status.phase in open_phases else status.phase
        return replace(status, phase=phase, promoted=_promoted(profile, status, uses))
    status = status or replace(
        _NOTHING, again=dict(profile.metadata.annotations).get(AGAIN, "")[:128]
    )
    known = {each.variant: each for each in status.outcomes}
    tried = [known[name] for name in want.variants if name in known and name not in want.left]
    if CANCELLED in dict(profile.metadata.annotations) and len(tried) < len(want.variants):
        phase = TuningPhase.CANCELLED
    elif want.left:
        phase = TuningPhase.TUNING if under_way else TuningPhase.PENDING
    elif all(each.verdict is Reason.FAILED for each in tried):
        phase = TuningPhase.FAILED
    else:
        phase = TuningPhase.TUNED
    return replace(
        status,
        phase=phase,
        done=len(tried),
        total=len(want.variants),
        promoted=_promoted(profile, status, uses),
    )


def _promoted(profile: ModelProfile, status: TuningStatus, uses: Uses) -> str:
    digest, *place = place_of(profile)
    used = {
        variant for use, variant in uses.items() if (use.digest, *use.place) == (digest, *place)
    }
    ratios = {each.variant: each.p99_ratio or 1.0 for each in status.outcomes}
    return min(used, key=lambda each: (ratios.get(each, 1.0), each), default="")


def condition(status: TuningStatus, where: Collection[str]) -> Condition:
    """How far tuning is, for the ModelProfile. ``where``: slices that it is under way on."""
    says = {
        TuningPhase.PENDING: "no free slice of this kind beside which everything has time to spare",
        TuningPhase.TUNING: f"on {', '.join(sorted(where))}",
        TuningPhase.TUNED: "",
        TuningPhase.CANCELLED: "nobody asks for the rest any more",
        TuningPhase.FAILED: "no variant could be built or run; status.tuning.outcomes says why",
    }[status.phase]
    used = f"{status.promoted} is used" if status.promoted else "the untuned model is used"
    parts = [f"{status.done} of {status.total} variants tried", used, *([says] if says else [])]
    if status.quarantined:
        parts.append(f"{len(status.quarantined)} in quarantine")
    done = status.phase is TuningPhase.TUNED
    state = ConditionStatus.TRUE if done else ConditionStatus.FALSE
    return Condition(TUNED, state, status.phase.value, "; ".join(parts)[:1024])
