"""Which profiles no longer say what batches take: from what nodes report, over time. Time is an argument.

Nodes correct what they do within a second or so, by what batches take there over the lines that they were told. A
correction that lasts is more than a disturbance: what is placed is too little, so it is recorded in the ModelProfile, and
plans count with it. What is recorded changes a plan, so it has to stay where it is while nothing changes: a ratio is
recorded when it was off for some time, changed when it was far from the record for as long, and ended when batches took
about what was measured for as long. Of such a time the median counts, and time counts only where requests were answered:
what a node said before it had nothing to do says nothing of now.

The record is the ModelProfile's: an operator that was restarted goes on from there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from tessera_core.api import ModelProfile, RuntimeNode
from tessera_core.api.runtimenode import ServedService, ServedStatus
from tessera_core.control.joint import MOST_ERROR
from tessera_core.gpu.mig import label
from tessera_operator.remembered import Place, place_of
from tessera_operator.variants import NO_USES, Use, Uses

DRIFTED = 1.15
"""Times as long, or as short, from where on it is recorded. Plans have a fifth to spare and count 8 % for busy neighbours
already: less is not worth moving anything."""
CHANGED = 1.1
"""Times the record, or that part of it, from where on another one is recorded; and 1, within which it is ended. Less than
``DRIFTED``, so that a ratio about there does not come and go."""
FRESH_S = 75.0
"""For which a report counts: agents report every 30 s while requests are answered, and one may be late."""
_MOST_REPORTS = 256
"""That a median is taken of."""

_Measured = tuple[Place, str]
"""A model on a kind of device, and its variant."""
ProfileKey = tuple[str, str]
"""(namespace, name) of a ModelProfile."""


class Way(Enum):
    """Where a ratio is, seen from the record."""

    UP = "longer than recorded"
    DOWN = "less than recorded"
    BACK = "about as measured"


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be recorded."""

    profile: ModelProfile
    ratio: float | None
    """None: batches take about what was measured."""
    nodes: int
    """That report it."""


@dataclass(slots=True)
class _Lasting:
    """How it has been without a break."""

    way: Way
    recorded: float | None
    since_s: float
    until_s: float = float("-inf")
    """When the latest report came."""
    ratios: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_REPORTS))

    def take(self, ratio: float, at_s: float) -> None:
        """Count a report once, however often it is looked at."""
        if at_s > self.until_s:
            self.until_s = at_s
            self.ratios.append(ratio)


@dataclass(slots=True)
class _Seen:
    """What nodes say of one place."""

    ratios: list[float] = field(default_factory=list)
    """One of each node."""
    at_s: float = float("-inf")
    """When the latest of them was reported."""


def way_of(ratio: float, recorded: float | None) -> Way | None:
    """Where ``ratio`` is if something else is to be recorded once that lasts; None: nothing is."""
    if recorded is None:
        bound, recorded = DRIFTED, 1.0
    elif _apart(ratio, 1.0) <= CHANGED:
        return Way.BACK
    else:
        bound = CHANGED
    if _apart(ratio, recorded) <= bound:
        return None
    return Way.UP if ratio > recorded else Way.DOWN


class Drifts:
    """Reports and since when they are as they are. Not thread-safe."""

    def __init__(self, lasting_s: float) -> None:
        """``lasting_s``: for how long a ratio has to be off, or about 1 again, by the times of reports."""
        self._lasting_s = lasting_s
        self._answered: dict[tuple[str, str], tuple[int, float]] = {}
        """By (node, service): requests counted, and when they were seen to have become more, which tells of a report."""
        self._lasting: dict[ProfileKey, _Lasting] = {}

    def note(
        self,
        profiles: Iterable[ModelProfile],
        nodes: Iterable[RuntimeNode],
        now_s: float,
        uses: Uses = NO_USES,
    ) -> tuple[Change, ...]:
        """What is to be recorded now. ``nodes``: those whose agents answer. ``uses``: variants that are in force, of whose
        batches nodes were told how long they take.
        """
        seen = self._seen(nodes, now_s, uses)
        lasting: dict[ProfileKey, _Lasting] = {}
        changes: list[Change] = []
        for profile in profiles:
            found = seen.get((place_of(profile), profile.spec.variant))
            if found is None:
                continue
            ratio = min(max(median(found.ratios), 1 / MOST_ERROR), MOST_ERROR)
            drift = profile.status.drift
            recorded = drift.ratio if drift is not None else None
            way = way_of(ratio, recorded)
            if way is None:
                continue
            key = profile.metadata.namespace, profile.metadata.name
            known = self._lasting.get(key)
            if known is None or (known.way, known.recorded) != (way, recorded):
                known = _Lasting(way, recorded, found.at_s)
            known.take(ratio, found.at_s)
            lasting[key] = known
            if known.until_s - known.since_s >= self._lasting_s:
                middle = None if way is Way.BACK else float(f"{median(known.ratios):.3g}")
                changes.append(Change(profile, middle, len(found.ratios)))
        self._lasting = lasting
        return tuple(changes)

    def written(self, change: Change) -> None:
        """``change`` was recorded: what the profile said before no longer counts."""
        metadata = change.profile.metadata
        self._lasting.pop((metadata.namespace, metadata.name), None)

    def _seen(
        self, nodes: Iterable[RuntimeNode], now_s: float, uses: Uses
    ) -> dict[_Measured, _Seen]:
        """What ``nodes`` say, as far as it is of now."""
        answered: dict[tuple[str, str], tuple[int, float]] = {}
        found: dict[_Measured, _Seen] = {}
        for node in nodes:
            here: dict[_Measured, _Seen] = {}
            runs = _variants(node)
            told = {served.name: served for served in node.spec.services}
            for each in node.status.services:
                key = node.metadata.name, each.name
                total, at_s = self._answered.get(key, (each.total, float("-inf")))
                if each.total != total:
                    at_s = now_s
                answered[key] = each.total, at_s
                if now_s - at_s > FRESH_S:
                    continue
                for use, ratio in _reported(told.get(each.name), each):
                    variant = uses.get(use, "")
                    if runs.get((use.service, use.member, use.place), {variant}) != {variant}:
                        continue  # what it says is over what was told of another variant
                    place = (use.digest, *use.place), variant
                    seen = here.setdefault(place, _Seen())
                    seen.ratios.append(ratio)
                    seen.at_s = max(seen.at_s, at_s)
            for place, seen in here.items():
                whole = found.setdefault(place, _Seen())
                whole.ratios.append(median(seen.ratios))
                whole.at_s = max(whole.at_s, seen.at_s)
        self._answered = answered
        return found


def _variants(node: RuntimeNode) -> dict[tuple[str, str, tuple[str, str]], set[str]]:
    """By (service, member, place): what is told to run there, and what does."""
    products = {device.uuid: label(device.product) for device in node.status.devices}
    found: dict[tuple[str, str, tuple[str, str]], set[str]] = {}
    told = [(device.uuid, each) for device in node.spec.devices for each in device.instances]
    runs = [(device.uuid, each) for device in node.status.devices for each in device.instances]
    for uuid, each in (*told, *runs):
        place = products.get(uuid, ""), each.slice.partition("@")[0]
        found.setdefault((each.service, each.member, place), set()).add(each.variant)
    return found


def _reported(told: ServedService | None, status: ServedStatus) -> Iterator[tuple[Use, float]]:
    """What a node says of one service, if it is of the version that it was told."""
    if told is None or told.generation != status.generation:
        return
    digests = {member.name: member.digest for member in told.members}
    for each in status.corrections:
        digest = digests.get(each.member)
        if digest is not None and each.ratio > 0:
            place = label(each.product), each.slice
            yield Use(told.name, each.member, digest, place), each.ratio


def _apart(one: float, other: float) -> float:
    """How many times the smaller one goes into the larger one."""
    return max(one / other, other / one)
