"""A year of 10,000 GPUs and 2,000 services under one policy for capacity after another: ``make bench-fleet``.

Every policy sees the same rates and the same failures. Two samples say how far the figures can be trusted: slots of a service
that are simulated request by request, and plans of the real planner.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/fleet/main.py` as well as -m

import numpy as np
import yaml
from bench.control.lines import tables as _control_tables  # noqa: F401
from bench.fleet.lines import line
from bench.fleet.pictures import draw
from bench.fleet.planned import QUICK, Size, planned_lines, smaller
from bench.harness import arguments, versions, write_results
from bench.lines import Line, Reach, Says, misses
from rich.console import Console
