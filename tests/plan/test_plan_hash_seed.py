"""The same facts give the same plan in every process, whatever order sets and hashes have there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STATE = Path(__file__).parent / "golden" / "tenants-and-refusals.input.yaml"
PROGRAM = """
import sys, yaml
from tessera_core.plan import explain, plan, state_from_dict
state = state_from_dict(yaml.safe_load(open(sys.argv[1])))
decided = plan(state)
print(decided, explain(decided, state))
"""


def test_the_plan_does_not_depend_on_the_hash_seed() -> None:
    shown = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(STATE)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(shown) == 1
