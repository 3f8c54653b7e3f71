"""A ClusterState from documents and back, and what is refused on the way."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.clusters import (
    A100,
    applied,
    cluster,
    cpu_node,
    digest,
    gpu_node,
    gpu_place,
    measured,
    service,
)
from tessera_core.api import SpecInvalid, TaintEffect, Toleration, TolerationOperator
from tessera_core.gpu.geometry import Placement
from tessera_core.plan import (
    Budget,
    ClusterState,
    Goal,
    NodeState,
    Policy,
    PoolRules,
    Running,
    Slice,
    parse_slice,
    plan,
    state_from_dict,
    state_to_dict,
)
from tessera_core.plan.state import Quota, Taint

TOLERATED = Toleration("nvidia.com/gpu", TolerationOperator.EXISTS)


def mixed() -> ClusterState:
    """Every kind of device, running instances, a geometry, a sick device, a taint, tenants."""
    present = (Placement("1g.10gb", 6), Placement("3g.40gb", 0))
    gpus = gpu_node("g", 2, pool="p", geometry=present)
    first, second = gpus.devices
    cores = cpu_node("n", pool="p")
    return cluster(
        [
            replace(
                gpus,
                devices=(
                    replace(first, running=(Running("vision.s", "a", Slice("3g.40gb"), 16, 2),)),
                    replace(second, healthy=False),
                ),
                labels=(("zone", "b"),),
                taints=(Taint("nvidia.com/gpu", "present", TaintEffect.NO_SCHEDULE),),
            ),
            replace(
                cores,
                devices=(
                    replace(
                        cores.devices[0],
                        running=(Running("vision.s", "b", Slice("cpu-2", 2, (2, 3)), 1, 1),),
                    ),
                ),
            ),
        ],
        [service("s", "ab", rps=50, priorityClassName="online")],
        [measured(member, place) for member in "ab" for place in (gpu_place("3g.40gb"), 2)],
        PoolRules(
            "p", (("tier", "gold"),), True, ("3g.40gb",), True, True, 2.5, 55.5, (TOLERATED,), True
        ),
        policy=Policy(
            Goal.MAXIMISE_RATE,
            headroom=1.2,
            overhead_ms=2.5,
            reserved_cores=1,
            slack=0.25,
            min_gain_percent=7.5,
            max_moves=3,
        ),
        budget=Budget(7, 9),
        priorities=(("batch", -5), ("online", 1000)),
        default_priority_class="batch",
        quotas=(Quota("text", shares=0.5), Quota("vision", 12, 2.5)),
    )


def document() -> dict[str, Any]:
    return copy.deepcopy(state_to_dict(mixed()))


def errors_of(document: object) -> dict[str, str]:
    with pytest.raises(SpecInvalid) as caught:
        state_from_dict(document)
    found: dict[str, str] = {}
    for error in caught.value.errors:
        found[error.path] = f"{found.get(error.path, '')}{error}\n"
    return found


def test_documents_read_back_as_the_same_state() -> None:
    state = mixed()
    again = state_from_dict(state_to_dict(state))
    # What the services say of their models' content is stated beside them once it was read.
    known = (("vision.s", "a", digest("a")), ("vision.s", "b", digest("b")))
    assert again == replace(state, digests=known, nodes=again.nodes)
    assert again.nodes == tuple(
        replace(node, labels=tuple(sorted((*node.labels, ("tessera.dev/pool", "p")))))
        for node in state.nodes
    )
    assert state_from_dict(state_to_dict(again)) == again


@pytest.mark.parametrize("drift", [0.5, 1.0, 1.5])
def test_what_has_drifted_reads_back(drift: float) -> None:
    state = mixed()
    state = replace(state, measured=tuple(replace(one, drift=drift) for one in state.measured))
    assert state_from_dict(state_to_dict(state)).measured == state.measured


def test_an_applied_plan_reads_back_as_the_same_plan() -> None:
    state = mixed()
    state = applied(plan(state), state)
    assert plan(state_from_dict(state_to_dict(state))) == plan(state)


NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True).filter(
    lambda name: not name.startswith("system-")
)
AMOUNTS = st.floats(0, 1e9, allow_subnormal=False)
LIMITS = st.tuples(st.integers(0, 2**31 - 1) | st.none(), AMOUNTS | st.none()).filter(
    lambda limits: limits != (None, None)
)
TAINTS = st.builds(Taint, NAMES, st.sampled_from(["", "v"]), st.sampled_from(TaintEffect))
TOLERATIONS = st.builds(
    Toleration, NAMES, effect=st.sampled_from(TaintEffect) | st.none(), value=st.just("v")
)


@st.composite
def tenants(draw: st.DrawFn) -> ClusterState:
    priorities = draw(st.dictionaries(NAMES, st.integers(-(2**31), 10**9), max_size=4))
    quotas = draw(st.dictionaries(NAMES, LIMITS, max_size=4))
    taints = draw(st.lists(TAINTS, max_size=3))
    return ClusterState(
        nodes=(NodeState("n", "p", (), (("tessera.dev/pool", "p"),), tuple(sorted(taints))),),
        pools=(
            PoolRules(
                "p",
                idle_watts=draw(AMOUNTS),
                tolerations=tuple(draw(st.lists(TOLERATIONS, max_size=3))),
            ),
        ),
        policy=Policy(
            slack=draw(st.floats(0, 1)),
            min_gain_percent=draw(st.floats(0, 100)),
            max_moves=draw(st.integers(0, 100_000)),
        ),
        budget=Budget(draw(st.integers(0, 1_000_000)), draw(st.integers(0, 1_000_000))),
        priorities=tuple(sorted(priorities.items())),
        default_priority_class=draw(st.sampled_from([None, *sorted(priorities)])),
        quotas=tuple(Quota(name, *quotas[name]) for name in sorted(quotas)),
    )


@given(tenants())
def test_what_tenants_may_reads_back_as_it_was(state: ClusterState) -> None:
    assert state_from_dict(state_to_dict(state)) == state


def test_without_pools_all_nodes_are_one_shared_pool() -> None:
    state = document()
    state["pools"] = []
    for node in state["nodes"]:
        node["metadata"]["labels"] = {}
    (pool,) = state_from_dict(state).pools
    assert pool.shared_between_namespaces
    assert not pool.partition
    assert not pool.allow_code


def test_cores_come_with_the_memory_of_the_pool() -> None:
    state = document()
    node = state["nodes"][1]
    node["status"]["devices"] = []
    shape = state["pools"][0]["spec"]["node"]
    shape["resources"]["memory"] = "8Gi"
    shape["sharedMemory"] = "1Gi"
    (device,) = state_from_dict(state).nodes[1].devices
    assert (device.is_cpu, device.cores, device.memory_mib) == (True, 4, 7 * 1024)


def test_cores_without_memory_are_refused() -> None:
    state = document()
    state["nodes"][1]["status"]["devices"] = []
    assert "nodes[1].status.cpu" in errors_of(state)


def test_digests_come_from_profile_reference_and_status() -> None:
    state = document()
    first, second = state["services"][0]["spec"]["members"]
    del first["model"]["digest"], second["model"]["digest"]
    first["profileRef"] = {"name": "profile-0"}
    state["profiles"][0]["metadata"]["namespace"] = "vision"
    fetched = {"name": "b", "digest": digest("b"), "uri": second["model"]["uri"]}
    state["services"][0]["status"] = {"members": [fetched]}
    assert state_from_dict(state).digests == (
        ("vision.s", "a", digest("a")),
        ("vision.s", "b", digest("b")),
    )
    first["profileRef"] = {"name": "elsewhere"}
    assert "services[0].spec.members[0].profileRef.name" in errors_of(state)


def test_a_digest_that_was_fetched_from_elsewhere_is_not_used() -> None:
    state = document()
    _, second = state["services"][0]["spec"]["members"]
    del second["model"]["digest"]
    fetched = {"name": "b", "digest": digest("b"), "uri": "s3://models/before"}
    state["services"][0]["status"] = {"members": [fetched]}
    assert state_from_dict(state).digests == (("vision.s", "a", digest("a")),)


def test_all_errors_of_all_documents_come_at_once_with_their_paths() -> None:
    state = document()
    state["services"][0]["spec"]["slo"]["objectives"][0]["percent"] = "101"
    state["nodes"][0]["spec"]["epoch"] = -1
    state["policy"]["headroom"] = "0.5"
    state["suprise"] = 1
    assert set(errors_of(state)) == {
        "suprise",
        "nodes[0].spec.epoch",
        "services[0].spec.slo.objectives[0].percent",
        "policy.headroom",
    }


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("policy", "slack", "1.5"),
        ("policy", "minGainPercent", 5),
        ("policy", "maxMoves", -1),
        ("budget", "maxIterations", 1_000_001),
        ("budget", "maxNodes", "many"),
        ("budget", "maxNeighbours", 300),
    ],
)
def test_a_wrong_setting_is_refused_by_name(place: str, name: str, value: object) -> None:
    assert list(errors_of({place: {name: value}})) == [f"{place}.{name}"]


def test_a_geometry_that_breaks_a_rule_is_refused() -> None:
    state = document()
    slices = state["nodes"][0]["status"]["devices"][0]["slices"]
    slices.append({"uuid": "MIG-x", "profile": "2g.20gb", "start": 2})
    assert "share memory slices" in errors_of(state)["nodes[0].status.devices[0].slices"]


def test_a_slice_that_the_board_does_not_have_is_refused() -> None:
    state = document()
    state["nodes"][0]["status"]["devices"][0]["slices"][0]["profile"] = "5g.60gb"
    assert "1g.10gb" in errors_of(state)["nodes[0].status.devices[0].slices[0].profile"]


def test_mig_on_an_unknown_board_is_refused() -> None:
    state = document()
    state["nodes"][0]["status"]["devices"][0]["product"] = "NVIDIA-X1"
    assert "nodes[0].status.devices[0].product" in errors_of(state)


def test_a_node_of_no_known_pool_is_refused() -> None:
    state = document()
    state["nodes"][0]["metadata"]["labels"]["tessera.dev/pool"] = "q"
    assert "one of the pools p" in errors_of(state)["nodes[0].metadata.labels[tessera.dev/pool]"]


def test_a_profile_without_rows_is_refused() -> None:
    state = document()
    state["profiles"][0]["status"]["rows"] = []
    assert "profiles[0].status" in errors_of(state)


@pytest.mark.parametrize(
    "kind", ["nodes", "pools", "services", "profiles", "priorityClasses", "quotas"]
)
def test_nothing_may_come_twice(kind: str) -> None:
    state = document()
    state[kind].append(copy.deepcopy(state[kind][0]))
    assert f"{kind}[{len(state[kind]) - 1}]" in errors_of(state)


@pytest.mark.parametrize("value", [None, [], "state", 3])
def test_a_state_is_a_mapping(value: object) -> None:
    assert "a mapping" in errors_of(value)[""]


def test_lists_are_lists() -> None:
    wrong = {"nodes": "n", "services": {"a": 1}, "priorityClasses": 3, "quotas": "q"}
    assert set(errors_of(wrong)) == set(wrong)


def test_an_empty_state_is_valid() -> None:
    assert plan(state_from_dict({})).devices == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("full", Slice()),
        ("1g.10gb+me@3", Slice("1g.10gb+me", 3)),
        ("cpu-2@4", Slice("cpu-2", 4, (4, 5))),
        ("cpu-2", Slice("cpu-2", 0, (0, 1))),
    ],
)
def test_slices_by_name(text: str, expected: Slice) -> None:
    assert parse_slice(text) == expected


def test_a_slice_name_that_is_none() -> None:
    with pytest.raises(ValueError, match="expected full"):
        parse_slice("1g.10gb@x")


def test_products_are_compared_in_label_form() -> None:
    state = document()
    assert state["nodes"][0]["status"]["devices"][0]["product"] == A100
    state["profiles"][0]["spec"]["deviceClass"]["product"] = f"{A100}-MIG-3g.40gb"
    assert state_from_dict(state).measured[0].place.product == A100
