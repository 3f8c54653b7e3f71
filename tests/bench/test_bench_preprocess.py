"""Preprocessing on real servers: the photographs, who has which cores, what ratios say, and a whole quick run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from bench.harness import Row
from bench.lines import CASE, WHO, misses
from bench.peers.base import Wire
from bench.preprocess import main
from bench.preprocess.asking import arrival_rate
from bench.preprocess.cases import (
    ABLATION,
    ALONE,
    DECODE,
    INFER,
    LIMIT,
    NO_OVERLAP,
    ONCE,
    OURS,
    OURS_FULL,
    PLAIN,
    POOL,
    by_label,
    over,
    plain_name,
)
from bench.preprocess.contestants import EACH_CORE, FULL, ONE_PROCESS, SCALED, SEPARATE
from bench.preprocess.judged import judged
from bench.preprocess.photographs import LEAST, MOST, photographs
from bench.preprocess.places import DECODING, INFERRING, placed
from bench.preprocess.services import DECODED, ENSEMBLE, IMAGES, TENSORS
from bench.preprocess.transforms import IMAGE, decoded, decoded_at_full_size
from bench.processes import living, tree
from PIL import Image
from torchvision import transforms

from support.server import wait_until
from tessera_runtime.preprocess.image import ImageStage

FOUR = placed((0, 1, 2, 3))


def test_photographs_are_jpegs_of_the_sizes_that_are_promised() -> None:
    found = photographs()
    assert len(found) >= 8
    assert all(LEAST <= len(each) <= MOST for each in found)
    assert {Image.open(io.BytesIO(each)).format for each in found} == {"JPEG"}
    assert len({Image.open(io.BytesIO(each)).size for each in found}) >= 5


@pytest.mark.parametrize("first", [0.0, 0.1, 0.31])
def test_a_rate_does_not_depend_on_where_batches_fall(first: float) -> None:
    batches = np.repeat(np.arange(first - 1.0, 6.0, 1 / 3), 32)
    assert arrival_rate(batches, 5.0) == pytest.approx(96.0, rel=0.01)


def test_a_rate_of_a_single_batch_is_its_count() -> None:
    assert arrival_rate(np.array([2.0, 2.0, 2.001, np.nan, 7.0]), 5.0) == pytest.approx(3 / 5)
    assert arrival_rate(np.array([]), 5.0) == 0.0


def test_the_plain_server_does_what_torchvision_does() -> None:
    reference = transforms.Compose(
        [
            transforms.Resize(IMAGE.resize),
            transforms.CenterCrop(IMAGE.size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGE.mean, IMAGE.std),
        ]
    )
    for each in photographs():
        wanted = reference(Image.open(io.BytesIO(each))).numpy()
        np.testing.assert_allclose(decoded_at_full_size(each), wanted, atol=1e-5)


def test_both_decoders_see_the_same_picture() -> None:
    stage, levels = ImageStage(IMAGE), 255 * np.array(IMAGE.std)[:, None, None]
    for each in photographs():
        off = np.abs(decoded(stage, each) - decoded_at_full_size(each)) * levels
        assert off.mean() < 1.0


@pytest.mark.parametrize(
    ("cores", "load", "dispatcher", "decoding", "inferring"),
    [
        ((5,), (5,), (5,), (5,), (5,)),
        ((2, 3), (2, 3), (2, 3), (2, 3), (2, 3)),
        ((1, 2, 3), (1,), (2, 3), (2,), (3,)),
        ((0, 1, 2, 3), (0,), (1,), (2,), (3,)),
        (range(8), (0,), (1,), (2, 3, 4), (5, 6, 7)),
    ],
)
def test_decoding_and_inference_have_cores_of_their_own_where_there_are_three(
    cores, load, dispatcher, decoding, inferring
) -> None:
    found = placed(tuple(cores))
    assert (found.load, found.dispatcher) == (load, dispatcher)
    assert (found.decoding, found.inferring) == (decoding, inferring)
    assert found.apart == (len(cores) > 2)
    devices = {device.id: device.cores for device in found.devices}
    assert devices[DECODING] == decoding
    assert devices[INFERRING] == inferring
    assert len(devices) == 3 + len(found.pools)


def rows(**rates: tuple[float, ...]) -> list[Row]:
    """All rows, each of 100 images per second in two rounds, with what ``rates`` says of some."""
    known = {
        "images": (LIMIT, over(IMAGES, Wire.HTTP)),
        "decoded": (LIMIT, over(DECODED, Wire.HTTP)),
        "tensors": (LIMIT, over(TENSORS, Wire.HTTP)),
        "ours": (PLAIN, OURS),
        "plain": (PLAIN, plain_name(ONE_PROCESS, FULL)),
        "one": (ABLATION, NO_OVERLAP),
        "two": (POOL, "2"),
    }
    others = [
        *((LIMIT, over(name, Wire.GRPC)) for name in (IMAGES, DECODED, TENSORS)),
        *((ALONE, what) for what in (DECODE, INFER)),
        (PLAIN, OURS_FULL),
        (PLAIN, plain_name(ONE_PROCESS, SCALED)),
        *((PLAIN, plain_name(EACH_CORE, decoder)) for decoder in (FULL, SCALED)),
        *((ONCE, who) for who in (ENSEMBLE, SEPARATE)),
        (POOL, "1"),
    ]
    found = dict.fromkeys([*others, *known.values()], (100.0, 100.0))
    found |= {known[name]: of for name, of in rates.items()}
    return [
        Row({CASE: case, WHO: who}, tuple({"rate_per_s": rate} for rate in of))
        for (case, who), of in found.items()
    ]


def ratio(found, says: str) -> float:
    (line,) = [each for each in found if each.labels[WHO].startswith(says)]
    return line.medians["ratio"]


def judge(places=FOUR, decodes=1.0, **rates: tuple[float, ...]):
    return judged(by_label(rows(**rates)), places, {ENSEMBLE: decodes, SEPARATE: 3.0})


def test_overlap_is_held_against_the_slower_part_of_the_same_round() -> None:
    # A machine that halves in the second round changes no ratio.
    found = judge(
        images=(95.0, 47.5), decoded=(100.0, 50.0), tensors=(190.0, 95.0), ours=(300.0,) * 2
    )
    assert ratio(found, "http: end to end of the lower limit") == pytest.approx(0.95)
    assert ratio(found, "http: end to end of one after the other") == pytest.approx(1.45)
    assert misses(found) == []


def test_what_misses_says_so() -> None:
    found = judge(images=(80.0, 80.0), ours=(200.0, 200.0), decodes=3.0)
    assert [each.partition(": ")[0] for each in misses(found)] == [
        "ratios, http",
        f"ratios, {OURS} over {plain_name(ONE_PROCESS, FULL)}",
        f"{ONCE}, decodes, ensemble",
    ]


def test_overlap_is_no_target_where_decoding_and_inference_share_cores() -> None:
    found = judge(placed((0, 1)), images=(50.0, 50.0), ours=(300.0, 300.0))
    assert misses(found) == []


def test_a_step_is_worth_what_is_lost_without_it() -> None:
    found = judge(one=(40.0, 40.0), two=(190.0, 190.0))
    assert ratio(found, f"{NO_OVERLAP} over all steps") == pytest.approx(0.4)
    assert ratio(found, "pool of 2 over one") == pytest.approx(1.9)


@pytest.mark.timeout(400)
def test_a_quick_run_measures_every_case_and_draws_it(tmp_path: Path) -> None:
    written = tmp_path / "preprocess.json"
    assert main.main(["--quick", "--write", str(written)]) == 0
    document = json.loads(written.read_text())
    cases = {row[CASE] for row in document["rows"]}
    assert {ALONE, LIMIT, PLAIN, ONCE, ABLATION, POOL, "ratios"} <= cases
    counted = {row[WHO]: row["medians"] for row in document["rows"] if row[CASE] == ONCE}
    assert counted["decodes, ensemble"]["decodes"] == 1.0
    assert counted["decodes, separate services"]["decodes"] == 3.0
    drawn = sorted(tmp_path.glob("*.svg"))
    assert [each.stem for each in drawn] == ["preprocess-latency", "preprocess-rates"]
    assert all(ElementTree.parse(each).getroot().tag.endswith("svg") for each in drawn)


SERVES = """
import sys
from pathlib import Path
from bench.preprocess.servers import plain
from bench.models.networks import export
from bench.preprocess.services import NETWORK
from bench.preprocess.transforms import ROW_SHAPE

folder, core = Path(sys.argv[1]), int(sys.argv[2])
export(NETWORK, ROW_SHAPE, folder)
with plain(folder, [(core,)], folder / "plain") as server:
    server.wait()
    print(server.leader, flush=True)
    sys.stdin.read()
"""


def test_plain_servers_end_when_the_bench_is_killed(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    bench = subprocess.Popen(
        (sys.executable, "-c", SERVES, str(tmp_path), str(core)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with bench:
        assert bench.stdout is not None
        pids = tree(int(bench.stdout.readline())).keys()
        bench.kill()
    assert len(pids) > 1
    wait_until(lambda: not pids & living(), "the end of what the bench had started")
