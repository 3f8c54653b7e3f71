"""What a process is to those above it: it ends with its parent, and gets no more rights than that has."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
"""linux/prctl.h: the signal a process gets when its parent dies."""

PR_SET_NO_NEW_PRIVS = 38
"""linux/prctl.h: programs that this process or its descendants start gain nothing by their file's mode."""


def gain_no_privileges() -> None:
    """From now on, and for good, no setuid program raises the rights of this process."""
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def die_with(parent: int, signum: signal.Signals) -> None:
    """Get ``signum`` when ``parent`` dies; exit now if it is gone already.

    Tied to the parent's *thread* that started us: both the supervisor and the zygote have only one.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(1)
