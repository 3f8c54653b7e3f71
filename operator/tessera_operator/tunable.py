"""What is tuned next, and where: on devices that nothing uses, of the very kind that serves. Pure.

A model is tuned on each kind of device where a service that asks for it is placed, once it was measured there as it is
loaded. Its candidates are spread over all the slices of that kind that are free, a few at a time, so that whichever is done
first takes the next ones; what they find is merged in the status of the ModelProfile. Nothing is kept for tuning: a slice
that a plan or a measurement needs is taken away at once, and the candidates that were not tried go elsewhere or wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera_core.api import ModelProfile
from tessera_core.api.measurements import TuningTask
from tessera_core.api.members import Member, ModelFormat
from tessera_core.api.tuning import MOST_VARIANTS, Outcome, Reason, TuningMode
from tessera_core.gpu.mig import label
from tessera_core.plan.decision import Plan
from tessera_core.plan.state import CPU
from tessera_core.tuning.variants import Backend, candidates
from tessera_operator.profiling import Place
from tessera_operator.remembered import Place as Model
from tessera_operator.remembered import place_of
from tessera_operator.tuning_places import Ground, Spot, crosses
from tessera_operator.versions import Version

CANCELLED = "tessera.dev/tuning-cancelled"
"""Annotation of a ModelProfile: with any value, nothing more is tried."""
AGAIN = "tessera.dev/tune-again"
"""Annotation of a ModelProfile: when its value changes, outcomes and quarantine are forgotten."""

_EACH = 2
"""Candidates that a slice is given at once: the one that is tried, and the next, for which the operator is not waited."""


@dataclass(frozen=True, slots=True)
class Want:
    """What is to be tried of one model on one kind of device."""

    profile: ModelProfile
    """Of the model as it is loaded there."""
    service: str
    member: str
    """One of those that have the model."""
    variants: tuple[str, ...]
    """All candidates, the most promising first."""
    left: tuple[str, ...]
    """Of them, those of which nothing is known."""
    tolerance: float
    """The largest of those who ask."""

    @property
    def place(self) -> Place:
        return place_of(self.profile)[1:]


@dataclass(frozen=True, slots=True)
class _Asking:
    service: str
    member: Member
    version: Version


def wants(
    versions: Mapping[str, Version],
    newest: Mapping[str, Version],
    plan: Plan,
    profiles: Iterable[ModelProfile],
) -> tuple[Want, ...]:
    """What is to be tuned, in a steady order. ``profiles``: of models as they are loaded."""
    asking = _asking(versions, newest, plan)
    found = []
    for profile in sorted(profiles, key=lambda each: (each.metadata.namespace, each.metadata.name)):
        place = profile.spec.device_class
        kind = str(replace(place, product=label(place.product)))
        askers = asking.get((profile.spec.model_digest, kind), ())
        if askers and profile.status.rows:
            found.append(_want(profile, askers))
    return tuple(each for each in found if each.variants)


def _asking(
    versions: Mapping[str, Version], newest: Mapping[str, Version], plan: Plan
) -> dict[tuple[str, str], list[_Asking]]:
    """By (digest, device class): who has it placed there and wants it tuned."""
    found: dict[tuple[str, str], list[_Asking]] = {}
    seen: set[tuple[str, str, str]] = set()
    for each in plan.assignments:
        key = each.service, each.member, each.device_class
        version, new = versions.get(each.service), newest.get(each.service)
        if key in seen or version is None or new is None or version.generation != new.generation:
            continue  # a version that is about to go is not worth it
        seen.add(key)
        member = next((m for m in version.service.spec.members if m.name == each.member), None)
        digest = version.digests.get(each.member)
        if version.service.spec.tuning.mode is TuningMode.OFF or member is None or digest is None:
            continue
        asker = _Asking(each.service, member, version)
        found.setdefault((digest, each.device_class), []).append(asker)
    return found


def _want(profile: ModelProfile, askers: Sequence[_Asking]) -> Want:
    tunings = [each.version.service.spec.tuning for each in askers]
    tolerance = max(each.tolerance for each in tunings)
    place = profile.spec.device_class
    names = tuple(
        str(each)
        for each in candidates(
            _format(askers),
            CPU if place.is_cpu else "cuda",
            {precision for each in tunings for precision in each.precisions},
            tuple(Backend),  # a node says of one that it does not have
            0 if place.is_cpu else place.sm_count,
        )
    )[:MOST_VARIANTS]
    annotations = dict(profile.metadata.annotations)
    status = profile.status.tuning
    known: tuple[Outcome, ...] = ()
    if status is not None and status.again == annotations.get(AGAIN, ""):
        known = status.outcomes
    done = {each.variant for each in known if not is_open(each, tolerance)}
    left = () if CANCELLED in annotations else tuple(each for each in names if each not in done)
    first = min(askers, key=lambda each: (each.service, each.member.name))
    return Want(profile, first.service, first.member.name, names, left, tolerance)


def is_open(outcome: Outcome, tolerance: float) -> bool:
    """Whether it is to be tried again: its answers were too far off for those who asked then, not for those who do now."""
    return (
        outcome.verdict is Reason.DIFFERS
        and outcome.error is not None
        and outcome.error <= tolerance
    )


def _format(askers: Sequence[_Asking]) -> ModelFormat:
    """Of the file, which is the same for all of them."""
    return askers[0].member.model.format


@dataclass(slots=True)
class _Given:
    """A slice that tries variants of one model."""

    want: Want
    node: str
    device: str
    slice: str
    variants: list[str]

    @property
    def task(self) -> TuningTask:
        want = self.want
        variants = tuple(self.variants)
        return TuningTask(
            want.service, want.member, self.device, self.slice, variants, want.tolerance
        )


@dataclass(frozen=True, slots=True)
class Shared:
    """Who tries what."""

    tasks: Mapping[str, tuple[TuningTask, ...]]
    """By node."""
    where: Mapping[Model, tuple[str, ...]]
    """By model and kind of device: the slices that it is tried on, for people."""


def share_out(wanted: Sequence[Want], ground: Ground, most: int) -> Shared:
    """``most``: tasks in the whole cluster. What is under way goes on where it is, if it may."""
    free = [
        ground.spots(want.service, want.member, want.place) if want.left else [] for want in wanted
    ]
    left = [list(want.left) for want in wanted]
    given: list[_Given] = []
    taken: set[Spot] = set()

    def give(index: int, spot: Spot, variants: Iterable[str]) -> None:
        chosen = list(variants)
        for each in chosen:
            left[index].remove(each)
        taken.add(spot)
        given.append(_Given(wanted[index], *spot, chosen))

    for node in ground.nodes:
        for task in node.spec.tuning:
            spot = node.metadata.name, task.device, task.slice
            for index, want in enumerate(wanted):
                kept = [each for each in task.variants if each in left[index]]
                same = (want.service, want.member, want.tolerance) == (
                    task.service,
                    task.member,
                    task.tolerance,
                )
                may = spot in free[index] and not crosses(spot, taken) and len(given) < most
                if same and may and kept:
                    give(index, spot, kept)
    begun = True
    while begun and len(given) < most:
        begun = False
        for index in range(len(wanted)):  # one more slice for each in turn
            spots = [each for each in free[index] if not crosses(each, taken)]
            if left[index] and spots and len(given) < most:
                give(index, spots[0], left[index][:1])
                begun = True
    for each in given:
        rest = left[wanted.index(each.want)]
        while rest and len(each.variants) < _EACH:
            each.variants.append(rest.pop(0))
    tasks: dict[str, tuple[TuningTask, ...]] = {}
    where: dict[Model, tuple[str, ...]] = {}
    for each in given:
        tasks[each.node] = (*tasks.get(each.node, ()), each.task)
        model = place_of(each.want.profile)
        where[model] = (*where.get(model, ()), f"{each.node}/{each.slice}")
    return Shared(tasks, where)
