"""Preprocessing that is done once per request and shared by all members: an image or a waveform to a tensor.

Defaults are those of the common vision and speech pipelines (torchvision's evaluation transform; 25 ms windows
with a 10 ms step and 80 mel bands of Kaldi-style features).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

from tessera_core.api.errors import FieldError
from tessera_core.api.records import ListOf, Name, Rule
from tessera_core.api.scalars import decimal, duration, integer

_SIDE = integer(1, 8192)
_MEAN = ListOf(decimal(example="0.485"), 1, 4)
_STD = ListOf(decimal(above=0, example="0.229"), 1, 4)


class Layout(StrEnum):
    """Order of a batch of images in memory: channels first or last."""

    NCHW = "NCHW"
    NHWC = "NHWC"


class Decoder(StrEnum):
    """What images are decoded on."""

    AUTO = "Auto"
    """Processor cores, or parts of GPUs that have a JPEG engine: whatever costs least."""
    CPU = "CPU"
    GPU = "GPU"
    """Parts of GPUs, with or without an engine."""


def _one_std_per_mean(image: ImagePreprocess) -> Iterator[FieldError]:
    if len(image.mean) != len(image.std):
        found = f"{len(image.std)} values"
        yield FieldError("std", found, f"as many values as mean has: {len(image.mean)}")


def _crop_inside_the_resized(image: ImagePreprocess) -> Iterator[FieldError]:
    if image.resize is not None and image.resize < max(image.size):
        yield FieldError(
            "resize", str(image.resize), f"at least {max(image.size)}, as size is cut out of it"
        )


def _no_alpha_on_gpus(image: ImagePreprocess) -> Iterator[FieldError]:
    if image.device is Decoder.GPU and not image.is_rgb:
        found = f"GPU with {len(image.mean)} values of mean"
        yield FieldError("device", found, "CPU or Auto: GPUs decode JPEG to three colours only")


@dataclass(frozen=True, slots=True)
class ImagePreprocess:
    """Decode, resize, centre crop, scale to 0..1, then ``(x - mean) / std`` per channel."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        _one_std_per_mean,
        _crop_inside_the_resized,
        _no_alpha_on_gpus,
    )

    size: Annotated[tuple[int, ...], ListOf(_SIDE, 2, 2)]
    """Height and width in pixels of the tensor."""
    resize: Annotated[int | None, _SIDE] = None
    """Length in pixels of the shorter side before ``size`` is cut from the centre; absent: resized to ``size``."""
    mean: Annotated[tuple[float, ...], _MEAN] = (0.0,)
    """Per channel, or one for all, on the 0..1 scale."""
    std: Annotated[tuple[float, ...], _STD] = (1.0,)
    layout: Layout = Layout.NCHW
    device: Decoder = Decoder.AUTO

    @property
    def is_rgb(self) -> bool:
        """Whether tensors are of three colours, and not of grey or colours with alpha."""
        return len(self.mean) in (1, 3)


def _step_inside_the_window(audio: AudioPreprocess) -> Iterator[FieldError]:
    if audio.step_s > audio.window_s:
        yield FieldError(
            "step", f"{audio.step_s:g} s", f"at most the window of {audio.window_s:g} s"
        )


@dataclass(frozen=True, slots=True)
class AudioPreprocess:
    """Resample a mono waveform and take log-mel features: rows of ``[frames, mel_bands]``."""

    RULES: ClassVar[tuple[Rule, ...]] = (_step_inside_the_window,)

    sample_rate: Annotated[int, integer(1000, 192_000)] = 16_000
    """Samples per second the model was trained at."""
    mel_bands: Annotated[int, integer(1, 512)] = 80
    window_s: Annotated[float, duration(above=0, most=1), Name("window")] = 0.025
    step_s: Annotated[float, duration(above=0, most=1), Name("step")] = 0.010
    max_length_s: Annotated[float, duration(above=0, most=3600), Name("maxLength")] = 30.0
    """Longer recordings are refused."""
    normalise: bool = True
    """Zero mean and unit variance per band over the recording."""


def _one_kind_of_input(preprocess: Preprocess) -> Iterator[FieldError]:
    if (preprocess.image is None) == (preprocess.audio is None):
        found = "neither image nor audio" if preprocess.image is None else "image and audio"
        yield FieldError("", found, "exactly one of image and audio")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Exactly one of its fields is set."""

    RULES: ClassVar[tuple[Rule, ...]] = (_one_kind_of_input,)

    image: ImagePreprocess | None = None
    audio: AudioPreprocess | None = None

    @property
    def device(self) -> Decoder:
        """Recordings, and images with alpha, are for processor cores."""
        if self.image is None or not self.image.is_rgb:
            return Decoder.CPU
        return self.image.device
