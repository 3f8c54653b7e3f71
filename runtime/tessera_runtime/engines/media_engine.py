"""A preprocessing stage as a model: encoded images or recordings in, tensors out, one after the other on one core, or images
a batch at a time on a GPU (:mod:`tessera_runtime.engines.torch_media`).

It is loaded from the stage's document (:mod:`tessera_core.api.stages`). Images: input ``image``, BYTES ``[rows]``; output
``tensor``, FP32 rows of ``[channels, height, width]`` or in the other layout. Recordings: input ``audio``, BYTES ``[rows]``;
outputs ``features``, FP32 ``[rows, frames, bands]`` of the longest with zeros after the others, and ``frames``, INT64
``[rows]``, how many are of each.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tessera_core.api.preprocess import AudioPreprocess, ImagePreprocess
from tessera_core.api.stages import from_document
from tessera_runtime.engines.base import (
    EngineDevice,
    EngineLane,
    LoadRefused,
    ModelFile,
    Signature,
    TensorMeta,
)
from tessera_runtime.engines.media_lane import MediaLane
from tessera_runtime.engines.staging import HostBuffer, check_max_batch
from tessera_runtime.engines.version import library_version
from tessera_runtime.preprocess.audio import AudioStage
from tessera_runtime.preprocess.errors import MediaRefused
from tessera_runtime.preprocess.examples import example
from tessera_runtime.preprocess.image import ImageStage

MOST_DOCUMENT = 64 << 10
"""Bytes."""


def load_media(file: ModelFile, device: EngineDevice) -> MediaEngine:
    """Raises LoadRefused, ModuleNotFoundError where a GPU's decoder is not installed."""
    with open(file.path, "rb") as document:
        text = document.read(MOST_DOCUMENT)
    try:
        preprocess = from_document(text)
        sample = example(preprocess)
        if preprocess.audio is not None:
            AudioStage(preprocess.audio)
    except ValueError as error:
        raise LoadRefused(f"the preprocessing stage is refused: {error}") from error
    spec = preprocess.image or preprocess.audio
    assert spec is not None, "one of them is there"
    if device.kind == "cpu":
        return MediaEngine(spec, sample)
    if not isinstance(spec, ImagePreprocess):
        raise LoadRefused("recordings are preprocessed on processor cores; place the stage there")
    from tessera_runtime.engines.torch_media import load_on_gpu  # imports torch

    return load_on_gpu(spec, sample, device)


class MediaEngine:
    """On processor cores."""

    def __init__(self, spec: ImagePreprocess | AudioPreprocess, sample: bytes) -> None:
        self._spec = spec
        if isinstance(spec, ImagePreprocess):
            given = TensorMeta("image", "BYTES", (), sample)
            self._signature = Signature(
                (given,), (TensorMeta("tensor", "FP32", ImageStage(spec).row_shape),)
            )
        else:
            given = TensorMeta("audio", "BYTES", (), sample)
            features = TensorMeta("features", "FP32", (-1, spec.mel_bands))
            self._signature = Signature((given,), (features, TensorMeta("frames", "INT64", ())))

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def version(self) -> str:
        """The library that most of the time goes to."""
        library = "simplejpeg" if isinstance(self._spec, ImagePreprocess) else "soundfile"
        return library_version(library)

    def lane(self, max_batch: int) -> EngineLane:
        check_max_batch(self._signature, max_batch)
        if isinstance(self._spec, ImagePreprocess):
            return _ImageLane(self._spec, self._signature, max_batch)
        return _AudioLane(self._spec, self._signature, max_batch)

    def memory_mib(self) -> float:
        return 0.0

    def close(self) -> None: ...


class _ImageLane(MediaLane):
    def __init__(self, spec: ImagePreprocess, signature: Signature, max_batch: int) -> None:
        super().__init__(signature, max_batch)
        self._stage = ImageStage(spec)
        self._rows = HostBuffer(signature.outputs[0], max_batch)

    def decode(self, given: np.ndarray) -> Mapping[str, np.ndarray]:
        rows = self._rows.view((len(given), *self._stage.row_shape))
        for at, encoded in enumerate(given):
            try:
                self._stage.into(encoded, rows[at])
            except MediaRefused as refused:
                raise MediaRefused(str(refused), at) from refused
        return {"tensor": rows}


class _AudioLane(MediaLane):
    def __init__(self, spec: AudioPreprocess, signature: Signature, max_batch: int) -> None:
        super().__init__(signature, max_batch)
        self._stage = AudioStage(spec)
        self._bands = spec.mel_bands

    def decode(self, given: np.ndarray) -> Mapping[str, np.ndarray]:
        taken: list[np.ndarray] = []
        for at, encoded in enumerate(given):
            try:
                taken.append(self._stage.features(encoded))
            except MediaRefused as refused:
                raise MediaRefused(str(refused), at) from refused
        frames = np.array([len(each) for each in taken], np.int64)
        features = np.zeros((len(taken), int(frames.max()), self._bands), np.float32)
        for row, each in zip(features, taken, strict=True):
            row[: len(each)] = each
        return {"features": features, "frames": frames}
