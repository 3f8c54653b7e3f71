"""Which variants this node runs of those that it was told: pure.

A variant that is compiled is built here before anything is told to run it; until then what ran before goes on. One that goes
wrong is not run any more, whatever is ordered, until another one is: the operator is told why, and decides for all nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tessera_core.api import Instance, RuntimeNode
from tessera_core.api.tuning import FallenBack
from tessera_runtime.agent.kept import Fallback
from tessera_runtime.agent.measure import build_request
from tessera_runtime.agent.profiling import is_compiled
from tessera_runtime.agent.translate import (
    LocalModel,
    ModelKey,
    Site,
    TranslationError,
    device_piece,
    device_target,
)
from tessera_runtime.target import ServerReport, ServerTarget, TuneRequest

Kind = Callable[[str], tuple[str, str]]
"""(product, kind of slice) of a device, by the id that targets have."""
Built = tuple[str, str, str, str]
"""(digest, product, kind of slice, variant): what was built for one holds for all of them."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """Instances that are to run a variant."""

    service: str
    member: str
    digest: str
    device: str
    """Id of the device as targets have it."""
    instance: Instance
    kind: tuple[str, str]

    @property
    def built(self) -> Built:
        return self.digest, *self.kind, self.instance.variant

    def fallback(self, reason: str) -> Fallback:
        return Fallback(
            self.service, self.member, self.digest, *self.kind, self.instance.variant, reason[:1024]
        )


def ordered(node: RuntimeNode, kind: Kind) -> Iterator[Ordered]:
    """The variants that ``node`` is told to run."""
    digests = {
        (service.name, member.name): member.digest
        for service in node.spec.services
        for member in service.members
    }
    for device in node.spec.devices:
        for each in device.instances:
            digest = digests.get((each.service, each.member))
            if each.variant and digest is not None:
                at = device.uuid if each.slice == "full" else f"{device.uuid}/{each.slice}"
                yield Ordered(each.service, each.member, digest, at, each, kind(at))


def fallen(
    node: RuntimeNode, kind: Kind, report: ServerReport | None, before: Iterable[Fallback]
) -> tuple[Fallback, ...]:
    """What is not to be run: as ``before``, as long as it is ordered, and what goes wrong now."""
    wanted = [((each.service, each.member, *each.built), each) for each in ordered(node, kind)]
    known = {(each.service, each.member, *_built(each)): each for each in before}
    found = {key: known[key] for key, _ in wanted if key in known}
    for seen in report.instances if report is not None else ():
        for key, each in wanted:
            reason = seen.faulty.get(each.instance.variant)
            place = each.service, each.member, each.device
            if reason is not None and place == (seen.service, seen.member, seen.device):
                found.setdefault(key, each.fallback(reason))
    return tuple(found[key] for key in sorted(found))


def told(fallbacks: Iterable[Fallback]) -> tuple[FallenBack, ...]:
    """``fallbacks`` as the status has them: of a model, whichever service runs it."""
    return tuple(
        {
            _built(each): FallenBack(
                each.digest, each.product, each.slice, each.variant, each.reason
            )
            for each in fallbacks
        }.values()
    )


def as_run(
    node: RuntimeNode,
    kind: Kind,
    fallbacks: Iterable[Fallback],
    built: Collection[Built],
    before: ServerTarget,
) -> RuntimeNode:
    """``node`` with the variants that may be run. ``built``: what was built here; ``before``: what the server was told."""
    held = {(each.service, each.member, *_built(each)) for each in fallbacks}
    ran = {
        (service.name, member.name, place.device): place.variant
        for service in before.services
        for member in service.members
        for place in member.instances
    }
    instead: dict[tuple[str, Instance], str] = {}
    for each in ordered(node, kind):
        uuid = device_piece(each.device)[0]
        if (each.service, each.member, *each.built) in held:
            instead[uuid, each.instance] = ""
        elif is_compiled(each.instance.variant) and each.built not in built:
            present = ran.get((each.service, each.member, each.device), "")
            # After a restart of the agent it is what runs.
            instead[uuid, each.instance] = present
    if not instead:
        return node
    devices = tuple(
        replace(
            device,
            instances=tuple(
                replace(each, variant=instead.get((device.uuid, each), each.variant))
                for each in device.instances
            ),
        )
        for device in node.spec.devices
    )
    return replace(node, spec=replace(node.spec, devices=devices))


def next_build(
    node: RuntimeNode,
    kind: Kind,
    fallbacks: Iterable[Fallback],
    built: Collection[Built],
    models: Mapping[ModelKey, LocalModel],
    site: Site,
) -> tuple[Ordered, TuneRequest] | None:
    """What has to be built for what is ordered; None: nothing, or nothing that can be yet."""
    held = {(each.service, each.member, *_built(each)) for each in fallbacks}
    for each in ordered(node, kind):
        model = models.get((each.service, each.member))
        if model is None or (each.service, each.member, *each.built) in held or each.built in built:
            continue
        if not is_compiled(each.instance.variant):
            continue
        service = next((s for s in node.spec.services if s.name == each.service), None)
        placed = service.spec.placed if service is not None else ()
        member = next((m for m in placed if m.name == each.member), None)
        if service is None or member is None:
            continue
        try:
            device = device_target(*device_piece(each.device), site)
        except TranslationError:
            continue  # said of the service
        variant = each.instance.variant
        request = build_request(
            *(member, service.spec, model, variant, device), allow_code=site.allow_code
        )
        return each, request
    return None


def _built(fallback: Fallback) -> Built:
    return fallback.digest, fallback.product, fallback.slice, fallback.variant
