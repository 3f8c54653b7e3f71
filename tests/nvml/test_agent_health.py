"""An agent says in its RuntimeNode what NVML says of its GPU, soon, and what its server's metrics say with it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest

from support.node_api import NodeApi, node_api
from support.nvml_stand_in import Ailment, ail, xid
from support.server import PATIENCE_S, running_server, wait_until
from tessera_core.gpu.tables import H100_80_SXM


@pytest.fixture
def api(machine: Any, tmp_path: Path) -> Iterator[NodeApi]:
    """Of an agent and its server, on one GPU."""
    machine(H100_80_SXM)
    pynvml.nvmlInit()
    folders = [f"--{name}={tmp_path / name}" for name in ("models", "state")]
    command = [sys.executable, "-m", "tessera_runtime.agent.main", *folders]
    who = {"NODE_NAME": "n", "POD_NAME": "p", "POD_IP": "10.0.0.9", "POD_NAMESPACE": "default"}
    with node_api("n") as made:
        with running_server(tmp_path / "run"):
            process = subprocess.Popen(
                [*command, f"--run-dir={tmp_path / 'run'}", f"--api-server={made.url}"],
                env={**os.environ, **who, "TESSERA_CORES": "1"},
            )
            wait_until(lambda: made.status().get("devices"), lambda: f"status {made.status()}")
            yield made
            process.terminate()
        assert process.wait(PATIENCE_S) == 0  # it ends when its server has
    pynvml.nvmlShutdown()


def gpu(api: NodeApi) -> tuple[str, str]:
    (found,) = (each for each in api.status()["devices"] if each["product"] != "cpu")
    return found.get("health", ""), found.get("problem", "")


def test_an_xid_and_what_the_driver_asks_for_are_in_the_status(api: NodeApi) -> None:
    assert gpu(api) == ("Healthy", "")
    xid(0, 119)
    wait_until(lambda: gpu(api)[0] == "Unhealthy", lambda: str(gpu(api)))
    assert gpu(api)[1] == "Xid 119: needs a reset of the GPU"
    ail(0, Ailment.RECOVERY_ACTION, pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT)
    wait_until(lambda: "restart of the machine" in gpu(api)[1], lambda: str(gpu(api)))
