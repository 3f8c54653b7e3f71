"""Which device nodes let a process use which MIG instance, and how they are made before the instances are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from support.capability_files import MEM, MINORS, load_driver, need_mknod
from tessera_core.gpu.capabilities import Capability, access_minors, major
from tessera_runtime.partitioner.capability_nodes import Machine, NoCapabilities, make_nodes

DEVICES = """\
Character devices:
  1 mem
195 nvidia
195 nvidiactl
234 nvidia-caps-imex-channels
508 nvidia-caps

Block devices:
259 blkext
300 nvidia-caps
"""


def machine_of(folder: Path) -> Machine:
    machine = Machine(folder / "proc", folder / "dev")
    machine.dev.mkdir()
    return machine


def numbers(machine: Machine) -> dict[str, tuple[int, int]]:
    found = {path.name: path.lstat() for path in machine.nodes.iterdir()}
    assert all(stat.S_ISCHR(each.st_mode) for each in found.values())
    return {name: (os.major(each.st_rdev), os.minor(each.st_rdev)) for name, each in found.items()}


def test_the_rights_to_use_instances_are_read_and_those_to_cut_and_watch_are_not() -> None:
    text = "".join(f"{name} {minor}\n" for name, minor in MINORS.items())
    assert access_minors(text) == {
        Capability(0, 0): 3,
        Capability(0, 0, 0): 5,
        Capability(0, 1): 7,
        Capability(1, 0): 8,
        Capability(1, 0, 0): 9,
    }


@pytest.mark.parametrize(
    "line",
    [
        "",
        "config 1",
        "sys/config 3",
        "gpu0/gi0 3",
        "gpu0/gi0/access",
        "gpu0/gi0/access -3",
        "gpu0/gi0/ci0/monitor 3",
        "gpu0/gi0/access 3 4",
        "gpux/gi0/access 3",
        "gpu0/gi0/access 99999999",
    ],
)
def test_lines_of_another_form_give_no_right(line: str) -> None:
    assert access_minors(f"{line}\ngpu0/gi1/access 7\n") == {Capability(0, 1): 7}


def test_the_major_is_that_of_the_character_device_of_this_very_name() -> None:
    assert major(DEVICES) == 508
    assert major(DEVICES.replace("508 nvidia-caps\n", "")) is None
    assert major("") is None


def test_nodes_of_all_instances_of_the_gpus_that_are_there_are_made(tmp_path: Path) -> None:
    need_mknod(tmp_path)
    machine = machine_of(tmp_path)
    load_driver(machine.proc)
    names = make_nodes(machine)
    assert names == ("nvidia-cap3", "nvidia-cap5", "nvidia-cap7")
    assert numbers(machine) == {f"nvidia-cap{minor}": (MEM, minor) for minor in (3, 5, 7)}
    for name in names:
        assert stat.S_IMODE((machine.nodes / name).lstat().st_mode) == 0o444
    load_driver(machine.proc, gpus={"0000:07:00.0": 0, "0000:0a:00.0": 1})
    assert make_nodes(machine) == (*names, "nvidia-cap8", "nvidia-cap9")


def test_nodes_that_are_right_stay_and_others_of_the_name_are_replaced(tmp_path: Path) -> None:
    need_mknod(tmp_path)
    machine = machine_of(tmp_path)
    load_driver(machine.proc)
    machine.nodes.mkdir()
    os.mknod(machine.nodes / "nvidia-cap3", stat.S_IFCHR | 0o400, os.makedev(MEM, 3))
    os.mknod(machine.nodes / "nvidia-cap5", stat.S_IFCHR | 0o444, os.makedev(MEM, 8))
    (machine.nodes / "nvidia-cap7").write_text("no device")
    make_nodes(machine)
    assert numbers(machine) == {f"nvidia-cap{minor}": (MEM, minor) for minor in (3, 5, 7)}
    mode = (machine.nodes / "nvidia-cap3").lstat().st_mode
    assert stat.S_IMODE(mode) == 0o400, "the driver's own node is as it was made"


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("devices", "devices"),
        ("driver/nvidia/gpus/0000:07:00.0/information", "gpus: no GPU"),
        ("driver/nvidia-caps/mig-minors", "mig-minors"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, missing: str, named: str) -> None:
    machine = machine_of(tmp_path)
    load_driver(machine.proc)
    (machine.proc / missing).unlink()
    with pytest.raises(NoCapabilities, match=named):
        make_nodes(machine)


def test_a_driver_that_is_not_loaded_or_knows_no_instances_has_no_nodes(tmp_path: Path) -> None:
    machine = machine_of(tmp_path)
    load_driver(machine.proc, major=None)
    with pytest.raises(NoCapabilities, match="no nvidia-caps, expected NVIDIA's driver"):
        make_nodes(machine)
    load_driver(machine.proc, minors={"config": 1, "monitor": 2})
    with pytest.raises(NoCapabilities, match="no instances of these GPUs"):
        make_nodes(machine)
    assert not machine.nodes.exists()


def test_a_file_that_is_too_long_is_not_read_in_part(tmp_path: Path) -> None:
    machine = machine_of(tmp_path)
    load_driver(machine.proc, minors={f"gpu0/gi{instance}/access": 3 for instance in range(50_000)})
    with pytest.raises(NoCapabilities, match="mig-minors: found more than"):
        make_nodes(machine)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    machine = machine_of(tmp_path)
    load_driver(machine.proc)
    machine.nodes.write_text("a file in its place")
    with pytest.raises(NoCapabilities, match="cannot be made"):
        make_nodes(machine)
