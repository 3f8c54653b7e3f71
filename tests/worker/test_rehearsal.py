"""A rehearsal leaves a process that can be forked, and forked ones that work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.torch_nets import Mlp, export
from tessera_runtime.engines import preload
from tessera_runtime.supervisor import ZYGOTE_ENVIRONMENT
from tessera_runtime.worker import rehearsal

FORKED = """
import os, sys
from pathlib import Path
import numpy as np
from tessera_runtime.engines.base import EngineDevice, ModelFile
from tessera_runtime.engines.loading import load_engine
from tessera_runtime.engines.preload import check_single_threaded
from tessera_runtime.worker.rehearsal import rehearse

rehearse(("torch",))
check_single_threaded("the rehearsal")
if os.fork() == 0:
    try:
        modules = set(sys.modules)
        file = ModelFile(sys.argv[1], "TorchExport", allow_code=False)
        lane = load_engine(file, EngineDevice("cpu", threads=2)).lane(4096)
        lane.stage({"x": (4096, 64)})["x"][...] = 1
        assert lane.run()["output_0"].shape == (4096, 3)
        assert not {name for name in sys.modules.keys() - modules if name.startswith("torch")}
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_fork_of_a_rehearsed_process_loads_and_runs_on_several_threads(tmp_path: Path):
    path = export(Mlp(width=64), tmp_path / "mlp.pt2", (torch.zeros(2, 64),))
    ran = subprocess.run(
        [sys.executable, "-c", FORKED, str(path)],
        env=os.environ | ZYGOTE_ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr


def test_a_rehearsal_that_fails_is_told_and_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(preload, "_PYTHON_EXAMPLE", "def load(device, options): return 1 / 0")
    rehearsal.rehearse(())
    told = capsys.readouterr().err
    assert "rehearsal of python failed" in told
    assert "ZeroDivisionError" in told
