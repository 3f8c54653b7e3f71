"""Decoding on a GPU is measured beside a core, or it is said why not."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from bench.preprocess import gpu_decode
from bench.preprocess.gpu_decode import BATCHES, images, lines, measure, rates


def test_images_are_as_large_as_photographs_and_of_different_sizes() -> None:
    sizes = [len(each) for each in images()]
    assert len(set(sizes)) == len(sizes) == 8
    assert 100 << 10 < min(sizes) < max(sizes) < 512 << 10


def test_a_lane_is_measured_at_every_batch() -> None:
    found = rates("cpu", 0.01)
    assert [each["batch"] for each in found] == list(BATCHES)
    assert all(each["images_per_s"] > 0 and each["core_ms_per_image"] > 0 for each in found)


def test_without_a_gpu_it_says_so_and_measures_nothing() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    record = measure(quick=True)
    assert record.keys() == {"skipped"}
    (said,) = lines(record)
    assert said.startswith("decoding on a GPU was not measured: torch")
    assert gpu_decode.main(["--quick"]) == 0


@pytest.mark.gpu
def test_a_gpu_is_measured_beside_a_core() -> None:
    if not torch.cuda.is_available() or importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs an NVIDIA GPU and torchvision")
    record = measure(quick=True)
    assert {(row["device"], row["batch"]) for row in record["rows"]} == {
        (device, batch) for device in ("cuda", "cpu") for batch in BATCHES
    }
    assert len(lines(record)) == 1 + len(BATCHES)


def test_a_record_is_told_by_batch_with_the_ratio_of_both() -> None:
    row = {"core_ms_per_image": 0.25}
    record = {
        "on": "a GPU, torch 2",
        "jpeg_engines": [7],
        "rows": [
            {"device": device, "batch": batch, "images_per_s": rate * batch, **row}
            for device, rate in (("cuda", 100.0), ("cpu", 50.0))
            for batch in BATCHES
        ],
    }
    head, *told = lines(record)
    assert head == "a GPU, torch 2, JPEG engines by NVML: 7"
    assert [line.split(":")[0] for line in told] == [f"batches of {n:2}" for n in BATCHES]
    assert all(line.endswith("(2.0 x)") for line in told)
