"""Which version of each service is planned and run. Pure.

A change of a ModelService is not run before it can be: its models are fetched and measured first, and it has to fit.
Until then the version before it goes on, as it is pinned in the specs of the nodes that run it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from tessera_core.api import ModelProfile, ModelService, ModelServiceSpec, RuntimeNode
from tessera_core.api.members import Member
from tessera_core.api.modelservice import MemberStatus
from tessera_core.api.runtimenode import ServedService

Named = Mapping[tuple[str, str], str]
"""Model digests by (namespace, name) of a ModelProfile."""


@dataclass(frozen=True, slots=True)
class Version:
    """What is to be run of one service."""

    service: ModelService
    """As it is planned: the spec of this version, its digests in the status."""
    generation: int
    digests: Mapping[str, str]
    """By member, of those that are known."""

    @property
    def name(self) -> str:
        return self.service.served_name

    @property
    def is_complete(self) -> bool:
        """Whether every model is known."""
        return len(self.digests) == len(self.service.spec.placed)


def digest_of(service: ModelService, member: Member, named: Named) -> str | None:
    """What is known of a member's content: stated, fetched from where it is now, or of the profile it names."""
    if member.model.digest is not None:
        return member.model.digest
    for each in service.status.members:
        if each.name == member.name and each.uri == member.model.uri and each.digest:
            return each.digest
    if member.profile_ref is not None:
        return named.get((service.metadata.namespace, member.profile_ref.name))
    return None


def profile_names(profiles: Iterable[ModelProfile]) -> Named:
    return {
        (each.metadata.namespace, each.metadata.name): each.spec.model_digest for each in profiles
    }


def latest(service: ModelService, named: Named) -> Version:
    """The version that the object says."""
    found = {
        member.name: digest
        for member in service.spec.placed
        if (digest := digest_of(service, member, named)) is not None
    }
    return Version(service, service.metadata.generation or 0, found)


def pinned(nodes: Iterable[RuntimeNode]) -> dict[str, ServedService]:
    """By service: the latest version that some node was told to run."""
    found: dict[str, ServedService] = {}
    for node in nodes:
        running = {each.service for device in node.spec.devices for each in device.instances}
        for served in node.spec.services:
            known = found.get(served.name)
            if served.name in running and (known is None or known.generation < served.generation):
                found[served.name] = served
    return found


def before(service: ModelService, served: ServedService) -> Version:
    """The version that nodes run, as of ``served``."""
    digests = {each.name: each.digest for each in served.members if each.digest is not None}
    members = tuple(
        MemberStatus(member.name, digests.get(member.name), member.model.uri)
        for member in served.spec.placed
    )
    old = replace(
        service,
        spec=_with_settings(served.spec, service.spec),
        status=replace(service.status, members=members),
    )
    return Version(old, served.generation, digests)


def choose(new: Version, old: Version | None, measured: Collection[str]) -> Version:
    """The version to plan: the new one as soon as each of its models was measured somewhere."""
    if old is None or old.generation == new.generation:
        return new
    ready = new.is_complete and all(digest in measured for digest in new.digests.values())
    return new if ready else old


def _with_settings(running: ModelServiceSpec, wanted: ModelServiceSpec) -> ModelServiceSpec:
    """What runs, as far as no model depends on it as it is wanted now: neither scaling a service nor closing it to
    strangers waits for its next version, nor does not using what tuning found.
    """
    return replace(
        running,
        replicas=wanted.replicas,
        scaling=wanted.scaling,
        traffic=wanted.traffic,
        access=wanted.access,
        tuning=wanted.tuning,
    )
