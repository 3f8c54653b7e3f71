"""`make demo` end to end, with short phases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_demo_serves_what_it_trained_and_loses_nothing(tmp_path: Path) -> None:
    demo = [sys.executable, "examples/digits/demo.py", "--out", str(tmp_path), "--seconds", "4"]
    ran = subprocess.run(demo, cwd=ROOT, capture_output=True, text=True, timeout=380, check=False)
    said = ran.stdout + ran.stderr
    verdicts = [line for line in ran.stdout.splitlines() if line.startswith(("ok ", "FAILED"))]
    assert len(verdicts) == 4, said
    failed = [line for line in verdicts if line.startswith("FAILED")]
    # Whether the SLO holds is a matter of speed on a machine that others share: not this test's to judge.
    assert all("within" in line and "over both phases" in line for line in failed), said
    assert ran.returncode == (1 if failed else 0), said
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
