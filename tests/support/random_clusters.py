"""Random small clusters for property tests of the planner: a few nodes of every kind and a few services.

Models are made up per case: batch times are affine, a slice is slower than its board by its share and a bit.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.vendor.pretty import RepresentationPrinter as Printer

from support.clusters import A100, cpu_node, gpu_node, gpu_place, measured, service
from tessera_core.api import ModelService, TaintEffect
from tessera_core.gpu.devices import FULL, DeviceClass, cpu_class
from tessera_core.perf import LatencyProfile
from tessera_core.plan import (
    Budget,
    ClusterState,
    DeviceState,
    Measured,
    NodeState,
    Policy,
    PoolRules,
)
from tessera_core.plan.state import Quota, Taint

A30 = "NVIDIA-A30"


class Drawn(ClusterState):
    """A cluster that prints in a few lines; the whole of it takes a hundred thousand characters."""

    __slots__ = ()

    def __repr__(self) -> str:
        nodes = [
            f"{n.name}({n.pool}) {[(d.product, d.geometry, d.running) for d in n.devices]} {n.taints}"
            for n in self.nodes
        ]
        wanted = [
            (
                each.served_name,
                [member.name for member in each.spec.members],
                each.spec.traffic.requests_per_second,
                each.spec.slo.objectives[0].target_s,
                each.spec.members[0].batch.max,
                each.spec.placement,
                each.spec.scaling,
                each.spec.priority_class_name,
            )
            for each in self.services
        ]
        firsts = {each.digest: each.profile for each in reversed(self.measured)}
        models = [
            (chr(int(digest[7:9], 16)), len(profile.rows), *profile.rows[:2])
            for digest, profile in sorted(firsts.items())
        ]
        parts = [*nodes, *wanted, *models, *self.pools, *self.quotas, self.policy]
        return "\n".join(map(str, parts))

    def _repr_pretty_(self, printer: Printer, cycle: bool) -> None:
        """What Hypothesis prints."""
        printer.text(repr(self))


L4 = DeviceClass("NVIDIA-L4", FULL, sm_count=0, memory_mib=23_034)
MODELS = "abcd"
BATCHES = (1, 4, 16)

PLACES: tuple[tuple[DeviceClass, float], ...] = (
    (gpu_place(FULL), 1.0),
    (gpu_place("4g.40gb"), 0.55),
    (gpu_place("3g.40gb"), 0.42),
    (gpu_place("2g.20gb"), 0.28),
    (gpu_place("1g.10gb"), 0.13),
    (gpu_place(FULL, A30), 0.5),
    (gpu_place("2g.12gb", A30), 0.24),
    (gpu_place("1g.6gb", A30), 0.11),
    (L4, 0.35),
    *((cpu_class(cores, 30_000), 0.02 * cores) for cores in (1, 2, 4)),
)
"""Classes with their speed; 1 is a whole A100."""


def _l4_node(name: str, pool: str) -> NodeState:
    return NodeState(name, pool, (DeviceState(f"GPU-{name}-0", L4.product, L4.memory_mib),))


def _fixed_node(name: str, pool: str) -> NodeState:
    node = gpu_node(name, pool=pool)
    return replace(node, devices=(replace(node.devices[0], cuttable=False),))


SORTS = {
    "a100": lambda name, pool: gpu_node(name, pool=pool),
    "a100x2": lambda name, pool: gpu_node(name, 2, pool=pool),
    "a100-fixed": _fixed_node,
    "a30": lambda name, pool: gpu_node(name, pool=pool, product=A30),
    "l4": _l4_node,
    "cpu": lambda name, pool: cpu_node(name, 4, 30_000, pool=pool),
}


def node(name: str, sort: str, pool: str = "p") -> NodeState:
    """A node of one of the ``SORTS``."""
    return SORTS[sort](name, pool)


def nodes(most: int = 4, pools: str = "ppq") -> st.SearchStrategy[tuple[NodeState, ...]]:
    """Up to ``most`` nodes ``n0``, ``n1``, … of any sort in one of ``pools``."""
    sorts = st.tuples(st.sampled_from(sorted(SORTS)), st.sampled_from(pools))
    return st.lists(sorts, max_size=most).map(
        lambda chosen: tuple(node(f"n{i}", *each) for i, each in enumerate(chosen))
    )


@st.composite
def models(draw: st.DrawFn) -> tuple[Measured, ...]:
    """Measurements of ``MODELS`` on all places, some of them of two instances."""
    found = []
    for model in MODELS:
        alpha = draw(st.sampled_from((0.05, 0.2, 0.8, 3.0)))
        tau0 = draw(st.sampled_from((0.0, 1.0, 4.0)))
        memory = draw(st.sampled_from((500, 4_000, 9_000, 30_000, 50_000)))
        twice = draw(st.sampled_from((None, None, 1.1, 1.7)))
        absent = draw(st.sampled_from(((), (), ("cpu",), (A100,))))
        for place, speed in PLACES:
            if place.product not in absent:
                one = measured(model, place, alpha / speed, tau0 / speed**0.3, memory, BATCHES)
                found.append(one if twice is None else _doubled(one, twice))
    return tuple(found)


def _doubled(one: Measured, slower: float) -> Measured:
    rows = one.profile.rows
    two = (
        replace(
            row,
            instances=2,
            p50_ms=slower * row.p50_ms,
            p99_ms=slower * row.p99_ms,
            memory_mib=2 * row.memory_mib,
        )
        for row in rows
    )
    return replace(one, profile=LatencyProfile((*rows, *two)))


@st.composite
def services(
    draw: st.DrawFn, most: int = 6, plain: bool = False, prefix: str = "s"
) -> tuple[ModelService, ...]:
    """One to ``most`` services; ``plain``: of one namespace, with a rate, and without wishes."""
    return tuple(_service(draw, f"{prefix}{i}", plain) for i in range(draw(st.integers(1, most))))


def _service(draw: st.DrawFn, name: str, plain: bool) -> ModelService:
    members = sorted(draw(st.sets(st.sampled_from(MODELS), min_size=1, max_size=3)))
    wishes: dict[str, object] = {}
    if not plain:
        wishes = {
            "optional": draw(st.sampled_from(("", members[-1]))) if len(members) > 1 else "",
            "namespace": draw(st.sampled_from(("red", "blue"))),
            "scaling": draw(
                st.sampled_from(
                    ({}, {}, {}, {"mode": "Fixed", "minReplicas": 2}, {"maxReplicas": 1})
                )
            ),
            "placement": {
                "isolation": draw(st.sampled_from(("Any", "Any", "Partition", "Exclusive"))),
                "spread": {"minNodes": draw(st.sampled_from((1, 1, 1, 2)))},
            },
        }
        priority = draw(st.sampled_from((None, None, "high", "low")))
        if priority is not None:
            wishes["priorityClassName"] = priority
    rates = (5, 20, 150, 800, 4000) if plain else (0, 5, 20, 150, 800, 4000)
    return service(
        name,
        members,
        rps=draw(st.sampled_from(rates)),
        target=draw(st.sampled_from(("3ms", "20ms", "60ms", "200ms"))),
        batch_max=draw(st.sampled_from((2, 16))),
        **wishes,  # type: ignore[arg-type]
    )


PRIORITIES = (("high", 10), ("low", -10))
_TAINTS = (None, None, None, TaintEffect.NO_SCHEDULE, TaintEffect.PREFER_NO_SCHEDULE)
_COUNTS = st.sampled_from((None, 0, 1, 3))
_SHARES = st.sampled_from((None, 0.3, 1.0))


@st.composite
def clusters(draw: st.DrawFn, most_nodes: int = 4, most_services: int = 6) -> ClusterState:
    """Two pools with rules of their own, tainted nodes, quotas, priorities."""
    tainted = tuple(
        replace(each, taints=(Taint("k", "v", taint),) if taint else ())
        for each in draw(nodes(most_nodes))
        for taint in [draw(st.sampled_from(_TAINTS))]
    )
    limits = {name: (draw(_COUNTS), draw(_SHARES)) for name in ("red", "blue")}
    return Drawn(
        nodes=tainted,
        services=draw(services(most_services)),
        measured=draw(models()),
        pools=(
            PoolRules(
                "p",
                partition=draw(st.booleans()),
                shared_between_namespaces=draw(st.booleans()),
                cost_per_node_hour=draw(st.sampled_from((None, 1.0))),
            ),
            PoolRules(
                "q",
                partition=draw(st.booleans()),
                shared_between_namespaces=True,
                cost_per_node_hour=draw(st.sampled_from((None, 0.3))),
            ),
        ),
        policy=Policy(reserved_cores=draw(st.sampled_from((0, 1)))),
        budget=Budget(max_iterations=400),
        priorities=PRIORITIES,
        quotas=tuple(
            Quota(name, *limit) for name, limit in sorted(limits.items()) if limit != (None, None)
        ),
    )


@st.composite
def plain_clusters(draw: st.DrawFn, most_nodes: int = 4, most_services: int = 4) -> ClusterState:
    """One shared pool, no taints, no quotas, no wishes: only room is short."""
    return Drawn(
        nodes=draw(nodes(most_nodes, pools="p").filter(bool)),
        services=draw(services(most_services, plain=True)),
        measured=draw(models()),
        pools=(PoolRules("p", partition=draw(st.booleans()), shared_between_namespaces=True),),
        budget=Budget(max_iterations=400),
    )
