"""A fork of a process that has started CUDA's driver cannot use a GPU, so the zygote must not start it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import c_library
from tessera_runtime.supervisor import ZYGOTE_ENVIRONMENT

_NVML = """
int nvmlInit(void) { return 0; }
int nvmlDeviceGetCount_v2(int *count) { *count = 1; return 0; }
"""
"""As much of NVML as torch asks on a machine with one GPU."""

_ZYGOTE = """
import os
from tessera_runtime.engines.preload import preload
from tessera_runtime.worker.rehearsal import rehearse
preload("torch")
rehearse(("torch",))
import torch
if not os.fork():
    print(torch.cuda.is_available(), torch.cuda._is_in_bad_fork(), flush=True)
    os._exit(0)
os.wait()
os._exit(0)  # torch's own clean-up has things to say
"""


@pytest.mark.slow
def test_workers_of_a_zygote_on_a_machine_with_a_gpu_can_use_it(tmp_path: Path):
    source = tmp_path / "nvml.c"
    source.write_text(_NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    c_library.build(library, [source])
    search = f"{tmp_path}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    ran = subprocess.run(
        [sys.executable, "-c", _ZYGOTE],
        env=os.environ | ZYGOTE_ENVIRONMENT | {"LD_LIBRARY_PATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "True False\n", ran.stderr
