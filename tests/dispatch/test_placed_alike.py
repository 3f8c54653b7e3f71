"""Which members may run as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.targets import member, service
from tessera_runtime.target import DeviceTarget, placed_alike

DEVICES = {
    device.id: device
    for device in (
        DeviceTarget("cpu-0", "cpu", (0,)),
        DeviceTarget("cpu-1", "cpu", (1,)),
        DeviceTarget("wide", "cpu", (2, 3), threads=2),
        DeviceTarget("many", "cpu", (2, 3)),
        DeviceTarget("gpu", "cuda"),
    )
}


def members(*places: dict[str, int], **settings: object):
    return service(
        "m",
        *(
            member(name, Path(name), instances=place, **settings)
            for name, place in zip("abc", places, strict=False)
        ),
    )


def test_the_same_instances_on_single_cores_are_alike():
    everywhere = {"cpu-0": 2, "cpu-1": 1}
    assert placed_alike(members(everywhere, everywhere, everywhere), DEVICES)


@pytest.mark.parametrize(
    "places",
    [
        ({"cpu-0": 1},),
        ({}, {}),
        ({"cpu-0": 1}, {"cpu-1": 1}),
        ({"cpu-0": 1}, {"cpu-0": 2}),
        ({"cpu-0": 1}, {"cpu-0": 1}, {"cpu-0": 1, "cpu-1": 1}),
        ({"wide": 1}, {"wide": 1}),
        ({"cpu-0": 1, "wide": 1}, {"cpu-0": 1, "wide": 1}),
        ({"many": 1}, {"many": 1}),
        ({"gpu": 1}, {"gpu": 1}),
    ],
    ids=[
        "a lone one",
        "nowhere",
        "apart",
        "more",
        "one elsewhere too",
        "wide",
        "partly",
        "many cores",
        "a GPU",
    ],
)
def test_others_are_not(places: tuple[dict[str, int], ...]):
    assert not placed_alike(members(*places), DEVICES)


def test_members_that_an_answer_may_do_without_are_not():
    assert not placed_alike(members({"cpu-0": 1}, {"cpu-0": 1}, required=False), DEVICES)
