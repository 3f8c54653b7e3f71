"""The same work without a server, one process on one core: what decoding and inference take at least."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench.dataplane.children import Answerer, Child, answer_questions
from bench.dataplane.loop import TUNED, rows_per_s
from bench.models.served import load
from bench.peers.base import BATCH_CAP
from bench.preprocess.photographs import photographs
from bench.preprocess.services import NETWORK
from bench.preprocess.transforms import IMAGE, ROW_SHAPE, decoded_at_full_size

from tessera_runtime.preprocess.image import ImageStage


class Alone(Child):
    """Loops over what is asked."""

    def __init__(self, models: Path, cores: tuple[int, ...]) -> None:
        super().__init__("bench.preprocess.alone", [str(models)], cores, TUNED)

    def rate(self, what: str, seconds: float) -> float:
        """Images per second of ``decode``, ``decode-full`` or ``infer``. Raises ChildFailed."""
        return float(self.ask(what=what, seconds=seconds)["rate_per_s"])


def decodes_per_s(decode: Callable[[bytes], object], seconds: float) -> float:
    """All photographs equally often."""
    passes, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        for encoded in photographs():
            decode(encoded)
        passes += 1
    return passes * len(photographs()) / spent


def main() -> None:
    def start() -> Answerer:
        model = load(Path(sys.argv[1]), (NETWORK,))
        stage, row = ImageStage(IMAGE), np.empty(ROW_SHAPE, np.float32)
        photographs()  # made once, before any is decoded
        rows = np.random.default_rng(0).standard_normal((BATCH_CAP, *ROW_SHAPE), "f4")

        def answer(question: dict[str, Any]) -> dict[str, Any]:
            what, seconds = question["what"], question["seconds"]
            if what == "infer":
                return {"rate_per_s": rows_per_s(model, rows, seconds)}
            if what == "decode":
                return {
                    "rate_per_s": decodes_per_s(lambda encoded: stage.into(encoded, row), seconds)
                }
            return {"rate_per_s": decodes_per_s(decoded_at_full_size, seconds)}

        return answer

    answer_questions(start)


if __name__ == "__main__":
    main()
