"""What of PREBA is simulated: batches that wait, and an A100 in slices whose images the host decodes.

Laws of batch times stand for GPUs that are not there, so it needs one core and no server: ``batching.py`` and ``preba.py`` say
what is compared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python bench/preprocess/simulated.py` as well

from bench.dataplane.main import revision
from bench.harness import arguments, write_results
from bench.preprocess import batching, preba

NAME = "preprocess-simulated"


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(__doc__.partition("\n\n")[0]).parse_args(argv)
    facts: dict[str, object] = {"revision": revision()}
    for part in (preba, batching):
        record = part.measure(chosen.quick)
        facts[part.__name__.rpartition(".")[2]] = record
        print("\n".join([*part.lines(record), ""]))
    if written := write_results(NAME, chosen, facts, []):
        print(f"written: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
