"""A stage of images loads on a GPU where one decodes, and answers there what it answers on cores."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera_core.api.preprocess import AudioPreprocess, ImagePreprocess, Preprocess
from tessera_core.api.stages import to_document
from tessera_runtime.engines.base import (
    Engine,
    EngineDevice,
    InputRefused,
    LoadRefused,
    ModelFile,
)
from tessera_runtime.engines.loading import load_engine
from tessera_runtime.preprocess.examples import example

IMAGES = Preprocess(
    image=ImagePreprocess(
        size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
)
CUDA = EngineDevice("cuda")
Closing = Callable[[Engine], Engine]


def stage(folder: Path, preprocess: Preprocess) -> ModelFile:
    path = folder / "stage.json"
    path.write_bytes(to_document(preprocess))
    return ModelFile(str(path), "Preprocess", allow_code=False)


def run(engine: Engine, *images: bytes) -> np.ndarray:
    lane = engine.lane(8)
    try:
        lane.stage({"image": (len(images),)})["image"][:] = images
        return lane.run()["tensor"].copy()
    finally:
        lane.close()


def test_recordings_are_not_for_gpus(tmp_path: Path) -> None:
    with pytest.raises(LoadRefused, match="processor cores"):
        load_engine(stage(tmp_path, Preprocess(audio=AudioPreprocess())), CUDA)


def test_without_a_device_loading_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(LoadRefused, match="no CUDA device"):
        load_engine(stage(tmp_path, IMAGES), CUDA)


def test_without_the_decoder_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch_media", "torch_images"):
        package = "engines" if module == "torch_media" else "preprocess"
        monkeypatch.delitem(sys.modules, f"tessera_runtime.{package}.{module}", raising=False)
    monkeypatch.delitem(sys.modules, "torchvision.io", raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(LoadRefused, match=r"needs torchvision.*pip install 'tessera\[runtime\]'"):
        load_engine(stage(tmp_path, IMAGES), CUDA)


def test_on_cores_the_row_that_is_damaged_is_named(tmp_path: Path, closing: Closing) -> None:
    engine = closing(load_engine(stage(tmp_path, IMAGES), EngineDevice("cpu")))
    with pytest.raises(InputRefused, match=r"^inputs\.image\[1\]: 5 bytes that are no image"):
        run(engine, example(IMAGES), b"hello", example(IMAGES))
    with pytest.raises(InputRefused, match=r"^inputs\.image: 5 bytes"):
        run(engine, b"hello")


@pytest.fixture
def on_gpu(tmp_path: Path, closing: Closing) -> Engine:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    pytest.importorskip("torchvision")
    return closing(load_engine(stage(tmp_path, IMAGES), CUDA))


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_a_gpu_answers_what_cores_answer(
    rows: int, on_gpu: Engine, tmp_path: Path, closing: Closing
) -> None:
    cores = closing(load_engine(stage(tmp_path, IMAGES), EngineDevice("cpu")))
    images = [example(IMAGES)] * rows
    off = np.abs(run(on_gpu, *images) - run(cores, *images)) * 255 * 0.225
    assert off.mean() <= 1.5
    assert np.percentile(off, 99) <= 7.0


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_on_a_gpu_the_row_that_is_damaged_is_named_and_the_lane_goes_on(on_gpu: Engine) -> None:
    with pytest.raises(InputRefused, match=r"^inputs\.image\[1\]: "):
        run(on_gpu, example(IMAGES), example(IMAGES)[:1000], example(IMAGES))
    assert np.isfinite(run(on_gpu, example(IMAGES))).all()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_a_grant_that_is_too_small_for_decoding_is_refused(on_gpu: Engine, tmp_path: Path) -> None:
    with pytest.raises(LoadRefused, match=r"up to \d+ MiB of a GPU, 100 MiB are allowed"):
        load_engine(stage(tmp_path, IMAGES), EngineDevice("cuda", memory_mib=100))
