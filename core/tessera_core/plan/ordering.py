"""Who goes first, who waits, and who steps aside where copies wait for each other in a circle.

Problem and approach: see ``steps.py``. The waits are of two kinds. A copy to launch waits for every copy that is
in its way, and a copy that is to go waits for all new copies of its member. All of them have to happen, so any
circle of waits is a deadlock that only a member of the circle can break, and following one wait of each leads
into a circle once nothing moves any more. That costs one look at each place on the way, so a knot of thousands
is undone in about linear time.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from tessera_core.gpu.geometry import Geometry
from tessera_core.plan.decision import Plan
from tessera_core.plan.demand import priority_of, priority_values
from tessera_core.plan.homes import Homes
from tessera_core.plan.nodes import Located, slice_name
from tessera_core.plan.script import Member, Script, member_of
from tessera_core.plan.site import Key, Site, Spot, key_of, slices_of, spot_of
from tessera_core.plan.state import ClusterState, Slice


class Loss(StrEnum):
    """What a service loses while a copy is away."""

    REDUCED = "Reduced"
    """Capacity: other copies of the member serve."""
    OUTAGE = "Outage"
    """The member: no copy of it serves."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """A copy that stops, or becomes smaller, before its successor serves: nothing else gets the plan done."""

    step: str
    """Id of the step that does it."""
    loss: Loss
    service: str
    member: str
    node: str
    device: str
    slice: Slice
    serving: int
    """Copies of the member that serve meanwhile."""
    expected: int
    """Copies that should: the smaller of the numbers before and after the plan."""
    makes_room_for: str
    """``service/member`` that waits for the place."""
    spare: str
    """A part that, were one free, could have been a temporary home: ``<product>/<slice>``."""

    def __str__(self) -> str:
        place = f"{slice_name(self.slice)} of {self.device} on {self.node}"
        return (
            f"{self.service}/{self.member} gives up {place} to {self.makes_room_for} before its successor "
            f"serves: {self.serving} of {self.expected} copies meanwhile; a free {self.spare} avoids that"
        )


@dataclass(frozen=True, slots=True)
class Change:
    """One device that does not stay as it is."""

    key: Key
    geometry: Geometry | None
    """As it shall be."""
    launched: tuple[Located, ...]
    """New copies, and present ones that get more instances or a larger cap."""
    reduced: tuple[tuple[Located, Located | None], ...]
    """Present copies, and what is left of them: None, or the same with fewer instances or a smaller cap."""


@dataclass(frozen=True, slots=True)
class _Wait:
    """One link of a circle: ``copy`` cannot start while ``blocker`` is there."""

    copy: Located
    blocker: Located


class Ordering:
    """A simulation on ``site``, which is changed."""

    def __init__(self, plan: Plan, state: ClusterState, site: Site, changes: list[Change]) -> None:
        self.script = Script(site)
        self.interruptions: list[Interruption] = []
        self._site = site
        self._homes = Homes(site, state)
        self._cuts = {c.key: c.geometry for c in changes if c.geometry != site.geometry(c.key)}
        for node in {node for node, _ in self._cuts if site.cut_as_a_whole(node)}:
            site.close(node)
        self._leaving: dict[Member, dict[Spot, tuple[Located, Located | None]]] = {}
        """Present copies that go or get smaller, and what is left of them."""
        for change in changes:
            for old, new in change.reduced:
                self._leaving.setdefault(member_of(old), {})[spot_of(old)] = old, new
        launched = sorted(copy for change in changes for copy in change.launched)
        self._moves = [
            copy for copy in launched if member_of(copy) in self._leaving or self._frees(copy)
        ]
        moves = set(self._moves)
        self._additions = [copy for copy in launched if copy not in moves]
        self._pending: dict[Member, dict[Spot, Located]] = {}
        """Copies to launch that the leaving ones of their member wait for."""
        for copy in self._moves:
            if member_of(copy) in self._leaving:
                self._pending.setdefault(member_of(copy), {})[spot_of(copy)] = copy
        self._waiting: dict[str, dict[Spot, Located]] = {}
        """Copies that start as soon as they can, by node."""
        self._claims: dict[Key, dict[Spot, Slice]] = {}
        """Places of all copies that are still to be launched, by device."""
        for copy in launched:
            self._claims.setdefault(key_of(copy), {})[spot_of(copy)] = copy.running.slice
        self._released = {member for member in self._leaving if member not in self._pending}
        """Members whose leaving copies may go, as all new ones serve."""
        members = {member_of(copy) for copy in launched} | self._leaving.keys()
        running = ((r.service, r.member) for d in site.devices.values() for r in d.running)
        self._serving = Counter(member for member in running if member in members)
        wanted = ((a.service, a.member) for d in plan.devices for a in d.assignments)
        after = Counter(member for member in wanted if member in members)
        self._floor = {member: min(self._serving[member], after[member]) for member in members}
        self._temporary: set[Spot] = set()
        values = priority_values(state)
        self._priority = {
            name: priority_of(service, values) for name, service in site.services.items()
        }
        self._optional = {
            (name, member.name)
            for name, service in site.services.items()
            for member in service.spec.placed
            if not member.required
        }

    def run(self) -> None:
        """Write all steps: the moves, then what only adds copies.

        Copies that only add can wait for the moves, whereas a move may need their place for a while.
        """
        self._advance({key[0] for key in self._cuts} | self._enqueue(self._moves))
        self._untangle()
        self._advance(self._enqueue(self._additions))
        self._untangle()
        assert not self._cuts, f"every device can be cut in the end, left: {sorted(self._cuts)}"

    def _enqueue(self, copies: list[Located]) -> set[str]:
        for copy in copies:
            self._waiting.setdefault(copy.node, {})[spot_of(copy)] = copy
        return {copy.node for copy in copies}

    def _advance(self, nodes: set[str]) -> None:
        """Start what can start and stop what may stop, beginning on ``nodes``, until nothing moves."""
        while nodes or self._released:
            changed: set[str] = set()
            for node in sorted(nodes):
                for copy in list(self._waiting.get(node, {}).values()):
                    if self._can_start(copy) and self._launch(copy):
                        changed.add(node)
            self.script.route()
            for member in sorted(self._released):
                for old, _ in list(self._leaving[member].values()):
                    self._stop(old)
                    changed.add(old.node)
            self._released.clear()
            for node in sorted(nodes | changed):
                for key in self._site.on_node[node]:
                    if key in self._cuts and not self._site.occupants(key, self._cuts[key]):
                        self._cut(key, self._cuts[key])
                        changed.add(node)
            nodes = changed

    def _can_start(self, copy: Located) -> bool:
        site = self._site
        return (
            site.exists(copy)
            and not site.crowd(copy)
            and not any(self._leaves(other) for other in site.tenants_apart_from(copy))
        )

    def _frees(self, copy: Located) -> bool:
        """Whether others may wait for ``copy``: it has a larger cap than what it replaces, but fewer instances."""
        old = self._site.held(key_of(copy)).get(spot_of(copy))
        return old is not None and copy.running.instances < old.running.instances

    def _leaves(self, copy: Located) -> bool:
        return spot_of(copy) in self._leaving.get(member_of(copy), {})

    def _launch(self, copy: Located) -> bool:
        """Start ``copy``; whether it replaced one, which may have freed memory.

        It counts as serving at once: routes are written before the next copy stops.
        """
        spot, member = spot_of(copy), member_of(copy)
        replaced = spot in self._site.held(key_of(copy))
        self.script.launch(copy)
        self._homes.update(key_of(copy))
        self._serving[member] += not replaced
        del self._waiting[copy.node][spot]
        del self._claims[key_of(copy)][spot]
        if member in self._pending:
            del self._pending[member][spot]
            if not self._pending[member]:
                del self._pending[member]
                self._released.add(member)
        return replaced

    def _stop(self, old: Located) -> str:
        _, new = self._leaving.get(member_of(old), {}).pop(spot_of(old), (old, None))
        step = self.script.stop(old, new)
        if new is None:
            self._serving[member_of(old)] -= 1
            self._homes.update(key_of(old))
        return step

    def _cut(self, key: Key, geometry: Geometry | None) -> None:
        self.script.cut(key, geometry)
        self._homes.update(key)
        if geometry == self._cuts[key]:
            del self._cuts[key]
            if not any(other in self._cuts for other in self._site.on_node[key[0]]):
                self._site.open(key[0])

    def _untangle(self) -> None:
        """Break circles until nobody waits, and only when none can be broken otherwise, by interruptions."""
        interrupt = False
        while waiting := [copy for copies in self._waiting.values() for copy in copies.values()]:
            hopeless: set[Spot] = set()
            moved = False
            for copy in waiting:
                while spot_of(copy) in self._waiting[copy.node]:
                    nodes = self._break_circle(copy, hopeless, interrupt)
                    if not nodes:
                        break
                    moved = True
                    self._advance(nodes)
            interrupt = not moved

    def _break_circle(self, copy: Located, hopeless: set[Spot], interrupt: bool) -> set[str]:
        """Follow the waits from ``copy`` and break the circle at their end; the nodes that it changed.

        ``hopeless``: copies known to wait for a circle that only an interruption breaks; it grows.
        """
        path: dict[Spot, _Wait] = {}
        while (spot := spot_of(copy)) not in path and spot not in hopeless:
            blocker = min(self._blockers(copy), key=self._cost)
            path[spot] = _Wait(copy, blocker)
            copy = (
                next(iter(self._pending[member_of(blocker)].values()))
                if self._leaves(blocker)
                else self._waiting[blocker.node][spot_of(blocker)]
            )
        if spot not in hopeless:
            circle = list(path.values())[list(path).index(spot) :]
            nodes = self._trade(circle) or self._cut_in_part(circle) or self._rehome(circle)
            if nodes or interrupt:
                return nodes or self._interrupt(circle)
        hopeless.update(path)
        return set()

    def _blockers(self, copy: Located) -> list[Located]:
        """The present copies that have to go, or to become smaller, before ``copy`` can start."""
        site, key = self._site, key_of(copy)
        if not site.exists(copy):
            return site.occupants(key, self._cuts.get(key))
        there = [*site.crowd(copy), *site.tenants_apart_from(copy)]
        if found := [other for other in there if self._leaves(other)]:
            return found
        # Measured anew, what runs now may take more than there is. Then a copy that only gets other
        # settings has to be loaded anew: one of the neighbours, or this one.
        loaded = [other for other in there if spot_of(other) in self._waiting.get(other.node, {})]
        return loaded or [site.held(key)[spot_of(copy)]]

    def _cost(self, copy: Located) -> tuple[bool, bool, bool, int, int, Spot]:
        """What it costs to stop ``copy`` now; of equals, that of the member with the most others is least."""
        member = member_of(copy)
        left = self._left_without(copy)
        return (
            left == 0 and member not in self._optional,
            left == 0,
            left < self._floor[member],
            self._priority.get(copy.running.service, 0),
            -left,
            spot_of(copy),
        )

    def _left_without(self, copy: Located) -> int:
        """Copies of the member that serve once ``copy`` has gone, or has become smaller."""
        _, rest = self._leaving.get(member_of(copy), {}).get(spot_of(copy), (copy, None))
        return self._serving[member_of(copy)] - (rest is None)

    def _trade(self, circle: list[_Wait]) -> set[str]:
        """Give up an old copy of a member of which enough others serve."""
        for wait in circle:
            member = member_of(wait.blocker)
            if self._leaves(wait.blocker) and self._serving[member] > self._floor[member]:
                self._stop(wait.blocker)
                return {wait.blocker.node}
        return set()

    def _cut_in_part(self, circle: list[_Wait]) -> set[str]:
        """Cut a wanted slice beside those that are still occupied."""
        for wait in circle:
            key = key_of(wait.copy)
            if not self._site.exists(wait.copy) and key in self._cuts:
                geometry = self._site.partial_cut(key, self._cuts[key], wait.copy.running.slice)
                if geometry is not None:
                    self._cut(key, geometry)
                    return {key[0]}
        return set()

    def _rehome(self, circle: list[_Wait]) -> set[str]:
        """Let a copy that has to go serve elsewhere for a while; each is moved so at most once."""
        for wait in sorted(circle, key=lambda each: self._cost(each.blocker)):
            blocker, spot, member = wait.blocker, spot_of(wait.blocker), member_of(wait.blocker)
            going, rest = self._leaving.get(member, {}).get(spot, (None, None))
            if going is None or rest is not None or spot in self._temporary:
                continue
            helps = partial(self._helps, wait)
            home = self._homes.find(blocker, self._taken_by_all, helps) or self._homes.find(
                blocker, self._taken_by_moves, helps
            )
            if home is not None:
                self.script.launch(home)
                self.script.route()
                self._homes.update(key_of(home))
                self._serving[member] += 1
                self._leaving[member][spot_of(home)] = home, None
                self._temporary.add(spot_of(home))
                self._stop(blocker)
                return {blocker.node}
        return set()

    def _helps(self, wait: _Wait, home: Located) -> bool:
        """Whether the blocker at ``home`` is no longer in the way, nor in that of others who wait."""
        site, key = self._site, key_of(wait.copy)
        waiting = self._waiting.get(home.node, {}).values()
        if site.guarded(home.node) and any(site.strangers(home, each) for each in waiting):
            return False
        if key_of(home) != key:
            return True
        held = [each for each in site.held(key).values() if each != wait.blocker]
        return home not in site.crowd(wait.copy, [*held, home])

    def _taken_by_all(self, key: Key) -> tuple[Slice, ...]:
        return (*self._claims.get(key, {}).values(), *self._doomed(key))

    def _taken_by_moves(self, key: Key) -> tuple[Slice, ...]:
        waiting = self._waiting.get(key[0], {})
        claimed = self._claims.get(key, {}).items()
        return (*(piece for spot, piece in claimed if spot in waiting), *self._doomed(key))

    def _doomed(self, key: Key) -> tuple[Slice, ...]:
        """Slices that a cut to come destroys."""
        if key not in self._cuts:
            return ()
        staying = slices_of(self._cuts[key])
        return tuple(piece for piece in self._site.parts(key) if piece not in staying)

    def _interrupt(self, circle: list[_Wait]) -> set[str]:
        """Stop the copy that can best be spared, before its successor serves."""
        wait = min(circle, key=lambda each: self._cost(each.blocker))
        copy, running, member = wait.blocker, wait.blocker.running, member_of(wait.blocker)
        left = self._left_without(copy)
        kind = running.slice.name
        device = self._site.devices[key_of(copy)]
        self.interruptions.append(
            Interruption(
                step=self._stop(copy),
                loss=Loss.REDUCED if left else Loss.OUTAGE,
                service=running.service,
                member=running.member,
                node=copy.node,
                device=copy.device,
                slice=running.slice,
                serving=left,
                expected=self._floor[member],
                makes_room_for="/".join(member_of(wait.copy)),
                spare=kind if device.is_cpu else f"{device.product}/{kind}",
            )
        )
        return {copy.node}
