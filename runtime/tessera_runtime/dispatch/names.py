"""What a request means by the names in it: a service, one of its versions, a member of one. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from tessera_runtime.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from tessera_runtime.dataplane import MemberCall
    from tessera_runtime.dispatch.member_calls import MemberCalls
    from tessera_runtime.dispatch.service import Service


def meant(name: str, host: str, served: Collection[str], *, plain_names: bool) -> str:
    """The served name ``<namespace>.<name>`` for a client that said ``name`` to ``host``; ``name`` where it is none.

    ``plain_names``: whether ``digits`` may be said for ``vision.digits`` wherever it is unambiguous.
    """
    if name in served:
        return name
    # Host as Kubernetes writes it: <service>.<namespace>[.svc…]; it only completes a plain name.
    labels = host.partition(":")[0].split(".")
    if len(labels) > 1 and labels[0] == name and f"{labels[1]}.{name}" in served:
        return f"{labels[1]}.{name}"
    if plain_names and "." not in name:
        found = [each for each in served if each.partition(".")[2] == name]
        if len(found) == 1:
            return found[0]
    return name


def named_version(serving: Mapping[str, Service], model: str, version: str) -> Service:
    """The one that serves ``model``. Raises NotFound for none, and for another ``version`` than a client asked for."""
    service = serving.get(model)
    if service is None:
        raise NotFound(f"no model {model!r}; served are {sorted(serving)}")
    if version and version != service.version:
        raise NotFound(f"model {model} has no version {version!r}; served is {service.version!r}")
    return service


def named_member(versions: Iterable[Service], model: str, part: MemberCall) -> MemberCalls:
    """Of whichever of ``versions`` of ``model`` has the member that a peer means, with an instance where there is one:
    versions change at one server after another, so several may be asked for. Raises Unavailable for none.
    """
    found: MemberCalls | None = None
    for service in versions:
        for member, target, calls in zip(
            service.members, service.target.members, service.calls, strict=True
        ):
            if member.name == part.member and (
                not part.digest or target.digest in ("", part.digest)
            ):
                if member.lanes:
                    return calls
                found = found or calls
    if found is None:
        raise Unavailable(f"model {model}, member {part.member}: not served here")
    return found
