"""The plan under way: which one it is, how far it is, and what it has nodes do now.

A plan is written down as a PlacementPlan before anything of it is done. When facts change, the next one starts from
what runs by then, and the one before is superseded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tessera_core.api import RuntimeNode, RuntimePool
from tessera_core.api.placementplan import Action, PlacementPlan, PlacementPlanSpec, Step, Target
from tessera_core.api.runtimenode import InstanceState
from tessera_core.api.runtimepool import Approval
from tessera_core.plan.decision import Plan
from tessera_core.plan.nodes import Located, slice_name
from tessera_core.plan.state import ClusterState, DeviceState, Running
from tessera_core.plan.state_in import POOL_LABEL, parse_slice
from tessera_core.plan.steps import Steps, steps_to
from tessera_operator.decide import Decision
from tessera_operator.orders import Present, advance
from tessera_operator.plans import is_open, to_spec
from tessera_operator.quarantine import leave


@dataclass(frozen=True, slots=True)
class Rollout:
    """One plan on its way."""

    spec: PlacementPlanSpec
    name: str
    done: frozenset[str] = frozenset()
    begun: tuple[Step, ...] = ()
    """Done or under way, in order."""

    @property
    def is_done(self) -> bool:
        return len(self.done) == len(self.spec.steps)


def begin(
    decision: Decision,
    epoch: int,
    pools: Iterable[RuntimePool],
    nodes: Iterable[RuntimeNode],
    plans: Iterable[PlacementPlan],
) -> Rollout | None:
    """The rollout of a new decision; None where everything is as decided. Raises ValueError where the plan is
    not for the facts.
    """
    nodes = tuple(nodes)
    state, rest = _as_served(decision, nodes)
    steps = _after(rest, steps_to(decision.plan, state))
    steps = leave(steps, decision.plan, decision.state, nodes)
    if not steps.steps:
        return None
    spec = to_spec(decision.plan, steps, state, epoch)
    spec = replace(spec, approved=_is_approved(spec, pools, nodes, plans))
    return Rollout(spec, spec.name)


def proceed(
    rollout: Rollout,
    nodes: Mapping[str, RuntimeNode],
    lost: Collection[str],
    routed: Callable[[str], bool],
    *,
    approved: bool,
) -> Rollout:
    """``rollout`` after what the cluster shows now."""
    begun, done = advance(
        rollout.spec.steps, rollout.done, Present(nodes, lost, routed), may_cut=approved
    )
    return replace(rollout, done=done, begun=begun)


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


def _as_served(
    decision: Decision, nodes: Iterable[RuntimeNode]
) -> tuple[ClusterState, tuple[Located, ...]]:
    """The facts with those copies only that answer and are to stay, and the others that are not wanted.

    A copy that some node was only told to have, or was told to end, must not be relied on by what ends another one.
    If the plan wants it, it is launched until it answers.
    """
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
        for a in decision.plan.assignments
    }
    planned = {(device.node, device.uuid) for device in decision.plan.devices}
    rest: list[Located] = []

    def serving(node: str, device: DeviceState) -> Iterator[Running]:
        for each in device.running:
            key = node, device.uuid, each.slice, each.service, each.member
            if (found := answering.get(key)) is not None:
                # Where it was told what is wanted, it is as wanted when it says so; else it is to be told.
                as_wanted = wanted.get(key) == (each.batch, each.instances)
                yield replace(each, batch=found.batch, instances=found.ready) if as_wanted else each
            elif key not in wanted and key[:2] in planned:
                rest.append(Located(node, device.uuid, each))

    state = replace(
        decision.state,
        nodes=tuple(
            replace(
                node,
                devices=tuple(
                    replace(device, running=tuple(serving(node.name, device)))
                    for device in node.devices
                ),
            )
            for node in decision.state.nodes
        ),
    )
    return state, tuple(rest)


def _after(rest: Iterable[Located], steps: Steps) -> Steps:
    """``steps`` once the ``rest`` is gone, of whose room they know nothing."""
    gone: dict[tuple[str | None, str | None], list[str]] = {}
    unloads: list[Step] = []
    for copy in rest:
        each, name = copy.running, f"gone-{len(unloads) + 1}"
        gone.setdefault((copy.node, copy.device), []).append(name)
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
                        *step.requires,
                    ),
                )
                for step in steps.steps
            ),
        ),
    )


def _is_approved(
    spec: PlacementPlanSpec,
    pools: Iterable[RuntimePool],
    nodes: Iterable[RuntimeNode],
    plans: Iterable[PlacementPlan],
) -> bool:
    """Whether it may go on without a person: all pools that it cuts allow that, or a person has approved the
    same cuts in a plan that was still under way.
    """
    cuts = {_cut(step) for step in spec.steps if step.action is Action.PARTITION}
    pool_of = {node.metadata.name: dict(node.metadata.labels).get(POOL_LABEL) for node in nodes}
    automatic = {
        pool.metadata.name
        for pool in pools
        if pool.spec.partition is not None and pool.spec.partition.approval is Approval.AUTO
    }
    if all(pool_of.get(node or "") in automatic for node, _, _ in cuts):
        return True
    return any(
        plan.spec.approved
        and is_open(plan)
        and cuts <= {_cut(step) for step in plan.spec.steps if step.action is Action.PARTITION}
        for plan in plans
    )


def _cut(step: Step) -> tuple[str | None, str | None, object]:
    return step.target.node, step.target.device, step.target.geometry
