"""The ConfigMap of NVIDIA's MIG manager: what is in its file, since when, and for how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import yaml

from support.objects import cpu, gpu, node
from tessera_core.api.runtimenode import DeviceStatus, MigMode, SliceStatus
from tessera_core.gpu.geometry import Geometry, Placement
from tessera_operator.mig_layouts import (
    FILE,
    KEPT_S,
    MOST_LAYOUTS,
    Layout,
    Layouts,
    has_counts,
    layout_of,
    named,
)

SMALL, WIDE = Placement("1g.10gb", 0), Placement("3g.40gb", 4)
MIXED = Layout(((0, (SMALL, WIDE)), (1, (SMALL, WIDE)), (2, None)))
WHOLE = Layout(((0, None), (1, None), (2, None)))
EMPTY = Layout(((0, ()), (1, ()), (2, ())))
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
NEVER: tuple[str, ...] = ()


def test_the_file_counts_slices_and_joins_gpus_that_are_cut_alike() -> None:
    found = Layouts().keep([MIXED, WHOLE, EMPTY], NEVER, NOW).document("gpu-operator", "layouts")
    file = yaml.safe_load(found["data"][FILE])
    assert file["version"] == "v1"
    configs = file["mig-configs"]
    assert configs.keys() == {
        *("all-disabled", "all-enabled"),
        *(name for each in (MIXED, WHOLE, EMPTY) for name in each.names),
    }
    assert configs["all-disabled"] == [{"devices": "all", "mig-enabled": False}]
    for name in MIXED.names:
        assert configs[name] == [
            {
                "devices": [0, 1],
                "mig-enabled": True,
                "mig-devices": {"1g.10gb": 1, "3g.40gb": 1},
            },
            {"devices": [2], "mig-enabled": False},
        ]
    assert configs[WHOLE.names[0]] == [{"devices": [0, 1, 2], "mig-enabled": False}]
    assert configs[EMPTY.names[0]] == [
        {"devices": [0, 1, 2], "mig-enabled": True, "mig-devices": {}}
    ]


def test_a_layout_is_named_by_what_the_manager_can_tell_apart() -> None:
    elsewhere = Layout(((0, (Placement("1g.10gb", 2), WIDE)), *MIXED.gpus[1:]))
    assert elsewhere.name == MIXED.name
    other = Layout((*MIXED.gpus[:2], (2, (SMALL,))))
    assert len({MIXED.name, WHOLE.name, EMPTY.name, other.name}) == 4
    assert len({*MIXED.names, *WHOLE.names}) == 4


def test_what_was_written_is_read_again_with_its_age() -> None:
    written = Layouts().keep([MIXED], NEVER, NOW)
    later = NOW + timedelta(seconds=90)
    read = Layouts.read(written.keep([MIXED, WHOLE], NEVER, later).document("n", "m"))
    assert read.ages_s(later + timedelta(seconds=5)) == {MIXED.name: 95.0, WHOLE.name: 5.0}
    assert read.entries[MIXED.name] == MIXED.entries


def test_what_somebody_spoilt_is_written_anew() -> None:
    good = Layouts().keep([MIXED], NEVER, NOW).document("n", "m")
    assert Layouts.read({**good, "data": {FILE: "mig-configs: ["}}) == Layouts()
    assert Layouts.read({**good, "data": {FILE: "version: v1"}}) == Layouts()
    assert Layouts.read({"metadata": {"annotations": {"tessera.dev/layouts": "[]"}}}) == Layouts()
    assert Layouts.read({"metadata": {"name": "m"}}) == Layouts()


def test_a_layout_stays_while_a_node_is_labelled_with_it_and_else_for_a_day() -> None:
    written = Layouts().keep([MIXED, WHOLE], NEVER, NOW)
    soon, late = NOW + timedelta(seconds=KEPT_S - 1), NOW + timedelta(seconds=KEPT_S)
    assert written.keep([], NEVER, soon).entries.keys() == {MIXED.name, WHOLE.name}
    kept = written.keep([], [WHOLE.names[1], "all-disabled", "tessera-gone-a"], late)
    assert kept.entries.keys() == {WHOLE.name}
    assert kept.since[WHOLE.name] == NOW


def test_a_config_map_has_room_for_so_many_and_labels_come_first() -> None:
    many = [Layout(((index, ()),)) for index in range(MOST_LAYOUTS)]
    written = Layouts().keep([MIXED], NEVER, NOW).keep(many, MIXED.names, NOW)
    assert len(written.entries) == MOST_LAYOUTS
    assert MIXED.name in written.entries
    eight = Layout(tuple((index, (SMALL,) * index) for index in range(8)))
    largest = {f"tessera-{index:012}": eight.entries for index in range(MOST_LAYOUTS)}
    file = Layouts(largest, dict.fromkeys(largest, NOW)).document("n", "m")["data"][FILE]
    assert len(file.encode()) < 1 << 20


def board(index: int | None, *cut: Placement, mode: MigMode = MigMode.ENABLED) -> DeviceStatus:
    slices = tuple(
        SliceStatus(f"MIG-{index}-{at}", each.profile, each.start) for at, each in enumerate(cut)
    )
    return replace(gpu(f"GPU-{index}", mig_capable=True, mig_mode=mode, slices=slices), index=index)


def test_the_layout_of_a_node_has_all_its_gpus_in_nvmls_order() -> None:
    off = board(2, mode=MigMode.DISABLED)
    here = node("n0", off, board(1, WIDE), board(0), cpu())
    goal: Geometry = (SMALL, WIDE)
    assert layout_of(here, {"GPU-0": goal}) == Layout(((0, goal), (1, (WIDE,)), (2, None)))
    assert layout_of(here, {"GPU-2": goal}) == Layout(((0, ()), (1, (WIDE,)), (2, goal)))


def test_without_the_index_of_a_gpu_no_layout_is_known() -> None:
    assert layout_of(node("n0", board(0, WIDE), board(None, WIDE)), {}) is None
    assert layout_of(node("n0", cpu()), {}) is None


def test_counts_are_what_is_compared() -> None:
    assert has_counts(board(0, Placement("3g.40gb", 0), Placement("1g.10gb", 6)), (SMALL, WIDE))
    assert not has_counts(board(0, WIDE), (SMALL, WIDE))
    assert not has_counts(board(0, mode=MigMode.DISABLED), (SMALL,))


def test_slices_get_the_wanted_places_and_keep_those_that_they_have() -> None:
    wide, low, high = Placement("3g.40gb", 0), Placement("1g.10gb", 4), Placement("1g.10gb", 6)
    found = board(0, Placement("3g.40gb", 4), Placement("1g.10gb", 6), Placement("1g.10gb", 0))
    places = {
        each.uuid: (each.profile, each.start) for each in named(found.slices, (wide, low, high))
    }
    assert places == {
        "MIG-0-0": ("3g.40gb", 0),
        "MIG-0-1": ("1g.10gb", 6),
        "MIG-0-2": ("1g.10gb", 4),
    }
