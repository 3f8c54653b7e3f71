"""What of a machine a runtime pod gives to models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tessera_runtime.agent.main import SettingInvalid, devices, identity
from tessera_runtime.devices.inventory import SERVER_MIB, Inventory, memory_limit, of_pod

SEEN = Inventory((4, 6, 8), 8192, ())


def test_a_pod_gives_its_first_cores_and_what_the_server_leaves_of_its_memory() -> None:
    found = of_pod(SEEN, cores=2, memory_mib=4096)
    assert (found.cores, found.memory_mib) == ((4, 6), 4096 - SERVER_MIB)
    assert of_pod(SEEN, None, None).memory_mib == 8192 - SERVER_MIB
    assert of_pod(SEEN, cores=64, memory_mib=None).cores == SEEN.cores, "never more than there are"
    assert of_pod(SEEN, cores=1, memory_mib=600).memory_mib == 300, "half of a small pod"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "1073741824\n"}, 1 << 30),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "1073741824\n"}, 1 << 30),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 9223372036854771712),
        ({}, None),
    ],
)
def test_the_memory_limit_is_read_of_both_versions_of_cgroups(
    tmp_path: Path, files: dict[str, str], limit: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == limit


def test_the_environment_says_who_an_agent_is() -> None:
    environment = {"NODE_NAME": "n", "POD_NAME": "p", "POD_NAMESPACE": "s", "POD_IP": "10.0.0.1"}
    who = identity(environment, activator=False)
    assert (who.node, who.pod, who.address, who.namespace) == ("n", "p", "10.0.0.1", "s")
    assert identity(environment, activator=True).node == "p"
    with pytest.raises(SettingInvalid, match="NODE_NAME"):
        identity({**environment, "NODE_NAME": ""}, activator=False)


def test_settings_are_checked() -> None:
    cores = os.sched_getaffinity(0)
    found = devices({"TESSERA_CORES": "1"}, activator=False)
    assert found is not None
    assert found.cores == (min(cores),)
    assert devices({}, activator=True) is None
    with pytest.raises(SettingInvalid, match=r"TESSERA_CORES: found '1\.5'"):
        devices({"TESSERA_CORES": "1.5"}, activator=False)
