"""What media are like where none are at hand: for warming up and for measuring a stage before its first request.

A photograph of a megapixel and speech of five seconds. What clients really send may take longer or shorter; that shows
in the batch times that are reported, like a drift of any other model.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import simplejpeg
import soundfile

from tessera_core.api.preprocess import Preprocess

HEIGHT, WIDTH = 864, 1152
QUALITY = 88
GRAIN = 6.0
"""Deviation of the noise over the shapes: JPEG is then of 200 to 300 KiB, as photographs of that size are."""

SPEECH_S = 5.0


def example(preprocess: Preprocess) -> bytes:
    """One element of the input of a stage."""
    if preprocess.audio is not None:
        length_s = min(SPEECH_S, preprocess.audio.max_length_s)
        return _recording(preprocess.audio.sample_rate, length_s)
    return _photograph()


@lru_cache(maxsize=1)
def _photograph() -> bytes:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / HEIGHT
    waves = [
        np.sin(2 * np.pi * (u * x + v * y + shift))
        for u, v, shift in rng.uniform(0.3, 12, (24, 3)).tolist()
    ]
    colours = rng.dirichlet(np.ones(len(waves)), 3)
    shapes = 128 + 220 * np.tensordot(np.stack(waves, -1), colours, (2, 1))
    grain = rng.normal(0, GRAIN, (HEIGHT, WIDTH, 1))
    pixels = (shapes + grain).clip(0, 255).astype(np.uint8)
    encoded: bytes = simplejpeg.encode_jpeg(pixels, QUALITY, colorsubsampling="420")
    return encoded


@lru_cache(maxsize=4)
def _recording(rate: int, length_s: float) -> bytes:
    t = np.arange(int(rate * length_s)) / rate
    noise = np.random.default_rng(0).normal(size=len(t))
    voice = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 6))
    sound = 0.2 * (voice + 0.1 * noise) * np.abs(np.sin(2 * np.pi * 2 * t))
    file = io.BytesIO()
    soundfile.write(file, sound.astype(np.float32), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()
