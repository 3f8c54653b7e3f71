"""Small clusters of any kind whose GPUs are cut while processes are killed: promises are kept, and it comes to an end."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from support.cutting_nodes import CuttingNodes, Gpu
from support.objects import pool
from support.recut_cases import HALVES, WHOLE, measured, wanted
from tessera_core.api.placementplan import Action
from tessera_core.gpu.geometry import Placement

GEOMETRIES = ((WHOLE,), HALVES, (Placement("4g.40gb", 0),), ())
KILLS = st.tuples(
    st.integers(0, 15),
    st.sampled_from(("operator", "agent", "partitioner")),
    st.sampled_from(("n0", "n1")),
    st.sampled_from((3.0, 8.0, 60.0)),
)


@st.composite
def clusters(draw: st.DrawFn) -> CuttingNodes:
    """Up to three nodes with up to two GPUs, and up to three services that run on one or two of them."""
    names = ["n0", "n1", "n2"][: draw(st.integers(2, 3))]
    gpus = {
        name: [Gpu(set(draw(st.sampled_from(GEOMETRIES)))) for _ in range(draw(st.integers(1, 2)))]
        for name in names
    }
    services = "abc"[: draw(st.integers(1, 3))]
    return CuttingNodes(
        pool(
            gpus=2,
            partition={"backend": "Static"},
            size={"min": len(names), "max": len(names)},
        ).to_dict(),
        *measured(*services),
        *(wanted(name, draw(st.integers(1, 2))) for name in services),
        gpus=gpus,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(clusters(), st.lists(KILLS, max_size=3), st.integers(1, 2))
def test_whatever_is_cut_and_whoever_is_killed_promises_are_kept(
    cluster: CuttingNodes, kills: list[tuple[int, str, str, float]], most: int
) -> None:
    cluster.settle()
    partition = {
        "approval": "Auto",
        "disruption": {"maxNodes": most, "minInterval": "0s", "minGainPercent": "5"},
    }
    cluster.change("RuntimePool", "p", partition=partition)
    cluster.watch()
    for tick in range(16):
        for at, who, name, seconds in kills:
            if at == tick and who == "operator":
                cluster.restart()
            elif at == tick:
                cluster.kill(who, name, seconds)
        cluster.tick()
    cluster.settle()
    assert min(cluster.fewest.values(), default=1) >= 1, cluster.fewest
    plans = cluster.plan_objects()
    planned = {
        step.target.device
        for plan in plans
        for step in plan.spec.steps
        if step.action is Action.PARTITION
    }
    assert cluster.ever_told <= planned
    assert all(cut.ended_at and not cut.problem for plan in plans for cut in plan.status.cuts)
    for each in plans:
        states = {one.type: one.status.value for one in each.status.conditions}
        assert "True" in (states["Applied"], states["Superseded"]), each
        assert "Waiting" not in states
