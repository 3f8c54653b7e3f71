"""Layouts for NVIDIA's MIG manager: how all GPUs of a node are cut, and the ConfigMap in which the manager finds them. Pure.

Problem: the manager takes the name of a layout from a label of the node, and looks it up in a file that kubelets bring up to
date a minute or two after the ConfigMap. A layout is of the whole node and counts slices, so nodes with several GPUs have
more of them than can be written ahead.

Approach: a layout is named by a hash of what is in it, and written when a plan wants it, long before the node is empty. Since
when it is there is an annotation. It stays for a day, and for as long as a node has it or a plan wants it.

Sources: NVIDIA mig-parted, ``api/spec/v1``; kubelet's updates of mounted ConfigMaps:
https://kubernetes.io/docs/concepts/configuration/configmap/.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import yaml

from tessera_core.api import RuntimeNode
from tessera_core.api.runtimenode import DeviceStatus, MigMode, SliceStatus
from tessera_core.gpu.geometry import Geometry, Placement
from tessera_operator.instants import to_text, to_time
from tessera_operator.kinds import CONFIG_MAP, Document
from tessera_operator.orders import geometry_of

FILE = "config.yaml"
"""The key that the manager mounts."""
SINCE = "tessera.dev/layouts"
"""Annotation of the ConfigMap: since when it has which layout."""
MOST_LAYOUTS = 1000
"""With two names each: what a ConfigMap of 1 MiB holds of nodes with eight GPUs that are all cut differently."""
KEPT_S = 86_400.0
"""For which a layout stays that nobody wants any more: a new leader does not know at once what plans want."""
_PREFIX = "tessera-"
_ANY: Mapping[str, list[dict[str, Any]]] = {
    "all-disabled": [{"devices": "all", "mig-enabled": False}],
    "all-enabled": [{"devices": "all", "mig-enabled": True, "mig-devices": {}}],
}
"""The first is what the GPU Operator asks for on nodes that have no label yet."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How all GPUs of one node are cut."""

    gpus: tuple[tuple[int, Geometry | None], ...]
    """By NVML's index, in order. None: MIG is off."""

    @property
    def name(self) -> str:
        """Equal for equal counts: places are the driver's to choose."""
        counts = json.dumps(
            [(i, None if cut is None else sorted(_counts(cut).items())) for i, cut in self.gpus]
        )
        return f"{_PREFIX}{hashlib.sha256(counts.encode()).hexdigest()[:12]}"

    @property
    def names(self) -> tuple[str, str]:
        """What nodes may be labelled with: the manager looks only when a label changes, so asking again takes another."""
        return f"{self.name}-a", f"{self.name}-b"

    @property
    def entries(self) -> list[dict[str, Any]]:
        """As mig-parted reads it. GPUs that are cut alike are one entry."""
        alike: dict[tuple[tuple[str, int], ...] | None, list[int]] = {}
        for index, cut in self.gpus:
            key = None if cut is None else tuple(sorted(_counts(cut).items()))
            alike.setdefault(key, []).append(index)
        return [
            {"devices": gpus, "mig-enabled": False}
            if counts is None
            else {"devices": gpus, "mig-enabled": True, "mig-devices": dict(counts)}
            for counts, gpus in sorted(alike.items(), key=lambda each: each[1])
        ]


def is_name(label: str) -> bool:
    """Whether a node was labelled so by Tessera."""
    return label.startswith(_PREFIX)


def layout_of(node: RuntimeNode, goals: Mapping[str, Geometry]) -> Layout | None:
    """The layout of ``node`` once the GPUs ``goals`` are cut so and the others are as they are.

    None: not known, since an agent has not told the index of a GPU.
    """
    gpus = [each for each in node.status.devices if each.mig_capable or each.index is not None]
    if not gpus or any(each.index is None for each in gpus):
        return None
    found = ((each.index or 0, goals.get(each.uuid, _present(each))) for each in gpus)
    return Layout(tuple(sorted(found, key=lambda each: each[0])))


def has_counts(device: DeviceStatus, wanted: Geometry) -> bool:
    """Whether ``device`` has as many slices of each profile as ``wanted``, wherever they are."""
    is_cut = device.mig_mode is MigMode.ENABLED or not wanted
    return is_cut and _counts(geometry_of(device)) == _counts(wanted)


def named(slices: Iterable[SliceStatus], wanted: Geometry) -> tuple[SliceStatus, ...]:
    """``slices`` at the places that are ``wanted``, of which there are as many of each profile.

    Where they really are is told to the privileged only, so that a place is a name.
    """
    slices, free = tuple(slices), list(wanted)
    kept: dict[str, Placement] = {}
    for each in slices:
        place = Placement(each.profile, each.start)
        if place in free:
            free.remove(place)
            kept[each.uuid] = place
    for each in slices:
        if each.uuid not in kept:
            kept[each.uuid] = next(place for place in free if place.profile == each.profile)
            free.remove(kept[each.uuid])
    return tuple(replace(each, start=kept[each.uuid].start) for each in slices)


def _present(device: DeviceStatus) -> Geometry | None:
    return geometry_of(device) if device.mig_mode is MigMode.ENABLED else None


def _counts(cut: Geometry) -> Counter[str]:
    return Counter(each.profile for each in cut)


@dataclass(frozen=True, slots=True)
class Layouts:
    """What the ConfigMap has."""

    entries: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By name of a layout."""
    since: Mapping[str, datetime] = field(default_factory=dict)

    @classmethod
    def read(cls, document: Document) -> Layouts:
        """What nobody can read, or nobody knows since when it is there, is not there."""
        annotations = document["metadata"].get("annotations") or {}
        try:
            said = json.loads(annotations.get(SINCE, "{}"))
            since = {name: to_time(at) for name, at in said.items()}
            file = yaml.safe_load((document.get("data") or {}).get(FILE, "{}"))
            configs = file.get("mig-configs") or {}
            entries = {name: configs[f"{name}-a"] for name in since}
        except (ValueError, AttributeError, TypeError, KeyError, yaml.YAMLError):
            return cls()
        return cls(entries, since)

    def ages_s(self, now: datetime) -> dict[str, float]:
        """For how long each has been there, by name."""
        return {name: (now - at).total_seconds() for name, at in self.since.items()}

    def keep(self, wanted: Iterable[Layout], labels: Iterable[str], now: datetime) -> Layouts:
        """With the layouts that ``labels`` name and, as far as there is room, the ``wanted`` and the young ones; no others."""
        used = {label[:-2] for label in labels if is_name(label)}
        entries = {name: self.entries[name] for name in sorted(used & self.entries.keys())}
        ages_s = self.ages_s(now)
        young = {name: found for name, found in self.entries.items() if ages_s[name] < KEPT_S}
        for name, found in (*((each.name, each.entries) for each in wanted), *young.items()):
            if len(entries) < MOST_LAYOUTS:
                entries.setdefault(name, found)
        return Layouts(entries, {name: self.since.get(name, now) for name in entries})

    def document(self, namespace: str, name: str) -> dict[str, Any]:
        """The ConfigMap."""
        configs = dict(_ANY)
        for each, entries in sorted(self.entries.items()):
            configs |= {f"{each}-a": entries, f"{each}-b": entries}
        file = {"version": "v1", "mig-configs": configs}
        since = {each: to_text(at) for each, at in sorted(self.since.items())}
        return {
            "apiVersion": CONFIG_MAP.api_version,
            "kind": CONFIG_MAP.name,
            "metadata": {
                "name": name,
                "namespace": namespace,
                "annotations": {SINCE: json.dumps(since)},
            },
            "data": {FILE: yaml.safe_dump(file, sort_keys=False)},
        }
