"""Decoding on one GPU beside one processor core: images a second by batch, and how much of a core each image takes.

Both are lanes as they serve, without a server: encoded images in, normalised tensors in host memory out. The images are
drawn, of 0.5 to 2 megapixels and of different sizes, so that a machine needs nothing beside Tessera's own packages; it also
needs torchvision for its torch, which the bundle for machines without a registry (``bench/bundle.py``) does not hold. Where
there is no GPU or no torchvision, the record says so::

    python3 bench/preprocess/gpu_decode.py --write gpu-decode.json
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(
    0, str(Path(__file__).parents[2])
)  # `python bench/preprocess/gpu_decode.py` as well

from bench.dataplane.gpu import NoGpu, gpu_name
from bench.harness import Row, arguments, write_results
from PIL import Image

from tessera_core.api.preprocess import ImagePreprocess, Preprocess
from tessera_core.api.stages import to_document
from tessera_runtime.devices.inventory import inventory
from tessera_runtime.engines.base import EngineDevice, EngineLane, LoadRefused, ModelFile
from tessera_runtime.engines.loading import load_engine
from tessera_runtime.preprocess.examples import example

NAME = "gpu-decode"
STAGE = Preprocess(
    image=ImagePreprocess(
        size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
)
"""torchvision's evaluation transform, with the statistics of ImageNet."""

SCALES = (0.7, 0.76, 0.82, 0.9, 1.0, 1.12, 1.25, 1.4)
"""Of the sides of the megapixel that stages are measured with."""
BATCHES = (1, 4, 16, 64)
SECONDS, QUICK_SECONDS = 2.0, 0.1
WARM = 2
"""Batches before those that count."""

Record = dict[str, Any]


@lru_cache(maxsize=1)
def images() -> tuple[bytes, ...]:
    """JPEGs of 100 to 500 KiB."""
    whole = Image.open(io.BytesIO(example(STAGE)))
    found = []
    for scale in SCALES:
        file = io.BytesIO()
        size = round(scale * whole.width), round(scale * whole.height)
        whole.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=88)
        found.append(file.getvalue())
    return tuple(found)


def measure(quick: bool) -> Record:
    """``on``: the GPU; ``jpeg_engines``: of each GPU by NVML; ``rows``: one for each device and batch, of the GPU first.
    Or ``skipped``: why not.
    """
    try:
        found: Record = {"on": gpu_name()}
        seconds = QUICK_SECONDS if quick else SECONDS
        rows = [row for kind in ("cuda", "cpu") for row in rates(kind, seconds)]
    except (NoGpu, LoadRefused) as error:
        return {"skipped": str(error)}
    found["jpeg_engines"] = [gpu.jpeg_engines for gpu in inventory().gpus]
    return {**found, "rows": rows}


def rates(kind: str, seconds: float) -> list[Record]:
    """Of one lane on a device of ``kind``, by batch. Raises LoadRefused."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-decode-") as folder:
        document = Path(folder) / "stage.json"
        document.write_bytes(to_document(STAGE))
        file = ModelFile(str(document), "Preprocess", allow_code=False)
        engine = load_engine(file, EngineDevice(kind))
        lane = engine.lane(max(BATCHES))
        try:
            return [
                {"device": kind, "batch": batch, **_rate(lane, batch, seconds)} for batch in BATCHES
            ]
        finally:
            lane.close()
            engine.close()


def _rate(lane: EngineLane, batch: int, seconds: float) -> Record:
    for turn in range(WARM):
        _run(lane, batch, turn)
    count, begin, cpu_begin = 0, time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - begin) < seconds or not count:
        _run(lane, batch, count)
        count += batch
    core_s = time.process_time() - cpu_begin
    return {"images_per_s": count / spent, "core_ms_per_image": 1e3 * core_s / count}


def _run(lane: EngineLane, batch: int, first: int) -> None:
    every = images()
    given = lane.stage({"image": (batch,)})["image"]
    given[:] = [every[(first + at) % len(every)] for at in range(batch)]
    lane.run()


def lines(record: Record) -> list[str]:
    """The record as text."""
    if "skipped" in record:
        return [f"decoding on a GPU was not measured: {record['skipped']}"]
    engines = ", ".join(map(str, record["jpeg_engines"])) or "not told"
    found = [f"{record['on']}, JPEG engines by NVML: {engines}"]
    by_cell = {(row["device"], row["batch"]): row for row in record["rows"]}
    for batch in BATCHES:
        gpu, core = by_cell["cuda", batch], by_cell["cpu", batch]
        ratio = gpu["images_per_s"] / core["images_per_s"]
        found.append(
            f"batches of {batch:2}: {gpu['images_per_s']:7.0f} images/s and {gpu['core_ms_per_image']:.2f} core ms each "
            f"on the GPU, {core['images_per_s']:5.0f} on one core ({ratio:.1f} x)"
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(__doc__.partition("\n\n")[0]).parse_args(argv)
    record = measure(chosen.quick)
    for line in lines(record):
        print(line)
    if "skipped" not in record:
        rows = [
            Row(
                {"device": row["device"], "batch": str(row["batch"])},
                ({k: row[k] for k in ("images_per_s", "core_ms_per_image")},),
            )
            for row in record["rows"]
        ]
        facts = {"on": record["on"], "jpeg_engines": record["jpeg_engines"]}
        write_results(NAME, chosen, facts, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
