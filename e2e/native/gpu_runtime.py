"""The container runtime ``nvidia`` of a node without GPUs: it gives containers the driver's stand-in.

NVIDIA's container runtime adds the driver's library and the GPUs to what runc is told of a container. This one adds what
lies in ``gpus`` of the node's folder: a library, and the file with its machine, which all containers of the node share as
they would the GPUs. Containers of other runtime classes see none of it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

HANDLER = "nvidia"
_INSIDE = "/run/gpus"
_MACHINE = "machine"
_ENVIRONMENT = "environment.json"


def program(folder: Path) -> str:
    """What containerd runs in place of runc. ``folder``: of the node."""
    return f"""\
#!{sys.executable}
import json, os, sys

gpus, arguments = {str(_gpus(folder))!r}, sys.argv[1:]
if "create" in arguments and os.path.isdir(gpus):
    path = os.path.join(arguments[arguments.index("--bundle") + 1], "config.json")
    with open(path) as file:
        config = json.load(file)
    with open(os.path.join(gpus, {_ENVIRONMENT!r})) as file:
        config["process"].setdefault("env", []).extend(json.load(file))
    mount = {{"destination": {_INSIDE!r}, "type": "bind", "source": gpus, "options": ["rbind", "rw"]}}
    config.setdefault("mounts", []).append(mount)
    with open(path, "w") as file:
        json.dump(config, file)
os.execvp("runc", ["runc", *arguments])
"""


def give_gpus(folder: Path, library: Path, environment: Mapping[str, str]) -> None:
    """Have containers of the class see GPUs from their next start on.

    ``folder``: of the node; ``library``: under the name that the bindings look for; ``environment``: of the library.
    """
    gpus = _gpus(folder)
    gpus.mkdir()
    (gpus / library.name).write_bytes(library.read_bytes())
    machine = gpus / _MACHINE
    machine.touch()
    machine.chmod(0o666)  # agents are nobody, and the library writes its lock into it
    inside = {"LD_LIBRARY_PATH": _INSIDE, "NVML_STAND_IN_STATE": f"{_INSIDE}/{_MACHINE}"}
    _tell(gpus, {**environment, **inside})


def change_gpus(folder: Path, environment: Mapping[str, str]) -> None:
    """Have containers that start from now on be told this beside what they were told before, or in its place."""
    before = json.loads((_gpus(folder) / _ENVIRONMENT).read_text())
    _tell(_gpus(folder), {**dict(line.split("=", 1) for line in before), **environment})


def from_outside(folder: Path) -> dict[str, str]:
    """The environment of a program of this machine, in no container, that is to find the GPUs of a node."""
    gpus = _gpus(folder)
    told = dict(line.split("=", 1) for line in json.loads((gpus / _ENVIRONMENT).read_text()))
    return told | {"LD_LIBRARY_PATH": str(gpus), "NVML_STAND_IN_STATE": str(gpus / _MACHINE)}


def take_gpus(folder: Path) -> None:
    """Have containers see none any more; by now none with the class may run."""
    shutil.rmtree(_gpus(folder))


def _tell(gpus: Path, environment: Mapping[str, str]) -> None:
    lines = [f"{name}={value}" for name, value in environment.items()]
    written = gpus / f"{_ENVIRONMENT}.new"
    written.write_text(json.dumps(lines))
    written.rename(gpus / _ENVIRONMENT)  # the runtime may be reading it


def _gpus(folder: Path) -> Path:
    return folder / "gpus"
