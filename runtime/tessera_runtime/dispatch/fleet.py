"""The instances of one service: which are wanted, which are leaving, and which share a process to run as one.

Create before destroy: an instance that is not wanted any more serves until the wanted ones of its member are warm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from tessera_runtime.dispatch.gang_instance import join_members
from tessera_runtime.dispatch.instances import Instance, Timeouts
from tessera_runtime.dispatch.service import Service
from tessera_runtime.dispatch.workers import Worker
from tessera_runtime.target import DeviceTarget, placed_alike

log = logging.getLogger(__name__)

InstanceKey = tuple[int, str, int]
"""Member index, device, ordinal."""

Spot = tuple[DeviceTarget, str]
"""A device, and the variant of the model that runs there."""

Start = Callable[[Service, int, DeviceTarget, str, str | None], Instance]
"""Start an instance of a member, by index, on a device, of a variant, for a company if it has one."""


class Fleet:
    """Made with the service, and as long as it serves."""

    def __init__(
        self,
        service: Service,
        number: int,
        start: Start,
        timeouts: Timeouts,
        run: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """``number``: of no other fleet, ever. ``run``: see to it that something is done, without waiting for it."""
        self.wanted: dict[InstanceKey, Instance] = {}
        self._leaving: list[tuple[InstanceKey, Instance]] = []
        self._service = service
        self._number = number
        self._start = start
        self._timeouts = timeouts
        self._run = run
        self._alike = False
        self._due: dict[InstanceKey, Spot] = {}
        """Instances that are to run another variant where they are, once it is their turn."""

    def __iter__(self) -> Iterator[tuple[InstanceKey, Instance]]:
        """All that there are."""
        yield from self.wanted.items()
        yield from self._leaving

    @property
    def warm(self) -> bool:
        """Whether all that are wanted take work."""
        return all(instance.ready for instance in self.wanted.values())

    def scale(self, devices: Mapping[str, DeviceTarget], loaded: bool) -> None:
        """Start and stop instances until they are those of the service's target, or none unless ``loaded``."""
        target = self._service.target
        self._alike = placed_alike(target, devices)
        keys: dict[InstanceKey, Spot] = {}
        if loaded:
            for index, member in enumerate(target.members):
                for place in member.instances:
                    for ordinal in range(place.count):
                        keys[index, place.device, ordinal] = devices[place.device], place.variant
        self._due.clear()
        for key, spot in keys.items():
            present = self.wanted.get(key)
            if present is not None and present.spot == spot:
                continue
            if present is not None and present.device == spot[0] and not self._alike:
                self._due[key] = spot
                continue
            if present is not None:  # what has this id now is another device, or runs another way
                self._leave(key)
            self._enter(key, spot)
        for key in [key for key in self.wanted if key not in keys]:
            self._leave(key)
        if not self._alike:
            for instance in self.wanted.values():
                if instance.gang is not None:
                    instance.gang.leave()
        self.settle()

    def settle(self) -> None:
        """Let members run as one where they can, and end the instances whose members have all the wanted ones warm."""
        if self._alike:
            join_members(self._service, list(self.wanted.values()), self._timeouts)
        self._swap()
        waited_for = {key[0] for key, instance in self.wanted.items() if not instance.ready}
        leaving, self._leaving = self._leaving, []
        for key, instance in leaving:
            if key[0] in waited_for:
                self._leaving.append((key, instance))
            else:
                self._run(instance.stop(drain=True))
        self._swap()

    def replace(self, worker: Worker) -> None:
        """Start others in the place of the instances in a process; they serve until those are warm.

        One whose replacement would be the second at a time is left out.
        """
        for key, instance in list(self.wanted.items()):
            if instance.worker is worker and all(key != other for other, _ in self._leaving):
                member = self._service.members[key[0]]
                member.statistics.restarts += 1
                number = worker.incarnation
                log.warning("%s/%s: leaves worker %d", self._service.name, member.name, number)
                self._leave(key)
                self._begin(key, instance.spot)

    def disband(self) -> list[Instance]:
        """All that there are, for the caller to stop."""
        instances = [instance for _, instance in self]
        self.wanted.clear()
        self._leaving.clear()
        self._due.clear()
        return instances

    def _swap(self) -> None:
        """Have instances run another variant, of each member one at a time on a device: that is all the memory that it takes
        beside what serves. One whose variant before is still there has that back at once.
        """
        for key, spot in list(self._due.items()):
            others = [(of, instance) for of, instance in self._leaving if of[:2] == key[:2]]
            returns = any(of == key and _may_return(instance, spot) for of, instance in others)
            if others and not returns:
                continue
            del self._due[key]
            self._leave(key)
            self._enter(key, spot)

    def _enter(self, key: InstanceKey, spot: Spot) -> None:
        """Want an instance: the one that was leaving, where there is one on this very device and run alike."""
        for index, (of, instance) in enumerate(self._leaving):
            if of == key and _may_return(instance, spot):
                del self._leaving[index]
                self.wanted[key] = instance
                return
        self._begin(key, spot)

    def _leave(self, key: InstanceKey) -> None:
        instance = self.wanted.pop(key)
        self._leaving.append((key, instance))
        member, lane = self._service.members[key[0]], instance.lane
        if instance.is_faulty and lane is not None and len(member.lanes) > 1:
            member.detach(lane)  # the others are better than it is

    def _begin(self, key: InstanceKey, spot: Spot) -> None:
        index, _, ordinal = key
        # Of this very version: the next one's members are not to join a process of it.
        company = f"{self._service.name} {self._number} {ordinal}" if self._alike else None
        self.wanted[key] = self._start(self._service, index, *spot, company)


def _may_return(instance: Instance, spot: Spot) -> bool:
    """Whether an instance that leaves is what is wanted; one that is faulty takes no batches any more."""
    return instance.spot == spot and not instance.is_faulty
