"""The plan under way: which one it is, how far it is, and what it has nodes do now.

A plan is written down as a PlacementPlan before anything of it is done. When facts change, the next one starts from
what runs by then, and the one before is superseded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from tessera_core.api import RuntimeNode, RuntimePool
from tessera_core.api.placementplan import Action, PlacementPlan, PlacementPlanSpec, Step
from tessera_core.api.runtimepool import Approval
from tessera_core.plan.state_in import POOL_LABEL
from tessera_core.plan.steps import steps_to
from tessera_operator.decide import Decision
from tessera_operator.orders import Present, advance
from tessera_operator.plans import is_open, to_spec


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
    steps = steps_to(decision.plan, decision.state)
    if not steps.steps:
        return None
    spec = to_spec(decision.plan, steps, decision.state, epoch)
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
