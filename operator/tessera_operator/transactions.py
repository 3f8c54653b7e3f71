"""The cuts of a plan under way: which may begin, which have ended, and which have failed. Pure.

A cut has begun when what is in its way may go. From then on it ends in one of two ways: the GPU is as wanted, or it is
given up, and then the next plan gives the GPU back what it had.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tessera_core.api import RuntimeNode
from tessera_core.api.placementplan import Action, Recut, Step, Target
from tessera_core.api.runtimenode import CutProblem, CutStatus
from tessera_core.api.runtimepool import Partition, PartitionBackend
from tessera_core.gpu.geometry import canonical
from tessera_operator.cuts import Key, cuts_of
from tessera_operator.instants import to_text
from tessera_operator.mig_manager import MANAGER_S
from tessera_operator.recutting import Rules, Waiting, Waits

CUT_S = 600.0
"""In which a cut is done once nobody is in its way: seconds on a GPU, minutes where the partitioner has to come first."""
_PATIENCE_S = {PartitionBackend.MIG_MANAGER: MANAGER_S}
"""Of other backends than NVML."""
_LASTING = {
    *(CutProblem.NOT_PARTITIONABLE, CutProblem.RESET_REQUIRED, CutProblem.NOT_PERMITTED),
    *(CutProblem.MANAGER_FAILED, CutProblem.CHANGED_BY_HAND),
}
"""Trying again does not help."""


Deed = tuple[Action, Target]


@dataclass(frozen=True, slots=True)
class Failure:
    """A cut that is to be given up."""

    key: Key
    reason: str
    """CamelCase."""
    message: str


def deed_of(step: Step) -> Deed:
    """What ``step`` does, whatever it is called."""
    return step.action, step.target


def key_of(step: Step) -> Key:
    """The GPU that ``step`` is about."""
    return step.target.node or "", step.target.device or ""


def release(
    steps: Sequence[Step], done: Collection[str], released: Collection[str], rules: Rules
) -> tuple[frozenset[str], tuple[Waiting, ...]]:
    """Ids of the cuts that may begin or have begun, and what the others wait for.

    One is looked at when nothing is left to do before it but to unload what is in its way: until then it would only keep
    the place of one that could go ahead, and be held to what may turn out otherwise.
    """
    goals = cuts_of(steps)
    later, ready = set[str](), list[Step]()
    for step in steps:
        if not later.isdisjoint(step.requires):
            later.add(step.id)
        elif step.id not in done and step.action is not Action.UNLOAD:
            later.add(step.id)
            if step.action is Action.PARTITION:
                ready.append(step)
    busy: dict[str, set[str]] = {}
    for step in ready:
        if step.id in released:
            busy.setdefault(_pool(step, rules), set()).add(key_of(step)[0])
    found, waiting = set(released), list[Waiting]()
    for step in ready:
        key = key_of(step)
        if step.id in found:
            continue
        nodes = busy.setdefault(_pool(step, rules), set())
        why = rules.waiting(key, goals[key])
        if why is None and key not in rules.pins and key[0] not in nodes:
            why = _budget(key[0], nodes, rules)
        if why is None:
            found.add(step.id)
            nodes.add(key[0])
        else:
            waiting.append(why)
    return frozenset(found), tuple(waiting)


def _pool(step: Step, rules: Rules) -> str:
    return rules.pools.get(key_of(step)[0], "")


def _budget(node: str, busy: Collection[str], rules: Rules) -> Waiting | None:
    most = rules.partitions.get(node, Partition()).disruption.max_nodes
    if len(busy) < most:
        return None
    return Waiting(Waits.BUDGET, node, None, f"{', '.join(sorted(busy))} first")


def under_way(
    steps: Sequence[Step],
    done: Collection[str],
    released: Collection[str],
    before: Sequence[Recut],
    nodes: Collection[str],
    rules: Rules,
) -> tuple[Recut, ...]:
    """``before`` with the cuts that have begun since, and those that have ended. ``nodes``: those that are heard of."""
    now = to_text(rules.now)
    known = {(each.node, each.device): each for each in before}
    left: set[Key] = set()
    for step in steps:
        if step.action is not Action.PARTITION:
            continue
        key = key_of(step)
        if step.id not in done or key[0] not in nodes:
            left.add(key)
        last = known.get(key)
        is_new = last is None or last.ended_at is not None
        if step.id in released and step.id not in done and is_new:
            pin = rules.pins.get(key)
            started = pin.started_at if pin is not None else None
            failures = rules.failures.get(key, 0)
            known[key] = Recut(key[1], key[0], started or now, failures=failures)
    return tuple(
        replace(each, ended_at=now) if each.ended_at is None and key not in left else each
        for key, each in known.items()
    )


def failures(
    steps: Sequence[Step],
    done: Collection[str],
    released: Collection[str],
    since: Mapping[Deed, float],
    nodes: Mapping[str, RuntimeNode],
    rules: Rules,
    now_s: float,
) -> tuple[Failure, ...]:
    """Cuts to give up. ``since``: when what is under way began."""
    by_id = {step.id: step for step in steps}
    found: dict[Key, Failure] = {}
    for step in steps:
        if step.action is Action.PARTITION and step.id in released and step.id not in done:
            for each in _needed(step, by_id, done):
                began_s = since.get(deed_of(each))
                if began_s is None or key_of(step) in found:
                    continue
                failure = _failure(step, each, now_s - began_s, nodes, rules)
                if failure is not None:
                    found[key_of(step)] = failure
    return tuple(found.values())


def _needed(step: Step, by_id: Mapping[str, Step], done: Collection[str]) -> Iterator[Step]:
    """``step`` and all that it requires and that is not done."""
    seen, left = {step.id}, [step]
    while left:
        one = left.pop()
        yield one
        for each in one.requires:
            if each not in seen and each not in done:
                seen.add(each)
                left.append(by_id[each])


def _failure(
    cut: Step, step: Step, age_s: float, nodes: Mapping[str, RuntimeNode], rules: Rules
) -> Failure | None:
    """Whether ``step``, under way for ``age_s``, ends the hope for ``cut``."""
    key = key_of(cut)
    if step.action is not Action.PARTITION:
        limit_s = rules.partitions.get(key[0], Partition()).disruption.drain_timeout_s
        if age_s < limit_s:
            return None
        message = f"{step.id} was not done within {limit_s:g} s, and the cut waits for it"
        return Failure(key, "DrainTimedOut", message)
    said = _said(cut, nodes.get(key[0]))
    if said is not None and said.problem in _LASTING:
        return Failure(key, said.problem.value, said.message)
    limit_s = _PATIENCE_S.get(rules.partitions.get(key[0], Partition()).backend, CUT_S)
    if age_s < limit_s:
        return None
    if said is not None and said.problem is not None:
        return Failure(key, said.problem.value, said.message)
    withheld = _withheld(cut, nodes.get(key[0])) if said is not None else ""
    if withheld:
        return Failure(key, "NotOffered", withheld)
    return Failure(key, "NoAnswer", f"the node's partitioner has not cut it within {limit_s:g} s")


def _withheld(cut: Step, node: RuntimeNode | None) -> str:
    """Why the node's agent offers nothing, or not all, of what the GPU is cut into; empty where it says nothing."""
    devices = node.status.devices if node is not None else ()
    return next((each.problem for each in devices if each.uuid == cut.target.device), "")


def _said(cut: Step, node: RuntimeNode | None) -> CutStatus | None:
    """What the partitioner says of ``cut``; None also where the node was not told yet, and it says something of an order
    before: of the cut that this one undoes, say.
    """
    goal = canonical(cut.target.geometry)
    if node is None or not any(
        told.cut and told.uuid == cut.target.device and canonical(told.geometry) == goal
        for told in node.spec.devices
    ):
        return None
    return next(
        (
            each
            for each in node.status.cuts
            if each.uuid == cut.target.device and each.generation == node.metadata.generation
        ),
        None,
    )
