"""Cutting through NVIDIA's MIG manager: what its ConfigMap has to say, and what to do to a node next. Pure.

Problem: the manager takes the name of a layout from a label of the node, and layouts from a file that it mounts. A
layout is of the whole node and counts slices, whose places the driver chooses. What uses GPUs must be gone before: the
manager does not evict it, and fails. It looks at the label only when that changes, and at a file that kubelets bring up
to date a minute or two after the ConfigMap.

Approach: a layout is named by a hash of what is in it, and written long before it is asked for. A label of our own keeps
runtime pods away from the node from before the pod is ended until the manager is done. All of it is read off the node
each time, so whoever comes after a crash goes on. The state ``pending`` is set together with the name: until the manager
has seen the new name, the state on the node is the one of the name before.

Sources: NVIDIA mig-parted (``cmd/nvidia-mig-manager``, ``api/spec/v1``), GPU Operator documentation, "GPU Operator with
MIG"; kubelet's updates of mounted ConfigMaps: https://kubernetes.io/docs/concepts/configuration/configmap/.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from tessera_core.gpu.geometry import Geometry

CONFIG_LABEL = "nvidia.com/mig.config"
STATE_LABEL = "nvidia.com/mig.config.state"
AWAY_LABEL = "tessera.dev/recut"
"""Runtime pods do not start on a node that has it; its value is the layout that is meant."""
PENDING, SUCCESS, FAILED = "pending", "success", "failed"
_AT_WORK = (PENDING, "rebooting")
SYNC_S = 150.0
"""From the ConfigMap to the file on every node: kubelet's sync period and the life of its cache, a minute each."""
FILE = "config.yaml"
"""The key that the manager mounts."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How all GPUs of one node are cut."""

    gpus: tuple[tuple[int, Geometry], ...]
    """By NVML's index, in order. An empty geometry: not partitioned."""

    @property
    def name(self) -> str:
        """A label value that is equal for equal counts."""
        counts = json.dumps([(index, sorted(_counts(cut).items())) for index, cut in self.gpus])
        return f"tessera-{hashlib.sha256(counts.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as it is seen now."""

    labels: Mapping[str, str]
    has_pod: bool
    """Whether a runtime pod is there, ending or not: it holds the GPUs."""
    wanted: Layout | None = None
    """None: nothing is to be cut any more."""
    known_s: float | None = None
    """For how long the ConfigMap has had the layout; None: it does not have it."""


@dataclass(frozen=True, slots=True)
class Move:
    """What to do next, and what stands in the way."""

    labels: Mapping[str, str | None] = field(default_factory=dict)
    """To set, or, with None, to take away, in one patch."""
    end_pod: bool = False
    problem: str = ""
    """Why the layout will not come about without something else being done."""


def next_move(node: NodeView) -> Move:
    """What brings ``node`` nearer to its layout; nothing while it is to be waited for."""
    labels, wanted = node.labels, node.wanted
    state = labels.get(STATE_LABEL, "")
    if state in _AT_WORK:
        # A pod that takes the GPUs now makes it fail, and with another name the state would be of the one before.
        return Move()
    is_asked = wanted is not None and labels.get(CONFIG_LABEL) == wanted.name
    if wanted is None or (is_asked and state == SUCCESS):
        return Move({AWAY_LABEL: None}) if AWAY_LABEL in labels else Move()
    if is_asked:
        return Move(problem=f"NVIDIA's MIG manager failed on {wanted.name}: its log says why")
    if node.known_s is None or node.known_s < SYNC_S:
        return Move()
    if labels.get(AWAY_LABEL) != wanted.name:
        return Move({AWAY_LABEL: wanted.name})
    if node.has_pod:
        return Move(end_pod=True)
    return Move({CONFIG_LABEL: wanted.name, STATE_LABEL: PENDING})


def config_file(layouts: Iterable[Layout]) -> str:
    """The file of mig-parted with ``layouts``, in YAML."""
    configs = {layout.name: _devices(layout) for layout in layouts}
    document = {"version": "v1", "mig-configs": dict(sorted(configs.items()))}
    return yaml.safe_dump(document, sort_keys=False)


def _devices(layout: Layout) -> list[dict[str, Any]]:
    """GPUs that are cut alike are one entry."""
    alike: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for index, cut in layout.gpus:
        alike.setdefault(tuple(sorted(_counts(cut).items())), []).append(index)
    return [
        {"devices": gpus, "mig-enabled": True, "mig-devices": dict(counts)}
        if counts
        else {"devices": gpus, "mig-enabled": False}
        for counts, gpus in sorted(alike.items(), key=lambda each: each[1])
    ]


def _counts(cut: Geometry) -> Counter[str]:
    return Counter(each.profile for each in cut)
