"""Freed memory waits in a worker for its next use, and is given back when told."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
import numpy as np
from tessera_runtime.memory import give_back_freed_memory, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(4 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
kept = faults()
give_back_freed_memory()
print(kept, faults())
"""


def test_freed_memory_is_kept_until_it_is_given_back():
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    kept, given_back = map(int, ran.stdout.split())
    pages = (4 << 20) // 4096
    assert kept < pages // 2
    assert given_back >= pages // 2
