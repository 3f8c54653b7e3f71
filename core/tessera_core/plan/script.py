"""Steps as they are written down, each with the earlier ones that it relies on.

What has to come before what follows from the place: a launch relies on every earlier step that freed something
in its room or that took away a tenant which it may not meet, and on the cut that made its slice, or on all cuts of
a node that was cut as a whole; a route on its launches and on the service's route before; a stop on the member's
last route; a cut on everyone who left.

Why any order that respects these is as good as the written one: let M be the last written of the launches done
so far in a room. All frees that were written before M are done, so what the room holds is a part of what it
holds at M in the written order, and that was legal. The same goes for a member's stops and routes.
"""

from __future__ import annotations

from collections.abc import Iterable

from tessera_core.api.placementplan import Action, Step, Target
from tessera_core.gpu.geometry import Geometry
from tessera_core.plan.nodes import Located, slice_name
from tessera_core.plan.site import Key, Room, Site, Spot, key_of, slices_of, spot_of
from tessera_core.plan.state import Slice

Member = tuple[str, str]
"""(service, member)."""
_MOST_REQUIRED = 256
"""What the API lets a step require."""


def member_of(copy: Located) -> Member:
    """Whose copy it is."""
    return copy.running.service, copy.running.member


class Script:
    """Writes steps and changes ``site`` accordingly. That they are legal is up to the caller."""

    def __init__(self, site: Site) -> None:
        self.steps: list[Step] = []
        self._site = site
        self._requires: dict[str, frozenset[str]] = {}
        self._unrouted: dict[str, list[tuple[Located, str]]] = {}
        self._service_route: dict[str, str] = {}
        self._member_route: dict[Member, str] = {}
        self._freed: dict[Room, list[str]] = {}
        """Frees in a room that no later one implies."""
        self._relied: dict[Spot, list[str]] = {}
        """Frees in its room that the launch of a copy relied on."""
        self._left: dict[str, list[tuple[Located, str]]] = {}
        """Everything that was freed, by node."""
        self._cut: dict[Key, str] = {}
        self._made: dict[tuple[Key, Slice], str] = {}
        self._cuts_of_whole: dict[str, list[str]] = {}
        """Cuts that took a whole node, by node."""

    def launch(self, copy: Located) -> None:
        """Start a copy, or give a present one more."""
        spot, room, site = spot_of(copy), self._site.room_of(copy), self._site
        freed = self._freed.get(room, [])
        self._relied[spot] = list(freed)
        left = self._left.get(copy.node, ()) if site.guarded(copy.node) else ()
        apart = (step for tenant, step in left if site.strangers(tenant, copy))
        made = self._made.get((key_of(copy), copy.running.slice))
        target = _target(copy, copy.running.batch)
        whole = self._cuts_of_whole.get(copy.node, ())
        step = self._write(Action.LAUNCH, target, (*freed, *apart, made, *whole))
        old = site.held(key_of(copy)).get(spot)
        if old is not None and site.mib(old) > site.mib(copy):
            self._freed.setdefault(room, []).append(step)
        site.put(copy)
        self._unrouted.setdefault(copy.running.service, []).append((copy, step))

    def route(self) -> None:
        """Send requests to everything launched since the last call."""
        for service, launched in sorted(self._unrouted.items()):
            requires = (self._service_route.get(service), *(step for _, step in launched))
            route = self._write(Action.ROUTE, Target(service=service), requires)
            self._service_route[service] = route
            self._member_route.update((member_of(copy), route) for copy, _ in launched)
        self._unrouted.clear()

    def stop(self, old: Located, new: Located | None) -> str:
        """Unload a copy (``new`` is None) or leave it less; the step's id."""
        requires = (self._member_route.get(member_of(old)),)
        if new is None:
            step = self._write(Action.UNLOAD, _target(old, None), requires)
            self._site.take(old)
        else:
            step = self._write(Action.LAUNCH, _target(new, new.running.batch), requires)
            self._site.put(new)
        self._left.setdefault(old.node, []).append((old, step))
        room = self._site.room_of(old)
        # It comes after its own launch, so it implies all that the launch relied on.
        implied = set(self._relied.get(spot_of(old), ()))
        others = [each for each in self._freed.get(room, ()) if each not in implied]
        self._freed[room] = [*others, step]
        return step

    def cut(self, key: Key, geometry: Geometry | None) -> None:
        """Give a GPU another geometry."""
        before = self._site.parts(key)
        freed = [step for piece in before for step in self._freed.get((key, piece), ())]
        whole = self._site.is_closed(key[0])
        if whole:
            freed = [step for _, step in self._left.get(key[0], ())]
        target = Target(node=key[0], device=key[1], geometry=geometry or ())
        step = self._write(Action.PARTITION, target, (self._cut.get(key), *freed))
        self._cut[key] = step
        if whole:
            self._cuts_of_whole.setdefault(key[0], []).append(step)
        for piece in slices_of(geometry):
            if piece not in before:
                self._made[key, piece] = step
        self._site.recut(key, geometry)

    def _write(self, action: Action, target: Target, requires: Iterable[str | None]) -> str:
        wanted = {step for step in requires if step is not None}
        implied = frozenset[str]().union(*(self._requires[step] for step in wanted))
        ordered = sorted(wanted - implied, key=lambda step: int(step.rpartition("-")[2]))
        while len(ordered) > _MOST_REQUIRED:
            # Routing what is ready does no harm, so a route can stand for a part of the requirements.
            some, rest = ordered[:_MOST_REQUIRED], ordered[_MOST_REQUIRED:]
            ordered = [*rest, self._write(Action.ROUTE, Target(service=target.service), some)]
        identity = f"{action.lower()}-{len(self.steps) + 1}"
        self._requires[identity] = frozenset(ordered)
        self.steps.append(Step(identity, action, target, tuple(ordered)))
        return identity


def _target(copy: Located, batch: int | None) -> Target:
    running = copy.running
    return Target(
        node=copy.node,
        device=copy.device,
        slice=slice_name(running.slice),
        service=running.service,
        member=running.member,
        batch=batch,
        count=running.instances,
    )
