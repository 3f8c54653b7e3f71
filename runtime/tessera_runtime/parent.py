"""Ending with the process that started us, also when it is killed."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
"""linux/prctl.h: the signal a process gets when its parent dies."""


def die_with(parent: int, signum: signal.Signals) -> None:
    """Get ``signum`` when ``parent`` dies; exit now if it is gone already.

    Tied to the parent's *thread* that started us: both the supervisor and the zygote have only one.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(1)
