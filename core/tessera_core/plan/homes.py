"""Temporary homes: where a copy can serve while its own place and its next one are both taken.

Two copies that each wait for the other's slice can only change places through a third one. A home is an empty
part that exists now, on which the member was measured, that selectors, trust and isolation allow, and that no
other move waits for: it makes nobody slower. The index of empty parts is built on the first question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from tessera_core.api.stages import STAGE
from tessera_core.gpu.mps import is_one_of
from tessera_core.plan.decoding import stage_products
from tessera_core.plan.nodes import Located
from tessera_core.plan.site import Key, Site
from tessera_core.plan.state import CPU, ClusterState, Running, Slice
from tessera_core.plan.taints import Admission, admission_of

Kind = tuple[str, str]
"""(product, slice name)."""
Claims = Callable[[Key], tuple[Slice, ...]]
"""Parts of a device that nobody may be put into for a while."""


class Homes:
    """Finds temporary homes on ``site`` as it is at the time of the question."""

    def __init__(self, site: Site, state: ClusterState) -> None:
        self._site = site
        self._reserved = state.policy.reserved_cores
        self._pools = {pool.name: pool for pool in state.pools}
        kinds = {(each.place.product, each.place.slice) for each in state.measured}
        self._sizes = sorted(
            (int(name.removeprefix("cpu-")) for product, name in kinds if product == CPU),
            reverse=True,
        )
        self._cpus = [key for key, device in site.devices.items() if device.is_cpu]
        self._empty: dict[Kind, dict[tuple[Key, Slice], None]] | None = None
        """The part that has been empty for longest first, so that homes take turns."""
        self._known: dict[Key, list[Slice]] = {}
        """What the index has of each device."""

    def update(self, key: Key) -> None:
        """Note that a GPU was cut, or that something started or stopped there."""
        if self._empty is None or self._site.devices[key].is_cpu:
            return
        product = self._site.devices[key].product
        known, empty = self._known.get(key, []), self._site.empty_parts(key)
        for piece in known:
            if piece not in empty:
                del self._empty[product, piece.name][key, piece]
        for piece in empty:
            if piece not in known:
                self._empty.setdefault((product, piece.name), {})[key, piece] = None
        self._known[key] = empty

    def find(
        self, copy: Located, claims: Claims, helps: Callable[[Located], bool]
    ) -> Located | None:
        """The best home for ``copy``: a part of the kind that it has now, else the one with the most
        memory, GPUs before cores; with as many instances, else with one. None: there is none.

        ``helps``: whether a home would make room for those who wait.
        """
        for instances in sorted({copy.running.instances, 1}, reverse=True):
            running = replace(copy.running, instances=instances)
            for key, piece in self._candidates(copy, claims):
                home = Located(*key, replace(running, slice=piece))
                if self._suits(home) and helps(home):
                    return home
        return None

    def _suits(self, home: Located) -> bool:
        site, mib = self._site, self._site.known_mib(home)
        return (
            self._allowed(home)
            and mib is not None
            and mib <= site.room_mib(home)
            and not site.crowd(home)
            and not site.tenants_apart_from(home)
        )

    def _allowed(self, home: Located) -> bool:
        """Whether taints, cuts of whole nodes, selectors, products and trust let the member start there."""
        running, product = home.running, self._site.devices[home.node, home.device].product
        service, node = self._site.services.get(running.service), self._site.nodes[home.node]
        pool = self._pools[node.pool]
        open_ = admission_of(node, pool) in (Admission.OPEN, Admission.AVOID)
        if service is None or not open_ or self._site.is_closed(home.node):
            return False
        placement, labels = service.spec.placement, dict(pool.labels)
        staged = running.member == STAGE and service.spec.preprocess is not None
        products = stage_products(service.spec) if staged else placement.products
        wanted = placement.pool_selector.match_labels if placement.pool_selector else ()
        code = any(
            each.model.format.is_code for each in service.spec.placed if each.name == running.member
        )
        return (
            all(labels.get(name) == value for name, value in wanted)
            and (not products or is_one_of(product, products))
            and (pool.allow_code or not code)
        )

    def _candidates(self, copy: Located, claims: Claims) -> Iterator[tuple[Key, Slice]]:
        """Empty parts of kinds on which the member was measured, the preferred ones first."""
        if self._empty is None:
            self._empty = {}
            for key in self._site.devices:
                self.update(key)
        product = self._site.devices[copy.node, copy.device].product
        present = product, copy.running.slice.name
        kinds: list[tuple[bool, int, Kind]] = []
        for kind, entries in self._empty.items():
            for key, piece in islice(entries, 1):
                example = Located(*key, replace(copy.running, slice=piece, instances=1))
                if self._site.known_mib(example) is not None:
                    kinds.append((kind != present, -self._site.room_mib(example), kind))
        for *_, kind in sorted(kinds):
            for key, piece in self._empty[kind]:
                if piece not in claims(key):
                    yield key, piece
        yield from self._core_sets(copy.running, claims)

    def _core_sets(self, running: Running, claims: Claims) -> Iterator[tuple[Key, Slice]]:
        """The widest run of free cores of each CPU device that has one of a measured size."""
        for key in self._cpus:
            taken = {core for piece in claims(key) for core in piece.cores}
            for copy in self._site.held(key).values():
                taken.update(copy.running.slice.cores)
            free = sorted(set(range(self._reserved, self._site.devices[key].cores)) - taken)
            for size in self._sizes:
                piece = _first_run(free, size)
                if piece is not None:
                    home = Located(*key, replace(running, slice=piece, instances=1))
                    if self._site.known_mib(home) is not None:
                        yield key, piece
                        break


def _first_run(free: list[int], size: int) -> Slice | None:
    """The lowest ``size`` neighbouring cores of ``free`` (ascending)."""
    for first, last in zip(free, free[size - 1 :], strict=False):
        if last - first == size - 1:
            return Slice(f"cpu-{size}", first, tuple(range(first, last + 1)))
    return None
