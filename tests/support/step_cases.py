"""Small cases for the order of steps: services on A100 slices that hold one copy each, and steps in words."""

from __future__ import annotations

from support.clusters import cluster, gpu_place, measured, service
from support.step_executor import Copies, Cuts, execute, holding, planned
from tessera_core.gpu.geometry import Geometry, Placement
from tessera_core.plan import ClusterState, NodeState, Slice
from tessera_core.plan.site import measured_memory
from tessera_core.plan.steps import Steps, steps_to

TWO: Geometry = (Placement("3g.40gb", 0), Placement("3g.40gb", 4))
LEFT, RIGHT = Slice("3g.40gb", 0), Slice("3g.40gb", 4)
WIDE = Slice("7g.80gb", 0)
ONE = (16, 1)
"""A setting: batch cap 16, one instance."""
SERVICES = "abcde"


def at(name: str, node: str, piece: Slice, index: int = 0) -> tuple[str, str, Slice, str, str]:
    """The copy of service ``name`` in a part of a node's GPU, or of its cores."""
    device = "cpu" if piece.name.startswith("cpu") else f"GPU-{node}-{index}"
    return node, device, piece, f"vision.{name}", "m"


def facts(*nodes: NodeState, memory_mib: float = 30_000, **rest: object) -> ClusterState:
    """Services a to e of one model, of which each slice holds one copy only."""
    places = [gpu_place(name) for name in ("full", "7g.80gb", "4g.40gb", "3g.40gb")]
    return cluster(
        nodes,
        [service(name) for name in SERVICES],
        [measured("m", place, memory_mib=memory_mib) for place in (*places, 1, 2)],
        **rest,  # type: ignore[arg-type]
    )


def steps_of(
    state: ClusterState, before: Copies, after: Copies, cuts: Cuts | None = None
) -> tuple[list[str], Steps]:
    """The steps in words, executed with all checks."""
    state = holding(state, before)
    plan = planned(state, after, cuts)
    steps = steps_to(plan, state)
    execute(state, plan, steps, measured_memory(state))
    return [words(steps, index) for index in range(len(steps.steps))], steps


def words(steps: Steps, index: int) -> str:
    step = steps.steps[index]
    target = step.target
    name = (target.service or "").removeprefix("vision.")
    where = f"{target.node} {target.slice}" if target.slice else target.node
    if step.action == "Partition":
        where = f"{where} {'+'.join(map(str, target.geometry)) or 'off'}"
    return " ".join(part for part in (step.action.lower(), name, where) if part)


def needs(steps: Steps, words_of_step: str) -> list[str]:
    """What a step requires, in words."""
    by_id = {step.id: words(steps, index) for index, step in enumerate(steps.steps)}
    (step,) = [step for step in steps.steps if by_id[step.id] == words_of_step]
    return [by_id[each] for each in step.requires]
