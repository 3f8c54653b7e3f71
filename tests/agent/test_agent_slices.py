"""How slices are named while they come and go, by what the RuntimeNode says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tessera_core.gpu.devices import DeviceClass, cpu_class
from tessera_core.gpu.geometry import Placement
from tessera_runtime.agent import slices as slices_module
from tessera_runtime.agent.observe import device_class, kind_of, spots
from tessera_runtime.agent.slices import Slices
from tessera_runtime.agent.translate import TranslationError
from tessera_runtime.devices.inventory import Gpu, Inventory
from tessera_runtime.devices.mig import MigSlice

PRODUCT = "NVIDIA-H100-80GB-HBM3"
WHOLE = Gpu(0, "GPU-1", "NVIDIA H100 80GB HBM3", 81559, 132, mig_enabled=False)


def cut_as(*uuids: str) -> tuple[MigSlice, ...]:
    return tuple(
        MigSlice(uuid, Placement("1g.10gb", start), 16, 9984) for start, uuid in enumerate(uuids)
    )


CUT = replace(WHOLE, uuid="GPU-2", mig_enabled=True, slices=cut_as("MIG-a", "MIG-b"))
SEEN = Inventory((0, 1, 2, 3), 4096, (CUT,))


def piece(uuid: str, start: int) -> dict[str, object]:
    return {"uuid": uuid, "profile": "1g.10gb", "start": start}


def document(**status: object) -> dict[str, object]:
    return {"metadata": {"name": "n"}, "status": status}


def cuts(*pieces: Mapping[str, object]) -> dict[str, object]:
    return document(cuts=[{"uuid": "GPU-2", "slices": list(pieces)}])


def names(known: Slices) -> dict[str, int]:
    return {each.uuid: each.placement.start for gpu in known.seen.gpus for each in gpu.slices}


class Changes:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_places_that_the_partitioner_tells_are_the_names() -> None:
    changes = Changes()
    known = Slices(SEEN, changes)
    known.hear(None)
    known.hear(document())
    assert (names(known), changes.count) == ({"MIG-a": 0, "MIG-b": 1}, 0)
    for _ in range(2):
        known.hear(cuts(piece("MIG-b", 0), piece("MIG-a", 5), piece("MIG-gone", 1)))
        assert (names(known), changes.count) == ({"MIG-b": 0, "MIG-a": 5}, 1)


def test_an_agent_that_starts_anew_goes_on_with_the_names_that_were_told() -> None:
    told = {"uuid": "GPU-2", "product": PRODUCT, "memoryMiB": 1, "slices": [piece("MIG-a", 3)]}
    known = Slices(SEEN, Changes())
    known.hear(document(devices=[told]))
    assert names(known) == {"MIG-b": 0, "MIG-a": 3}
    swapped = {**told, "slices": [piece("MIG-a", 1), piece("MIG-b", 0)]}
    known.hear(document(devices=[swapped]))
    assert names(known) == {"MIG-b": 0, "MIG-a": 3}, "what is told later is its own"


def test_entries_of_a_status_that_make_no_sense_cost_only_themselves() -> None:
    known = Slices(SEEN, Changes())
    good = {"uuid": "GPU-2", "slices": [piece("MIG-a", 6)]}
    known.hear(document(cuts=[{"uuid": "GPU-9", "slices": [{"start": -1}]}, "none", good]))
    assert names(known)["MIG-a"] == 6


async def test_a_cut_that_is_told_is_looked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    anew = replace(SEEN, gpus=(replace(CUT, slices=cut_as("MIG-c", "MIG-b")),))
    monkeypatch.setattr(slices_module, "look_again", lambda _: anew)
    changed = asyncio.Event()
    known = Slices(SEEN, changed.set)
    looking = asyncio.create_task(known.run())
    known.hear(cuts(piece("MIG-b", 1), piece("MIG-c", 4)))
    async with asyncio.timeout(10):
        await changed.wait()
    looking.cancel()
    assert names(known) == {"MIG-b": 1, "MIG-c": 4}


async def test_what_the_partitioner_has_and_two_looks_do_not_find_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    found = SEEN

    def look_again(_: Inventory) -> Inventory:
        nonlocal looks
        looks += 1
        return found

    monkeypatch.setattr(slices_module, "look_again", look_again)
    monkeypatch.setattr(slices_module, "LOOK_S", 0.001)
    changed = asyncio.Event()
    known = Slices(SEEN, changed.set)
    known.hear(cuts(piece("MIG-a", 0), piece("MIG-b", 1), piece("MIG-c", 4)))
    changed.clear()
    looking = asyncio.create_task(known.run())
    async with asyncio.timeout(10):
        await changed.wait()
    assert looks >= 2
    [gpu] = known.seen.gpus
    assert gpu.problem == (
        "MIG-c, the 1g.10gb@4, is not offered: this container does not see it; NVIDIA's container toolkit has to be in CDI "
        "mode, see docs/mig.md"
    )
    assert [each.uuid for each in gpu.slices] == ["MIG-a", "MIG-b"]
    changed.clear()
    found = replace(SEEN, gpus=(replace(CUT, slices=cut_as("MIG-a", "MIG-b", "MIG-c")),))
    async with asyncio.timeout(10):
        await changed.wait()
    looking.cancel()
    assert known.seen.gpus[0].problem == ""


def test_where_one_look_does_not_find_it_a_cut_may_have_taken_it() -> None:
    known = Slices(SEEN, Changes())
    told = {"GPU-2": {"MIG-a": Placement("1g.10gb", 0), "MIG-gone": Placement("1g.10gb", 4)}}
    assert known.compared(CUT, told).problem == ""
    assert "MIG-gone" in known.compared(CUT, told).problem
    assert known.compared(CUT, {"GPU-2": {}}).problem == ""
    assert known.compared(CUT, told).problem == ""


async def test_where_there_are_no_gpus_there_is_nothing_to_look_for() -> None:
    await Slices(replace(SEEN, gpus=()), Changes()).run()


def test_kinds_of_place_are_gpus_and_slices_each_once_and_cores_only_without() -> None:
    both = replace(SEEN, gpus=(WHOLE, CUT, replace(CUT, uuid="GPU-3")))
    found = spots(both, (1, 2))
    assert [(each.device, each.slice) for each in found] == [
        ("GPU-2", "1g.10gb@0"),
        ("GPU-1", "full"),
    ]
    assert found[0].place == DeviceClass(PRODUCT, "1g.10gb", 16, 9984)
    assert all(each.place == device_class(both, each.device, each.slice) for each in found)
    on_cores = spots(replace(SEEN, gpus=(replace(CUT, slices=()),)), (1, 2, 8))
    assert [(each.place, each.slice) for each in on_cores] == [
        (cpu_class(1, 4096), "cpu-1@3"),
        (cpu_class(2, 4096), "cpu-2@2"),
    ]
    with pytest.raises(TranslationError, match="no such device"):
        device_class(SEEN, "GPU-9", "full")


def test_a_device_is_of_a_kind_by_its_id_also_where_it_is_gone() -> None:
    kind = kind_of(SEEN)
    assert kind("GPU-2/1g.10gb@0") == (PRODUCT, "1g.10gb")
    assert kind("cpu/cpu-2@1") == ("cpu", "cpu-2")
    assert kind("GPU-of-before") == ("", "full")
