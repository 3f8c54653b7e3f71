"""Which pools are to have more nodes for what a plan could not place: the cheapest that close the gap. Pure.

A refusal tells every class of device that would close it, and how many of it. A node of a pool brings some of one
class, for a price; of pools that have room, those are chosen that close the gap at the least price together. What
nodes of a pool do for a service is known from its devices only, so a pool that has shown none is tried with one node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from tessera_core.api import ModelServiceSpec, RuntimePool
from tessera_core.api.runtimepool import GPU_RESOURCE
from tessera_core.gpu.mig import find_profile
from tessera_core.gpu.tables import model_of
from tessera_core.plan.decision import Plan, Refusal, Shortfall, Why
from tessera_core.plan.state import CPU
from tessera_operator.pools import cores_of

_CLOSED_BY_NODES = {Why.NO_DEVICE, Why.INSUFFICIENT_CAPACITY, Why.SPREAD_UNMET, Why.ISOLATION_UNMET}
_UNKNOWN_PLACE = {Why.NO_DEVICE, Why.NO_PROFILE}
_CORES_PER_GPU = 64
"""In price, where pools state none; as in the cost of plans."""
_EPS = 1e-9


@dataclass(frozen=True, slots=True)
class Stock:
    """What a pool has now."""

    nodes: int = 0
    """That are to stay."""
    filled: int = 0
    """Of them, those with something on them: the others were of no use to the plan, or are yet to be."""
    products: Collection[str] = ()
    """Of the devices that its nodes have, or had."""
    useless_for: Collection[str] = ()
    """Services that a node of it was tried for, in vain."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What would close the gaps of a plan."""

    missing: Mapping[str, int]
    """Nodes beyond the filled ones, by pool."""
    full: frozenset[str]
    """Pools that would close a gap, had they more room."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What nodes of one pool do about one shortfall."""

    pool: str
    price: float
    """Of a node."""
    share: float
    """Of the shortfall that one node closes; more than 1 where it has room to spare."""
    room: int
    """Further nodes that the pool may have."""

    def nodes(self, share: float) -> int:
        """How many close ``share`` of the shortfall."""
        return ceil(share / self.share - _EPS)


def growth(
    pools: Sequence[RuntimePool],
    stocks: Mapping[str, Stock],
    plan: Plan,
    services: Mapping[str, ModelServiceSpec],
    left: Mapping[str, Mapping[str, int]] | None = None,
) -> Growth:
    """For what ``plan`` could not place or placed with too little.

    ``services``: by name; only pools where one may run are asked for it. ``left``: by service and pool, how many nodes
    that are about to go have it; where nothing else is there, they are replaced by their like.
    """
    found: dict[str, int] = {}
    full: set[str] = set()
    for service, refusal in _refusals(plan):
        spec = services.get(service)
        fitting = [pool for pool in pools if spec is None or _may_run(spec, pool)]
        own = (left or {}).get(service, {})
        like = {p.metadata.name: own[p.metadata.name] for p in fitting if p.metadata.name in own}
        untried = [pool for pool in fitting if _is_untried(service, pool, stocks)]
        one = _for_one(refusal, fitting, stocks, like, untried)
        full |= one.full
        for name, nodes in one.missing.items():
            found[name] = max(nodes, found.get(name, 0))
    return Growth(found, frozenset(full))


def price_of(pool: RuntimePool) -> float:
    """Of a node: per hour, or, where the pool states nothing, in GPUs."""
    gpus = dict(pool.spec.node.resources).get(GPU_RESOURCE)
    plain = float(gpus.value) if gpus is not None else cores_of(pool) / _CORES_PER_GPU
    return pool.spec.cost.per_node_hour or plain


def cheapest(offers: Sequence[Offer]) -> dict[str, int]:
    """Nodes by pool that close a shortfall at the least price; what closes most of it where all of it is too much.

    Of one pool alone, or of several, taken by price for what they still close. Ties go to fewer nodes, then to the
    pool that comes first.
    """
    alone = [
        (offer.price * offer.nodes(1.0), offer.nodes(1.0), index)
        for index, offer in enumerate(offers)
        if offer.nodes(1.0) <= offer.room
    ]
    mixed, rest = _mixed(offers)
    prices = {offer.pool: offer.price for offer in offers}
    if alone and (rest > _EPS or min(alone)[0] <= _price(mixed, prices)):
        _, nodes, index = min(alone)
        return {offers[index].pool: nodes}
    return mixed


def _mixed(offers: Sequence[Offer]) -> tuple[dict[str, int], float]:
    """Nodes by pool, by price for what they close, and the share of the shortfall that is left."""
    found: dict[str, int] = {}
    rest = 1.0
    left = [offer for offer in offers if offer.room > 0 and offer.share > 0]
    while left and rest > _EPS:
        ranked = []
        for index, offer in enumerate(left):
            nodes = min(offer.nodes(rest), offer.room)
            closed = min(rest, nodes * offer.share)
            ranked.append((offer.price * nodes / closed, nodes, index, closed))
        _, nodes, index, closed = min(ranked)
        found[left.pop(index).pool] = nodes
        rest -= closed
    return found, max(rest, 0.0)


def _price(nodes: Mapping[str, int], prices: Mapping[str, float]) -> float:
    return sum(prices[pool] * count for pool, count in nodes.items())


def _for_one(
    refusal: Refusal,
    pools: Sequence[RuntimePool],
    stocks: Mapping[str, Stock],
    like: Mapping[str, int],
    untried: Sequence[RuntimePool],
) -> Growth:
    if like and refusal.why in _UNKNOWN_PLACE and refusal.shortfall is None:
        return Growth(like, frozenset())
    short = refusal.shortfall if refusal.why in _CLOSED_BY_NODES else None
    offers = tuple(_offers(short, pools, stocks)) if short is not None else ()
    offering = {offer.pool for offer in offers}
    untried = [pool for pool in untried if pool.metadata.name not in offering]
    found: dict[str, int] = {}
    full: frozenset[str] = frozenset()
    if short is not None:
        found = cheapest(offers)
        closed = sum(each.share * found.get(each.pool, 0) for each in offers) > 1 - _EPS
        price = _price(found, {each.pool: each.price for each in offers})
        # A cheaper one may do as well. It is tried beside, since an SLO that is missed does not wait for that.
        if closed:
            untried = [pool for pool in untried if price_of(pool) < price]
        else:
            full = frozenset(offering)
    elif refusal.why not in _UNKNOWN_PLACE:
        untried = []
    return Growth(found | {pool.metadata.name: 1 for pool in untried}, full)


def _is_untried(service: str, pool: RuntimePool, stocks: Mapping[str, Stock]) -> bool:
    stock = stocks.get(pool.metadata.name, Stock())
    return pool.spec.size.max > 0 and not stock.nodes and service not in stock.useless_for


def _offers(
    short: Shortfall, pools: Sequence[RuntimePool], stocks: Mapping[str, Stock]
) -> Iterator[Offer]:
    wanted = short.alternatives or ((short.device, short.devices),)
    for pool in pools:
        stock = stocks.get(pool.metadata.name, Stock())
        shares = [
            _places_per_node(pool, product, piece) / count
            for device, count in wanted
            for product, _, piece in [device.partition("/")]
            if product in stock.products and count > 0
        ]
        if shares:
            room = max(0, pool.spec.size.max - stock.filled)
            yield Offer(pool.metadata.name, price_of(pool), max(shares), room)


def _refusals(plan: Plan) -> Iterator[tuple[str, Refusal]]:
    for service, _, refusal in plan.refused:
        yield service, refusal
    for each in plan.services:
        if each.short is not None:
            yield each.service, each.short


def _may_run(spec: ModelServiceSpec, pool: RuntimePool) -> bool:
    selector, labels = spec.placement.pool_selector, dict(pool.metadata.labels)
    if selector is not None and not dict(selector.match_labels).items() <= labels.items():
        return False
    return pool.spec.trust.allow_code or not any(m.model.format.is_code for m in spec.members)


def _places_per_node(pool: RuntimePool, product: str, piece: str) -> int:
    """Places of one kind that a node of ``pool`` brings."""
    if product == CPU:
        return max(1, cores_of(pool) // int(piece.removeprefix("cpu-")))
    gpus = dict(pool.spec.node.resources).get(GPU_RESOURCE)
    model = model_of(product)
    profile = find_profile(model, piece) if model is not None else None
    return max(1, int(gpus.value) if gpus is not None else 1) * (
        profile.max_count if profile is not None else 1
    )
