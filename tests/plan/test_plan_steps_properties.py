"""From any legal state to any other: every step is checked by an executor that shares no code with the planner."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from support.clusters import A100, applied, cpu_node, gpu_node, measured, service
from support.step_executor import Cuts, Rules, Spot, Where, execute, holding, planned
from tessera_core.api import Isolation
from tessera_core.gpu.geometry import layouts
from tessera_core.gpu.tables import model_of
from tessera_core.plan import ClusterState, DeviceState, NodeState, Plan, PoolRules, Running, Slice
from tessera_core.plan.steps import Steps, steps_to

MODEL = model_of(A100)
assert MODEL is not None
LAYOUTS = layouts(MODEL, ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"))
NAMES = ("a.s0", "a.s1", "a.s2", "b.s3", "b.s4")
SETTINGS = ((4, 1), (16, 1), (64, 1), (4, 2), (64, 2))
"""(batch cap, instances)."""


def memory_mib(device: DeviceState, each: Running) -> int | None:
    """So large that slices and processors fill up; member ``x`` was never measured on cores."""
    if device.is_cpu:
        return None if each.member == "x" else 1500 * each.instances + 10 * each.batch
    return 4000 * each.instances + 40 * each.batch


@st.composite
def contents(draw: st.DrawFn, rules: Rules, cuts: Cuts, least: int) -> dict[Spot, tuple[int, int]]:
    """A legal filling of devices that are cut like ``cuts``, of ``least`` to two copies per part."""
    copies: dict[Spot, tuple[int, int]] = {}
    for where, device in rules.devices.items():
        for piece in draw(core_sets(device.cores)) if device.is_cpu else parts(cuts[where]):
            for _ in range(draw(st.integers(least, 2))):
                member = "m" if device.is_cpu else draw(st.sampled_from(("m", "x")))
                spot = (*where, piece, draw(st.sampled_from(NAMES)), member)
                with_it = {**copies, spot: draw(st.sampled_from(SETTINGS))}
                if rules.broken(with_it) is None:
                    copies = with_it
    return copies


@st.composite
def core_sets(draw: st.DrawFn, cores: int) -> list[Slice]:
    """Sets of one or two neighbouring cores, from the first core on."""
    sets, first = [], 0
    for size in draw(st.lists(st.sampled_from((1, 2)), max_size=3)):
        if first + size <= cores:
            sets.append(Slice(f"cpu-{size}", first, tuple(range(first, first + size))))
        first += size
    return sets


def parts(geometry: object) -> list[Slice]:
    if geometry is None:
        return [Slice()]
    assert isinstance(geometry, tuple)
    return [Slice(each.profile, each.start) for each in geometry]


@st.composite
def changes(draw: st.DrawFn) -> tuple[ClusterState, Plan]:
    """One to three A100s and perhaps some cores, full or half empty; much, little or nothing changes."""
    boards, cores = draw(st.integers(1, 3)), draw(st.sampled_from((0, 2, 4)))
    nodes = [gpu_node("g0", min(boards, 2))]
    nodes += [gpu_node("g1")] if boards == 3 else []
    nodes += [cpu_node("h", cores, 8192)] if cores else []
    state = ClusterState(
        nodes=tuple(nodes),
        services=tuple(
            service(
                name.split(".")[1],
                ("m", "x"),
                namespace=name.split(".")[0],
                placement={"isolation": draw(st.sampled_from(("Any", "Any", *Isolation)))},
            )
            for name in NAMES
        ),
        measured=(measured("m", 1), measured("m", 2)),
        pools=(
            PoolRules(
                "p",
                shared_between_namespaces=draw(st.booleans()),
                whole_nodes=draw(st.booleans()),
            ),
        ),
    )
    rules = Rules.of(state, memory_mib)
    geometries = st.one_of(st.none(), st.sampled_from(LAYOUTS[1:]))
    gpus = [where for where, device in rules.devices.items() if not device.is_cpu]
    now = {where: draw(geometries) for where in gpus}
    then = {where: draw(st.one_of(st.just(now[where]), geometries)) for where in gpus}
    least = draw(st.integers(0, 1))
    before, after = draw(contents(rules, now, least)), draw(contents(rules, then, least))
    stay = draw(st.sets(st.sampled_from(sorted(before)))) if before else set()
    for spot in sorted(stay):
        kept = {**after, spot: before[spot]}
        if now.get(spot[:2]) == then.get(spot[:2]) and rules.broken(kept) is None:
            after = kept
    lost: set[Where] = draw(st.sets(st.sampled_from(sorted(rules.devices)), max_size=1))
    after = {spot: setting for spot, setting in after.items() if spot[:2] not in lost}
    state = holding(state, before, now)
    return state, planned(state, after, then, lost)


@given(changes(), st.randoms(use_true_random=False))
def test_every_step_is_legal_as_written_and_in_any_order_that_requires_permit(
    change: tuple[ClusterState, Plan], order: Random
) -> None:
    state, plan = change
    steps = steps_to(plan, state, memory_mib)
    execute(state, plan, steps, memory_mib)
    execute(state, plan, steps, memory_mib, order)


@given(changes())
def test_an_applied_plan_needs_no_steps(change: tuple[ClusterState, Plan]) -> None:
    state, plan = change
    assert steps_to(plan, applied(plan, state), memory_mib) == Steps()


@given(changes(), st.randoms(use_true_random=False))
def test_the_order_of_the_facts_changes_nothing(
    change: tuple[ClusterState, Plan], order: Random
) -> None:
    state, plan = change

    def shuffled(node: NodeState) -> NodeState:
        devices = [
            replace(device, running=tuple(order.sample(device.running, len(device.running))))
            for device in node.devices
        ]
        return replace(node, devices=tuple(order.sample(devices, len(devices))))

    nodes = [shuffled(node) for node in state.nodes]
    other = replace(
        state,
        nodes=tuple(order.sample(nodes, len(nodes))),
        services=tuple(order.sample(state.services, len(state.services))),
    )
    backwards = replace(plan, devices=plan.devices[::-1])
    assert steps_to(backwards, other, memory_mib) == steps_to(plan, state, memory_mib)


@given(changes())
def test_with_enough_spare_gpus_no_member_ever_has_too_few_copies(
    change: tuple[ClusterState, Plan],
) -> None:
    state, plan = change
    copies = sum(len(device.running) for node in state.nodes for device in node.devices)
    spare = tuple(gpu_node(f"spare-{index}") for index in range(copies))
    state = replace(state, nodes=(*state.nodes, *spare))
    plan = replace(plan, devices=plan.devices + planned(replace(state, nodes=spare), {}).devices)
    steps = steps_to(plan, state, memory_mib)
    assert [each for each in steps.interruptions if each.serving < each.expected] == []
