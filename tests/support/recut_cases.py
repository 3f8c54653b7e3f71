"""A cluster that serves more once its GPUs are cut: the case that tests of re-cutting start from."""

from __future__ import annotations

from functools import cache
from typing import Any

from support.cutting_nodes import CuttingNodes, Gpu
from support.memory_operator import profile
from support.objects import pool, service
from tessera_core.gpu.geometry import Placement
from tessera_operator.kinds import Document

WHOLE = Placement("7g.80gb", 0)
HALVES = (Placement("3g.40gb", 0), Placement("3g.40gb", 4))
CUT = frozenset({"GPU-n0-0", "GPU-n1-0"})
"""GPUs that a plan for ``two_of_each`` cuts; ``GPU-n0-1`` is whole and has a model that fits no slice."""


def wanted(name: str, nodes: int, **spec: Any) -> Document:
    """A service of one model that shares slices with nobody and is to run on so many nodes."""
    placement = {"isolation": "Partition", "spread": {"minNodes": nodes}}
    scaling = {"minReplicas": nodes}
    return service(name, name, placement=placement, scaling=scaling, **spec).to_dict()


def measured(*names: str) -> list[Document]:
    """On slices of the whole and of half of a GPU."""
    return [profile(name, piece) for name in names for piece in ("7g.80gb", "3g.40gb")]


def without_partitioner(cluster: CuttingNodes, *names: str) -> None:
    """Nobody may cut on those nodes, nor ever could."""
    for name in names:
        cluster.kill("partitioner", name, 1e9)
        cluster.cluster.objects["RuntimeNode", "", name]["status"].pop("cuts")
    cluster.restart()


def two_of_each(**partition: Any) -> CuttingNodes:
    """Two nodes with one slice each, where service ``a`` runs twice, and ``b``, which is to run twice too, has no room;
    ``c`` has a GPU to itself. From now on the GPUs may be cut.
    """
    found = _uncut().twin()
    found.change("RuntimePool", "p", partition={"approval": "Auto", **partition})
    found.watch()
    return found


@cache
def _uncut() -> CuttingNodes:
    found = CuttingNodes(
        pool(partition={"backend": "Static"}, size={"min": 2, "max": 2}).to_dict(),
        *measured("a", "b"),
        profile("c"),
        *(wanted(name, nodes) for name, nodes in (("a", 2), ("b", 2), ("c", 1))),
        gpus={"n0": [Gpu({WHOLE}), Gpu(None)], "n1": [Gpu({WHOLE})]},
    )
    found.settle()
    assert found.ready() == {("vision.a", "a"): 2, ("vision.c", "c"): 1}
    assert found.ever_told == set()
    return found
