"""Which models lack measurements of slices that are not there, and which GPU is cut for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from support import clusters
from support.clusters import A100, cluster, gpu_node, gpu_place, measured
from support.objects import gpu, instance, node, pool, seen, service
from tessera_core.api import ModelProfile, ModelService, RuntimeNode, RuntimePool
from tessera_core.api.measurements import ProfilingTask
from tessera_core.api.runtimenode import MigMode, SliceStatus
from tessera_core.gpu.geometry import Geometry, Placement
from tessera_core.plan import ClusterState, plan, state_to_dict
from tessera_core.plan.decision import Refusal, Why
from tessera_operator.cuts import Pin
from tessera_operator.lacking import Unseen, unseen
from tessera_operator.profiling import Trust, Wanted, tenants
from tessera_operator.recutting import Rules, rules_of
from tessera_operator.scouting import Scout, Scouting, scout, with_cuts
from tessera_operator.versions import latest

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
KIND = ("p", A100)
ALL = ("7g.80gb", "4g.40gb", "3g.40gb", "2g.20gb", "1g.20gb", "1g.10gb")
SMALL = ("2g.20gb", "1g.20gb", "1g.10gb")
HALF = Placement("3g.40gb", 0)


def cuttable_pool(**partition: Any) -> RuntimePool:
    return pool(partition={"approval": "Auto", **partition})


def board(name: str, *slices: Placement, **rest: Any) -> RuntimeNode:
    """A node of one A100: whole, or cut into ``slices``."""
    found = tuple(SliceStatus(f"MIG-{name}-{each}", each.profile, each.start) for each in slices)
    mode = MigMode.ENABLED if slices else MigMode.DISABLED
    runs = rest.pop("runs", ())
    device = gpu(f"GPU-{name}-0", *runs, mig_capable=True, mig_mode=mode, slices=found)
    return node(name, device, **rest)


def known(*found: tuple[str, str], **rest: Any) -> list[ModelProfile]:
    """Measurements by (model, kind of slice)."""
    state = cluster([], [], [measured(name, gpu_place(kind), **rest) for name, kind in found])
    return [ModelProfile.from_dict(each) for each in state_to_dict(state)["profiles"]]


def rules(
    nodes: Sequence[RuntimeNode],
    pools: Sequence[RuntimePool],
    reported: Iterable[str] | None = None,
) -> Rules:
    """Where every GPU of ``nodes``, or those ``reported``, may be cut."""
    keys = {(each.metadata.name, device.uuid) for each in nodes for device in each.status.devices}
    some = keys if reported is None else {key for key in keys if key[1] in set(reported)}
    return rules_of(pools, nodes, [], some, NOW)


def trust_of(
    services: Sequence[ModelService], pools: Sequence[RuntimePool], nodes: Sequence[RuntimeNode]
) -> Trust:
    versions = {each.served_name: latest(each, {}) for each in services}
    return Trust(versions, {each.metadata.name: each for each in pools}, tenants(nodes, ()))


def look(
    services: Sequence[ModelService],
    profiles: Sequence[ModelProfile],
    nodes: Sequence[RuntimeNode],
    pools: Sequence[RuntimePool] | None = None,
    given_up: Iterable[Wanted] = (),
) -> Unseen:
    pools = [cuttable_pool()] if pools is None else pools
    trust = trust_of(services, pools, nodes)
    found = trust.versions.values()
    return unseen(found, profiles, nodes, pools, trust, {*given_up}, rules(nodes, pools))


def lacks(*args: Any, **rest: Any) -> dict[str, tuple[str, ...]]:
    """By member."""
    return {each.member: each.profiles for each in look(*args, **rest).lacks}


FULL_KNOWN = known(("m", "full"))


def test_what_was_measured_on_whole_gpus_lacks_every_slice_that_can_be_cut() -> None:
    found = look([service("s")], FULL_KNOWN, [board("n0")])
    assert [(each.kind, each.service, each.profiles) for each in found.lacks] == [
        (KIND, "vision.s", ALL)
    ]
    assert found.early == frozenset()


def test_slices_that_are_there_or_are_known_lack_nothing() -> None:
    profiles = known(("m", "full"), ("m", "7g.80gb"))
    nodes = [board("n0"), board("n1", HALF)]
    assert lacks([service("s")], profiles, nodes) == {"m": ("4g.40gb", *SMALL)}


def test_it_is_early_while_present_slices_are_to_be_measured_on() -> None:
    found = look([service("s")], FULL_KNOWN, [board("n0"), board("n1", HALF)])
    assert found.early == {KIND}
    task = ProfilingTask("vision.s", "m", "GPU-n1-0", "3g.40gb@0")
    profiles = known(("m", "full"), ("m", "3g.40gb"))
    nodes = [board("n0"), board("n1", HALF, profiling=[task])]
    assert look([service("s")], profiles, nodes).early == {KIND}


def test_what_may_be_measured_on_no_node_keeps_nobody_waiting() -> None:
    """The node with the slice has models of another namespace, which the pool wants apart."""
    apart = pool(partition={"approval": "Auto"}, trust={"sharedBetweenNamespaces": False})
    stranger = seen(instance("audio.x", piece="3g.40gb@0"))
    nodes = [board("n0"), board("n1", HALF, runs=[stranger])]
    found = look([service("s")], FULL_KNOWN, nodes, [apart])
    assert found.early == frozenset()
    assert [each.profiles for each in found.lacks] == [("7g.80gb", "4g.40gb", *SMALL)]


def test_what_failed_again_and_again_is_given_up_and_whatever_is_no_wider_too() -> None:
    given_up = [("vision.s", "m", (A100, "2g.20gb"))]
    found = look([service("s")], FULL_KNOWN, [board("n0")], given_up=given_up)
    assert found.lacks[0].profiles == ("7g.80gb", "4g.40gb", "3g.40gb")


@pytest.mark.parametrize(
    ("memory_mib", "ms", "found"),
    [
        (1000.0, 1.0, ALL),
        (15_000.0, 1.0, ALL[:-1]),
        (30_000.0, 1.0, ALL[:3]),
        (81_000.0, 1.0, ()),
        (1000.0, 49.0, ALL),
        (1000.0, 50.0, ()),
    ],
)
def test_slices_that_cannot_help_lack_nothing(
    memory_mib: float, ms: float, found: tuple[str, ...]
) -> None:
    """The SLO wants answers within 50 ms; one row takes 0.2 ms more than ``ms``."""
    profiles = known(("m", "full"), memory_mib=memory_mib, tau0_ms=ms)
    assert lacks([service("s")], profiles, [board("n0")]).get("m", ()) == found


def test_a_slice_that_is_too_slow_speaks_for_those_within_it_only() -> None:
    slow = known(("m", "3g.40gb"), tau0_ms=60.0)
    found = lacks([service("s")], [*FULL_KNOWN, *slow], [board("n0")])
    assert found == {"m": ("7g.80gb", "4g.40gb")}


def test_of_a_percentile_below_the_median_the_median_says_nothing() -> None:
    profiles = known(("m", "full"), tau0_ms=60.0)
    assert lacks([service("s", percent="40")], profiles, [board("n0")]) == {"m": ALL}


@pytest.mark.parametrize(
    ("of", "partition", "found"),
    [
        (service("s"), {"allowedProfiles": ["3g.40gb", "1g.10gb"]}, ("3g.40gb", "1g.10gb")),
        (service("s"), {"allowedProfiles": ["1g.10gb+me"]}, ("1g.10gb+me",)),
        (service("s"), {"measure": "Never"}, ()),
        (service("s"), {"backend": "Static"}, ()),
        (service("s"), {"backend": "MigManager"}, ()),
        (service("s", placement={"isolation": "Exclusive"}), {}, ()),
        (service("s", placement={"products": ["NVIDIA-L4"]}), {}, ()),
        (service("s", placement={"poolSelector": {"matchLabels": {"a": "b"}}}), {}, ()),
        (service("s", formats={"m": "TorchScript"}), {}, ()),
        (service("s", digests=False), {}, ()),
    ],
)
def test_only_slices_that_the_pool_allows_and_the_service_may_use(
    of: ModelService, partition: dict[str, Any], found: tuple[str, ...]
) -> None:
    pools = [cuttable_pool(**partition)]
    assert lacks([of], FULL_KNOWN, [board("n0")], pools).get("m", ()) == found


def facts(geometries: dict[str, Geometry | None], **rest: Any) -> ClusterState:
    """Nodes of one A100 each, on one of which service ``s`` runs."""
    nodes = [gpu_node(name, geometry=found) for name, found in geometries.items()]
    state = cluster(nodes, [clusters.service("s")], [measured("m", gpu_place())], **rest)
    return clusters.applied(plan(state), state)


def search(
    nodes: Sequence[RuntimeNode],
    state: ClusterState,
    pools: Sequence[RuntimePool] | None = None,
    held: Rules | None = None,
    **rest: Any,
) -> Scouting:
    pools = [cuttable_pool()] if pools is None else pools
    trust = trust_of([service("s")], pools, nodes)
    held = held or rules(nodes, pools)
    found = unseen(trust.versions.values(), FULL_KNOWN, nodes, pools, trust, (), held)
    chosen = rest.pop("plan", None) or plan(state)
    return scout(found, chosen, state, nodes, trust, held, **{"waits": False, **rest})


def user_of(state: ClusterState) -> str:
    (found,) = [each.name for each in state.nodes if each.devices[0].running]
    return found


def test_a_gpu_that_nothing_runs_on_is_cut_for_as_many_slices_as_it_has_room_for() -> None:
    state = facts({"n0": None, "n1": None})
    found = search([board("n0"), board("n1")], state)
    (one,) = found.begun
    assert one.node != user_of(state)
    assert sorted(each.profile for each in one.geometry) == sorted(SMALL)
    assert one.models == ("vision.s/m",)
    assert not found.put_off
    whole = with_cuts(plan(state), found.begun)
    cut = {(each.node, each.uuid): each.geometry for each in whole.devices if each.recut}
    assert cut == {one.key: one.geometry}
    assert whole.assignments == plan(state).assignments


def test_a_gpu_that_is_cut_already_is_taken_before_one_that_is_whole() -> None:
    """MIG is never switched off again."""
    state = facts({"n0": None, "n1": None, "n2": (HALF,)})
    state = replace(state, nodes=tuple(sorted(state.nodes, key=lambda each: each.name)))
    nodes = [board("n0"), board("n1"), board("n2", HALF)]
    profiles = known(("m", "full"), ("m", "3g.40gb"))
    pools = [cuttable_pool()]
    trust = trust_of([service("s")], pools, nodes)
    held = rules(nodes, pools)
    found = unseen(trust.versions.values(), profiles, nodes, pools, trust, (), held)
    (one,) = scout(found, plan(state), state, nodes, trust, held, waits=False).begun
    assert one.node == "n2"


def test_only_a_gpu_is_cut_on_which_the_model_may_be_measured() -> None:
    state = facts({"n0": None, "n1": None, "n2": None})
    stranger = seen(instance("audio.x", piece="full"))
    apart = [pool(partition={"approval": "Auto"}, trust={"sharedBetweenNamespaces": False})]
    own = user_of(state)
    free = sorted({"n0", "n1", "n2"} - {own})
    nodes = [
        board(name, **({"runs": [stranger]} if name == free[0] else {}))
        for name in ("n0", "n1", "n2")
    ]
    (one,) = search(nodes, state, apart).begun
    assert one.node == free[1]


def words(found: Scouting) -> str:
    return found.words("vision.s").partition(f"{A100}: ")[2]


def test_why_nothing_is_cut_is_said() -> None:
    state = facts({"n0": None, "n1": None})
    nodes = [board("n0"), board("n1")]
    free = next(each.name for each in state.nodes if not each.devices[0].running)
    assert words(search(nodes, state)) == f"{free}/GPU-{free}-0 is cut for it"
    lonely = facts({"n0": None})
    assert words(search(nodes[:1], lonely)) == "no GPU of pool p is free to be cut for it"
    waiting = search(nodes, state, waits=True)
    assert words(waiting) == "a better plan waits for its cuts, which come first"
    unplanned = replace(
        state,
        nodes=tuple(
            replace(n, devices=tuple(replace(d, running=()) for d in n.devices))
            for n in state.nodes
        ),
    )
    assert words(search(nodes, unplanned)) == "a plan is carried out first"
    manual = search(nodes, state, [cuttable_pool(approval="Manual")])
    assert words(manual) == f"{free}: nobody has approved the cut"
    assert [each.node for each in manual.put_off] == [free]
    assert not any(found.begun for found in (waiting, manual))


def test_a_cut_that_has_begun_is_the_only_one_of_its_kind() -> None:
    state = facts({"n0": None, "n1": None, "n2": None})
    nodes = [board(f"n{index}") for index in range(3)]
    free = next(each.name for each in state.nodes if not each.devices[0].running)
    begun = {(free, f"GPU-{free}-0"): Pin((HALF,), (), "2026-01-31T12:00:00Z")}
    held = replace(rules(nodes, [cuttable_pool()]), pins=begun)
    found = search(nodes, state, held=held)
    assert (found.begun, words(found)) == ((), "a GPU is being cut")
    alone = {key: replace(pin, started_at=None) for key, pin in begun.items()}
    (one,) = search(nodes, state, held=replace(held, pins=alone)).begun
    assert one.node != free, "one that is left alone keeps no other waiting"


@pytest.mark.parametrize(
    ("why", "cuts"), [(Why.INSUFFICIENT_CAPACITY, 0), (Why.QUOTA_EXCEEDED, 1), (Why.INFEASIBLE, 1)]
)
def test_who_lacks_capacity_comes_first(why: Why, cuts: int) -> None:
    state = facts({"n0": None, "n1": None})
    short = replace(plan(state), refused=(("vision.s", "m", Refusal(why, "")),))
    found = search([board("n0"), board("n1")], state, plan=short)
    assert len(found.begun) == cuts
    if not cuts:
        assert words(found) == "vision.s lacks capacity, which comes first"


def test_what_was_put_off_may_begin_once_nobody_has_to_be_asked() -> None:
    state = facts({"n0": None, "n1": None})
    nodes = [board("n0"), board("n1")]
    manual = search(nodes, state, [cuttable_pool(approval="Manual")])
    (one,) = manual.put_off
    assert isinstance(one, Scout)
    assert not manual.may_begin(rules(nodes, [cuttable_pool(approval="Manual")]))
    assert manual.may_begin(rules(nodes, [cuttable_pool()]))


def test_a_gpu_that_no_partitioner_has_reported_is_not_cut() -> None:
    state = facts({"n0": None, "n1": None})
    nodes = [board("n0"), board("n1")]
    free = next(each.name for each in state.nodes if not each.devices[0].running)
    held = rules(nodes, [cuttable_pool()], {f"GPU-{user_of(state)}-0"})
    shown = replace(
        state,
        nodes=tuple(
            replace(
                each,
                devices=tuple(
                    replace(device, cuttable=each.name != free) for device in each.devices
                ),
            )
            for each in state.nodes
        ),
    )
    found = search(nodes, shown, held=held)
    assert (found.begun, words(found)) == ((), "no GPU of pool p is free to be cut for it")
