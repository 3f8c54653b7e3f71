"""What ``tessera cost`` and ``kubectl tessera cost`` show: who pays how much per hour, and what nobody holds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera_cli.output import emit
from tessera_cli.plan_tables import Part, page
from tessera_cli.tables import table
from tessera_core.plan import ClusterState, Located
from tessera_core.plan.cost import CORES, UNIT, Amount, Bill, Line, bill, namespace_of
from tessera_core.plan.quotas import QuotaUse, quota_use

_AMOUNTS = ("GPU SLICES", "GPUS", "CORES", "COST/h", "IDLE/h", "LOADED/h")


@dataclass(frozen=True, slots=True)
class Costs:
    """What is held in a cluster, what it costs, and what of it quotas count."""

    bill: Bill
    quotas: Mapping[str, QuotaUse]


def costs_of(state: ClusterState, held: Sequence[Located]) -> Costs:
    """``held``: what runs in ``state``, or what a plan of it places."""
    return Costs(bill(state, held), quota_use(state, held))


def add_what_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", choices=tuple(_SHOWN), default="services", help="default: services"
    )


def show(what: str, costs: Costs, output: str, namespace: str = "") -> None:
    """Print one of the views. ``namespace``: of which services are shown; empty: all."""
    data, shown = _SHOWN[what]
    emit(output, data(costs, namespace), lambda: page(list(shown(costs, namespace))))


def _of(bill: Bill, namespace: str) -> list[tuple[str, Amount]]:
    """Services with what they bear, the dearest first."""
    mine = [
        (service, amount)
        for service, amount in bill.by_service().items()
        if namespace in ("", namespace_of(service))
    ]
    return sorted(mine, key=lambda each: (-each[1].loaded, each[0]))


def _services(costs: Costs, namespace: str) -> list[dict[str, Any]]:
    lines: dict[str, list[Line]] = {}
    for line in costs.bill.lines:
        lines.setdefault(line.service, []).append(line)
    return [
        {
            "namespace": namespace_of(service),
            "name": service.rpartition(".")[2],
            **_amount(amount),
            "parts": [
                {"pool": each.pool, "part": each.part, **_amount(each.amount)}
                for each in lines[service]
            ],
        }
        for service, amount in _of(costs.bill, namespace)
    ]


def _services_table(costs: Costs, namespace: str) -> Iterator[Part]:
    where: dict[str, list[str]] = {}
    for line in costs.bill.lines:
        where.setdefault(line.service, []).append(_words(line))
    rows = table("", ("NAMESPACE", "NAME"), _AMOUNTS, ("HOLDS",))
    services = _of(costs.bill, namespace)
    for service, amount in services:
        name = service.rpartition(".")[2]
        rows.add_row(namespace_of(service), name, *_cells(amount), ", ".join(where[service]))
    total = sum((amount for _, amount in services), Amount())
    rows.add_row("total", "", *_cells(total), "")
    yield rows


def _words(line: Line) -> str:
    what = f"{line.amount.cores:.3g} cores" if line.part == CORES else line.part
    return f"{what} of {line.pool}"


def _namespaces(costs: Costs, _: str) -> list[dict[str, Any]]:
    return [
        {
            "namespace": namespace,
            **_amount(amount),
            "quota": {
                "slices": {"used": use.slices, "hard": use.quota.slices},
                "shares": {"used": float(f"{use.shares:.4g}"), "hard": use.quota.shares},
            },
        }
        for namespace, amount, use in _by_namespace(costs)
    ]


def _namespaces_table(costs: Costs, _: str) -> Iterator[Part]:
    rows = table("", ("NAMESPACE",), (*_AMOUNTS, "QUOTA SLICES", "QUOTA SHARES"))
    for namespace, amount, use in _by_namespace(costs):
        slices = _of_quota(use.slices, use.quota.slices)
        rows.add_row(namespace, *_cells(amount), slices, _of_quota(use.shares, use.quota.shares))
    total = sum((amount for _, amount, _ in _by_namespace(costs)), Amount())
    rows.add_row("total", *_cells(total), "", "")
    yield rows


def _by_namespace(costs: Costs) -> list[tuple[str, Amount, QuotaUse]]:
    """Those that hold something or have a quota, the dearest first."""
    found = costs.bill.by_namespace()
    rows = [(name, found.get(name, Amount()), use) for name, use in costs.quotas.items()]
    return sorted(rows, key=lambda each: (-each[1].loaded, each[0]))


def _of_quota(used: float, hard: float | None) -> str:
    return f"{used:.4g}/{'-' if hard is None else f'{hard:.4g}'}"


def _pools(costs: Costs, _: str) -> list[dict[str, Any]]:
    return [
        {
            "pool": each.pool,
            "nodes": each.nodes,
            "pricePerHour": _price(each.price),
            "usedPerHour": _price(each.price - each.idle),
            "idlePerHour": {
                "parts": _price(each.idle_parts),
                "devices": _price(each.idle_devices),
                "nodes": _price(each.idle_nodes),
            },
        }
        for each in costs.bill.pools
    ]


def _pools_table(costs: Costs, _: str) -> Iterator[Part]:
    numbers = ("NODES", "PRICE/h", "USED/h", "IDLE PARTS/h", "IDLE DEVICES/h", "IDLE NODES/h")
    rows = table("", ("POOL",), (*numbers, "IDLE"))
    for each in costs.bill.pools:
        amounts = (each.price, each.price - each.idle, each.idle_parts, each.idle_devices)
        share = f"{each.idle / each.price:.1%}" if each.price else "-"
        cells = (*map(_shown, (*amounts, each.idle_nodes)), share)
        rows.add_row(each.pool, str(each.nodes), *cells)
    yield rows


_SHOWN: Mapping[str, tuple[Callable[[Costs, str], Any], Callable[[Costs, str], Iterator[Part]]]] = {
    "services": (_services, _services_table),
    "namespaces": (_namespaces, _namespaces_table),
    "pools": (_pools, _pools_table),
}


def _amount(amount: Amount) -> dict[str, Any]:
    return {
        "gpuSlices": float(f"{amount.gpu_slices:.4g}"),
        "gpus": float(f"{amount.gpus:.4g}"),
        "cores": float(f"{amount.cores:.4g}"),
        "costPerHour": _price(amount.cost),
        "idlePerHour": _price(amount.idle),
        "loadedPerHour": _price(amount.loaded),
    }


def _cells(amount: Amount) -> Iterator[str]:
    yield from (f"{each:.3g}" for each in (amount.gpu_slices, amount.gpus, amount.cores))
    yield from map(_shown, (amount.cost, amount.idle, amount.loaded))


def _price(amount: int) -> float:
    """Whole: amounts of programs add up."""
    return amount / UNIT


def _shown(amount: int) -> str:
    return f"{amount / UNIT:.4g}"
