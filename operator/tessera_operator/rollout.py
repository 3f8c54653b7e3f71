"""The plan under way: which one it is, how far it is, and what it has nodes do now.

A plan is written down as a PlacementPlan before anything of it is done. When facts change, the next one starts from
what runs by then, and the one before is superseded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from tessera_core.api import RuntimeNode
from tessera_core.api.placementplan import Action, PlacementPlanSpec, Recut, Step, Target
from tessera_core.api.runtimenode import InstanceState
from tessera_core.gpu.geometry import canonical
from tessera_core.plan.decision import Plan
from tessera_core.plan.nodes import Located, slice_name
from tessera_core.plan.state import ClusterState, DeviceState, Running
from tessera_core.plan.state_in import parse_slice
from tessera_core.plan.steps import Steps, steps_to
from tessera_operator.cuts import cuts_of
from tessera_operator.decide import Decision
from tessera_operator.orders import Present, advance, held_back
from tessera_operator.plans import to_spec
from tessera_operator.quarantine import leave
from tessera_operator.recutting import Rules, Waiting
from tessera_operator.transactions import Deed, deed_of, release, under_way


@dataclass(frozen=True, slots=True)
class Rollout:
    """One plan on its way."""

    spec: PlacementPlanSpec
    name: str
    done: frozenset[str] = frozenset()
    begun: tuple[Step, ...] = ()
    """Done or under way, in order."""
    since: Mapping[Deed, float] = field(default_factory=dict)
    """By what is under way: since when it is, monotonic, also as a step of the plan before."""
    released: frozenset[str] = frozenset()
    """Ids of cuts that have begun: what is in their way may go."""
    cuts: tuple[Recut, ...] = ()
    """What is recorded of them."""
    waiting: tuple[Waiting, ...] = ()
    """Why the others have not begun."""

    @property
    def is_done(self) -> bool:
        return len(self.done) == len(self.spec.steps)


def begin(
    decision: Decision,
    epoch: int,
    nodes: Iterable[RuntimeNode],
    rules: Rules,
    plan: Plan | None = None,
) -> Rollout | None:
    """The rollout of a new decision, or of another ``plan`` for the same facts; None where everything is as decided.
    Raises ValueError where the plan is not for the facts.
    """
    nodes, proposed = tuple(nodes), plan is not None
    plan = plan or decision.plan
    emptied = _emptied(plan, decision.state)
    state, rest = _as_served(plan, decision.state, nodes, emptied)
    steps = _after(rest, steps_to(plan, state), emptied)
    steps = leave(steps, plan, decision.state, nodes)
    if not steps.steps:
        return None
    steps = replace(steps, steps=tuple(_with_before(steps.steps, state, rules)))
    spec = to_spec(plan, steps, state, epoch, decision.scouting.models())
    asked = any(rules.needs_approval(*cut) for cut in cuts_of(spec.steps).items())
    spec = replace(spec, approved=not asked)
    goals = cuts_of(spec.steps)
    # It goes on with the transaction that there is; cuts that it can do nothing for stay where they are recorded.
    taken = (each for each in rules.cuts if each.ended_at or (each.node, each.device) in goals)
    return Rollout(spec, spec.name, cuts=() if proposed else tuple(taken))


def proceed(
    rollout: Rollout,
    nodes: Mapping[str, RuntimeNode],
    lost: Collection[str],
    routed: Callable[[str], bool],
    rules: Rules,
    now_s: float,
) -> Rollout:
    """``rollout`` after what the cluster shows now."""
    steps, done = rollout.spec.steps, rollout.done
    released, waiting = release(steps, done, rollout.released, rules)
    held = {
        step.id
        for step in steps
        if step.action is Action.PARTITION and step.id not in done and step.id not in released
    }
    present = Present(nodes, lost, routed)
    begun, done = advance(steps, done, present, held_back(steps, done, held) if held else ())
    return replace(
        rollout,
        done=done,
        begun=begun,
        since={
            deed: rollout.since.get(deed, now_s)
            for step in begun
            if step.id not in done
            for deed in [deed_of(step)]
        },
        released=released,
        cuts=under_way(steps, done, released, rollout.cuts, nodes.keys() - set(lost), rules),
        waiting=waiting,
    )


def _with_before(steps: Iterable[Step], state: ClusterState, rules: Rules) -> Iterator[Step]:
    """``steps`` whose cuts say what the GPU had, before this or an earlier plan began to cut it."""
    present = {
        (node.name, device.uuid): canonical(device.geometry or ())
        for node in state.nodes
        for device in node.devices
    }
    for step in steps:
        if step.action is Action.PARTITION:
            key = step.target.node or "", step.target.device or ""
            pin = rules.pins.get(key)
            before = present[key] if pin is None else pin.before
            yield replace(step, target=replace(step.target, before=before))
        else:
            yield step


def unsettled(plan: Plan, rollout: Rollout | None) -> frozenset[str]:
    """Services that have less than they are to have: what still serves them elsewhere is needed."""
    short = {each.service for each in plan.services if each.short is not None}
    refused = {service for service, _, _ in plan.refused}
    under_way = (
        {step.target.service or "" for step in rollout.spec.steps if step.id not in rollout.done}
        if rollout is not None
        else set()
    )
    return frozenset(short | refused | under_way)


def _emptied(plan: Plan, facts: ClusterState) -> frozenset[str]:
    """Nodes that are cut as a whole: nothing may run there meanwhile."""
    whole = {pool.name for pool in facts.pools if pool.whole_nodes}
    present = {
        (node.name, device.uuid): canonical(device.geometry or ())
        for node in facts.nodes
        if node.pool in whole
        for device in node.devices
    }
    return frozenset(
        each.node
        for each in plan.devices
        if each.recut and present.get((each.node, each.uuid), each.geometry) != each.geometry
    )


def _as_served(
    plan: Plan, facts: ClusterState, nodes: Iterable[RuntimeNode], emptied: Collection[str]
) -> tuple[ClusterState, tuple[Located, ...]]:
    """The facts with those copies only that answer and are to stay, and the others that are not wanted, or not yet.

    A copy that some node was only told to have, or was told to end, must not be relied on by what ends another one.
    If the plan wants it, it is launched until it answers; on a node that is ``emptied``, after that.
    """
    nodes = tuple(nodes)
    told = {
        (node.metadata.name, device.uuid, each.slice, each.service, each.member)
        for node in nodes
        for device in node.spec.devices
        for each in device.instances
    }
    answering = {
        (*key[:2], parse_slice(each.slice), *key[3:]): each
        for node in nodes
        for device in node.status.devices
        for each in device.instances
        if each.state is InstanceState.ACTIVE and each.ready
        for key in [(node.metadata.name, device.uuid, each.slice, each.service, each.member)]
        if key in told
    }
    wanted = {
        (a.node, a.device, a.slice, a.service, a.member): (a.batch, a.instances)
        for a in plan.assignments
    }
    planned = {(device.node, device.uuid) for device in plan.devices}
    rest: list[Located] = []

    def serving(node: str, device: DeviceState) -> Iterator[Running]:
        for each in device.running:
            key = node, device.uuid, each.slice, each.service, each.member
            if (found := answering.get(key)) is not None:
                # Where it was told what is wanted, it is as wanted when it says so; else it is to be told.
                as_wanted = wanted.get(key) == (each.batch, each.instances)
                yield replace(each, batch=found.batch, instances=found.ready) if as_wanted else each
            elif (key not in wanted or node in emptied) and key[:2] in planned:
                rest.append(Located(node, device.uuid, each))

    state = replace(
        facts,
        nodes=tuple(
            replace(
                node,
                devices=tuple(
                    replace(device, running=tuple(serving(node.name, device)))
                    for device in node.devices
                ),
            )
            for node in facts.nodes
        ),
    )
    return state, tuple(rest)


def _after(rest: Iterable[Located], steps: Steps, emptied: Collection[str]) -> Steps:
    """``steps`` once the ``rest`` is gone, of whose room they know nothing; nodes that are ``emptied`` are so of all of it."""
    gone: dict[tuple[str | None, str | None], list[str]] = {}
    unloads: list[Step] = []
    for copy in rest:
        each, name = copy.running, f"gone-{len(unloads) + 1}"
        room = copy.node, None if copy.node in emptied else copy.device
        gone.setdefault(room, []).append(name)
        target = Target(
            *(copy.node, copy.device, slice_name(each.slice), each.service, each.member),
            count=each.instances,
        )
        unloads.append(Step(name, Action.UNLOAD, target))
    return replace(
        steps,
        steps=(
            *unloads,
            *(
                replace(
                    step,
                    requires=(
                        *gone.get((step.target.node, step.target.device), ()),
                        *gone.get((step.target.node, None), ()),
                        *step.requires,
                    ),
                )
                for step in steps.steps
            ),
        ),
    )
