"""Images and recordings as clients send them, and stages that take them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from sklearn.datasets import load_sample_images

from tessera_core.api.preprocess import ImagePreprocess, Preprocess
from tessera_core.api.stages import to_document

PHOTOGRAPHS = tuple(Image.fromarray(each) for each in load_sample_images().images)


def resized(size: tuple[int, int]) -> Iterator[Image.Image]:
    for photograph in PHOTOGRAPHS:
        yield photograph.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def torchvision_reference(spec: ImagePreprocess, data: bytes) -> np.ndarray:
    """FP32 ``[3, height, width]`` as torchvision makes it, of the image decoded as a whole by Pillow."""
    from torchvision import (
        transforms,
    )  # takes seconds, which those who send recordings need not wait

    resize = spec.size if spec.resize is None else spec.resize
    steps = transforms.Compose(
        [
            transforms.Resize(resize),
            transforms.CenterCrop(spec.size),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    found: np.ndarray = steps(Image.open(io.BytesIO(data)).convert("RGB")).numpy()
    return found


def chirp(seconds: float, rate: int) -> np.ndarray:
    """A tone that rises, with noise that comes and goes."""
    t = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(7).normal(size=len(t))
    sound = 0.3 * np.sin(2 * np.pi * (200 * t + 300 * t * t)) + 0.05 * noise * np.abs(np.sin(3 * t))
    return sound.astype(np.float32)


def recorded(samples: np.ndarray, rate: int, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def stage_file(directory: Path, preprocess: Preprocess) -> Path:
    path = directory / "stage.json"
    path.write_bytes(to_document(preprocess))
    return path
