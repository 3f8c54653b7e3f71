"""Who holds the requests of services that sleep, and which services must stay awake for want of one. Pure.

A request that finds neither an instance nor an activator fails. So a service falls asleep only once an activator says
that it has taken it over. One that sleeps is not woken when its activators go: it has nothing that could answer sooner.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from tessera_core.api import ModelService, RuntimeNode
from tessera_operator.wanted import holds
from tessera_operator.world import is_activator

Holders = Mapping[str, tuple[str, ...]]
"""By service, the addresses of the activators that hold its requests, in order."""


def holders(nodes: Iterable[RuntimeNode]) -> Holders:
    """``nodes``: those that answer. An activator whose server does not know the service yet, generation 0, would refuse."""
    found: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if is_activator(node) and node.status.address:
            for served in node.status.services:
                if served.generation:
                    found[served.name].append(node.status.address)
    return {service: tuple(sorted(addresses)) for service, addresses in found.items()}


def unheld(
    services: Iterable[ModelService], nodes: Iterable[RuntimeNode], held: Collection[str]
) -> frozenset[str]:
    """Those ``services`` that must not fall asleep: ``nodes`` are told to run them, and they are not among the ``held``."""
    running = {
        instance.service
        for node in nodes
        for device in node.spec.devices
        for instance in device.instances
    }
    return frozenset(
        name
        for service in services
        for name in [service.served_name]
        if name in running and name not in held and holds(service.spec)
    )
