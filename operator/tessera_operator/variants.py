"""Which variant of a model each service uses, and how nodes and plans come to use it. Pure.

Problem: what is faster is a fact of a model on a kind of device, which ModelProfiles hold; what may be used is the word of
each service; and a plan that counts with a variant must not take away copies that are still needed while the others run the
model as it was. Approach: the best variant that a service allows, and that was measured, is *chosen*. Nodes are told of it one
after the other, the next once the one before answers with it. Plans count with it once it is *in force*: once nothing of the
member answers otherwise on that kind of device. What goes wrong on the way, goes back the same way, but everywhere at once.

A plan knows a model by its digest. One that is in force in a variant gets a name of its own there, and under that name what
was measured of the variant, and of the model as it is loaded on the other kinds of device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera_core.api import Device, Instance, ModelProfile, ModelService, RuntimeNode
from tessera_core.api.meta import ObjectMeta
from tessera_core.api.tuning import Outcome, Reason, Tuning, TuningMode, TuningPhase, TuningStatus
from tessera_core.gpu.mig import label
from tessera_core.tuning.variants import parse
from tessera_operator.profiling import Place
from tessera_operator.remembered import place_of
from tessera_operator.versions import Version, latest, profile_names


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """A member of a service on one kind of device."""

    service: str
    member: str
    digest: str
    """Of the model: another version of the service may have another one, of which nothing is known."""
    place: Place


Uses = Mapping[Use, str]
"""The variant of each; what is not in it is as it is loaded."""
NO_USES: Uses = {}


def allows(tuning: Tuning, outcome: Outcome) -> bool:
    """Whether a service with ``tuning`` may use what came out so."""
    if tuning.mode is TuningMode.OFF or outcome.verdict is not Reason.FASTER:
        return False
    if outcome.error is None or outcome.error > tuning.tolerance:
        return False
    try:
        return parse(outcome.variant).precision in tuning.precisions
    except ValueError:
        return False  # a newer operator's


def usable(tuning: Tuning, status: TuningStatus) -> tuple[str, ...]:
    """The variants that a service with ``tuning`` may use, the fastest first."""
    held = {each.variant for each in status.quarantined}
    found = [
        each
        for each in status.outcomes
        if each.variant not in held and allows(tuning, each) and each.p99_ratio is not None
    ]
    return tuple(each.variant for each in sorted(found, key=_rank))


def _rank(outcome: Outcome) -> tuple[float, float, str]:
    return round(outcome.p99_ratio or 1.0, 3), -(outcome.throughput_ratio or 0.0), outcome.variant


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be used, and what has to be measured for that."""

    uses: Uses
    unmeasured: Uses
    """Variants that are better than what is used, of which nobody has a ModelProfile."""


def chosen(
    services: Iterable[ModelService],
    profiles: Sequence[ModelProfile],
    tuned: Iterable[ModelProfile],
) -> Choice:
    """Which variants are to be used, by what is known now; as of :func:`choose`."""
    named = profile_names(profiles)
    present = (each for each in services if each.metadata.deletion_timestamp is None)
    return choose([latest(each, named) for each in present], profiles, tuned)


def choose(
    versions: Iterable[Version],
    profiles: Iterable[ModelProfile],
    tuned: Iterable[ModelProfile],
) -> Choice:
    """``profiles``: of models as they are loaded; ``tuned``: of variants.

    While a model is being tuned, what was used before stays: each of several swaps would cost a load.
    """
    measured = {(place_of(each), each.spec.variant) for each in tuned if each.status.rows}
    by_digest: dict[str, list[ModelProfile]] = {}
    for profile in profiles:
        if profile.status.tuning is not None:
            by_digest.setdefault(profile.spec.model_digest, []).append(profile)
    uses: dict[Use, str] = {}
    unmeasured: dict[Use, str] = {}
    for version in versions:
        tuning = version.service.spec.tuning
        for member, digest in version.digests.items():
            for profile in by_digest.get(digest, ()):
                status, place = profile.status.tuning, place_of(profile)
                if status is None:
                    continue
                use = Use(version.name, member, digest, place[1:])
                wanted = usable(tuning, status)
                known = [each for each in wanted if (place, each) in measured]
                if known:
                    uses[use] = known[0]
                if wanted and known[:1] != [wanted[0]] and status.phase is not TuningPhase.TUNING:
                    unmeasured[use] = wanted[0]
    return Choice(uses, unmeasured)


@dataclass(frozen=True, slots=True)
class _Copies:
    """What a node has of a member in one slice."""

    told: Instance | None
    ready: int
    runs: str
    """The variant that answers; of no meaning while ``ready`` is 0."""

    def answers(self, variant: str) -> bool:
        """Whether all that it was told is there, in ``variant``."""
        return self.told is not None and self.ready >= self.told.count and self.runs == variant


def _copies(node: RuntimeNode) -> Iterator[tuple[Use, _Copies]]:
    digests = {
        (service.name, member.name): member.digest
        for service in node.spec.services
        for member in service.members
    }
    told = {
        (device.uuid, each.slice, each.service, each.member): each
        for device in node.spec.devices
        for each in device.instances
    }
    products = {device.uuid: label(device.product) for device in node.status.devices}
    present = {
        (device.uuid, each.slice, each.service, each.member): each
        for device in node.status.devices
        for each in device.instances
    }
    for spot in sorted(told.keys() | present.keys()):
        uuid, piece, service, member = spot
        digest = digests.get((service, member))
        if digest is None or uuid not in products:
            continue
        use = Use(service, member, digest, (products[uuid], piece.partition("@")[0]))
        seen = present.get(spot)
        ready, runs = (seen.ready, seen.variant) if seen is not None else (0, "")
        yield use, _Copies(told.get(spot), ready, runs)


def in_force(chosen: Uses, nodes: Iterable[RuntimeNode]) -> dict[Use, str]:
    """Those of ``chosen`` beside which nothing answers otherwise. ``nodes``: those that are heard of."""
    if not chosen:
        return {}
    others = {
        use
        for node in nodes
        for use, copies in _copies(node)
        if copies.ready and copies.runs != chosen.get(use, "")
    }
    return {use: variant for use, variant in chosen.items() if use not in others}


def turns(chosen: Uses, nodes: Iterable[RuntimeNode]) -> dict[Use, frozenset[str]]:
    """Nodes that may be told of each of ``chosen`` now: those that were, and, when all of them answer with it, one more.

    ``nodes``: those that are heard of.
    """
    if not chosen:
        return {}
    has: dict[Use, dict[str, bool]] = {}
    told: dict[Use, dict[str, bool]] = {}
    for node in nodes:
        name = node.metadata.name
        for use, copies in _copies(node):
            variant = chosen.get(use)
            if variant is None or copies.told is None:
                continue
            answers = copies.answers(variant)
            at = told if copies.told.variant == variant else has
            by_node = at.setdefault(use, {})
            by_node[name] = by_node.get(name, True) and answers
    found: dict[Use, frozenset[str]] = {}
    for use in has.keys() | told.keys():
        settled = told.get(use, {})
        waiting = sorted(has.get(use, {}))
        more = waiting[:1] if all(settled.values()) else ()
        found[use] = frozenset((*settled, *more))
    return found


@dataclass(frozen=True, slots=True)
class Orders:
    """Who is to run which variant now."""

    chosen: Uses
    turns: Mapping[Use, Collection[str]]
    """As of :func:`turns`."""
    digests: Mapping[tuple[str, str], str]
    """By (service, member), of what nodes are told."""

    def of(self, node: RuntimeNode, devices: Sequence[Device]) -> tuple[Device, ...]:
        """``devices`` with the variants that ``node`` is to run now.

        What is new there begins with what is chosen, and what is not to be used goes at once; else a node has the variant
        that it was told, until it is its turn.
        """
        products = {device.uuid: label(device.product) for device in node.status.devices}
        told = {
            (device.uuid, each.slice, each.service, each.member): each.variant
            for device in node.spec.devices
            for each in device.instances
        }

        def variant_of(uuid: str, each: Instance) -> str:
            digest = self.digests.get((each.service, each.member))
            before = told.get((uuid, each.slice, each.service, each.member))
            if digest is None or uuid not in products:
                return each.variant if before is None else before
            place = products[uuid], each.slice.partition("@")[0]
            use = Use(each.service, each.member, digest, place)
            wanted = self.chosen.get(use, "")
            waits = wanted and node.metadata.name not in self.turns.get(use, ())
            return wanted if before is None or not waits else before

        if not self.chosen and not any(told.values()):
            return tuple(devices)
        return tuple(
            replace(
                device,
                instances=tuple(
                    replace(each, variant=variant_of(device.uuid, each))
                    for each in device.instances
                ),
            )
            for device in devices
        )


def known_as(digest: str, variants: Mapping[Place, str]) -> str:
    """What plans know a model by that is in force in ``variants`` on these places: written as a digest, so that facts can be
    saved and read. Where it is in none, its digest.
    """
    if not variants:
        return digest
    said = ";".join(
        f"{product}/{piece}={name}" for (product, piece), name in sorted(variants.items())
    )
    return f"sha256:{hashlib.sha256(f'{digest}+{said}'.encode()).hexdigest()}"


def names(uses: Uses) -> dict[tuple[str, str, str], str]:
    """By (service, member, digest): what plans know the model by, where that is not its digest."""
    return {key: known_as(key[2], places) for key, places in _by_model(uses).items()}


def _by_model(uses: Uses) -> dict[tuple[str, str, str], dict[Place, str]]:
    found: dict[tuple[str, str, str], dict[Place, str]] = {}
    for use, variant in uses.items():
        found.setdefault((use.service, use.member, use.digest), {})[use.place] = variant
    return found


def as_used(
    uses: Uses, profiles: Iterable[ModelProfile], tuned: Iterable[ModelProfile]
) -> tuple[ModelProfile, ...]:
    """What was measured, under the names that :func:`names` gives."""
    if not uses:
        return ()
    by_variant = {(place_of(each), each.spec.variant): each for each in tuned}
    by_digest: dict[str, list[ModelProfile]] = {}
    for profile in profiles:
        by_digest.setdefault(profile.spec.model_digest, []).append(profile)
    found: dict[tuple[str, Place], ModelProfile] = {}
    for (_, _, digest), variants in _by_model(uses).items():
        name = known_as(digest, variants)
        for profile in by_digest.get(digest, ()):
            place = place_of(profile)
            source = by_variant.get((place, variants.get(place[1:], "")), profile)
            found[name, place[1:]] = replace(
                source,
                metadata=ObjectMeta(name=f"{name[-40:]}-{len(found)}"),
                spec=replace(source.spec, model_digest=name, variant=""),
            )
    return tuple(found.values())
