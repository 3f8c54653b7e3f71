"""Whether a GPU still answers this process.

A kernel that faults (an illegal address, a failed assertion) takes its process's context with it: from then on CUDA
answers every call of every lane with that error. Such a process is of no use to any model in it, and looks alive. So it
ends, and what it ran is run elsewhere, as after any other death.
"""

from __future__ import annotations

import os
import sys

LOST = 70
"""Exit status."""


def end_if_lost(error: BaseException) -> None:
    """After ``error`` of a model: end the process, without return, where its GPU has given it up."""
    if gpu_lost():
        print(f"the GPU has given this process up: {str(error)[:500]}", file=sys.stderr, flush=True)
        os._exit(LOST)


def gpu_lost() -> bool:
    """Of what torch runs; False in a process that uses no GPU through it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        # Another stream than any lane's: one whose capture broke has an error of its own.
        torch.cuda.Stream().synchronize()
    except RuntimeError:
        return True
    return False
