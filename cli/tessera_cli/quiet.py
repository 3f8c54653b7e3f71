"""The two ends of a command that are nobody's error: the reader left, or the user pressed Ctrl-C."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import wraps

INTERRUPTED = 130
"""128 + SIGINT, as shells say it."""

Run = Callable[[argparse.Namespace], int]


def quietly(run: Run) -> Run:
    """``run`` without a traceback at those two ends; output is flushed here, where that can be told."""

    @wraps(run)
    def quiet(arguments: argparse.Namespace) -> int:
        try:
            code = run(arguments)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # The interpreter flushes once more when it ends: let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt:
            return INTERRUPTED

    return quiet
