"""The figures of this bench, and one printed table for each case."""

from __future__ import annotations

from functools import partial

from bench import lines

# Name of a figure: its column and its format.
FIGURES: lines.Columns = {
    "gpu_hours": ("GPU hours", "{:,.0f}"),
    "times_tessera": ("x tessera", "{:.2f}"),
    "cost": ("cost", "{:,.0f}"),
    "cost_times_tessera": ("x tessera", "{:.2f}"),
    "attainment": ("in SLO", "{:.5f}"),
    "below": ("services below SLO", "{:.0f}"),
    "late_ppm": ("late ppm", "{:,.1f}"),
    "lost_ppm": ("lost ppm", "{:.3f}"),
    "launches": ("launches", "{:,.0f}"),
    "recuts": ("GPUs cut", "{:,.0f}"),
    "failed": ("instances that failed", "{:,.0f}"),
    "most_gpus": ("GPUs, most", "{:,.0f}"),
    "short_slots": ("slots short of GPUs", "{:,.0f}"),
    "cells": ("slots of a service", "{:.0f}"),
    "by_tables": ("in SLO by tables", "{:.5f}"),
    "by_events": ("by events", "{:.5f}"),
    "off": ("apart", "{:.5f}"),
    "typical": ("median apart", "{:.5f}"),
    "most": ("most", "{:.4f}"),
    "too_high": ("promised .01 too much", "{:.3f}"),
    "gpu_hours_ratio": ("GPU hours", "{:.3f}"),
    "launches_ratio": ("launches", "{:.2f}"),
    "recuts_ratio": ("GPUs cut", "{:.2f}"),
    "refused": ("refused", "{:.0f}"),
    "seconds_per_plan": ("s a plan", "{:.2f}"),
    "seconds": ("s", "{:,.0f}"),
}

line = partial(lines.line, FIGURES)
"""A line of this bench: case, who, figures, what they have to reach."""
