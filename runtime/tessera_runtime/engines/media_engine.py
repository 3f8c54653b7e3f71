"""A preprocessing stage as a model: encoded images or recordings in, tensors out, one after the other on one core.

It is loaded from the stage's document (:mod:`tessera_core.api.stages`). Images: input ``image``, BYTES ``[rows]``; output
``tensor``, FP32 rows of ``[channels, height, width]`` or in the other layout. Recordings: input ``audio``, BYTES ``[rows]``;
outputs ``features``, FP32 ``[rows, frames, bands]`` of the longest with zeros after the others, and ``frames``, INT64
``[rows]``, how many are of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from tessera_core.api.preprocess import AudioPreprocess, ImagePreprocess
from tessera_core.api.stages import from_document
from tessera_runtime.engines.base import (
    EngineDevice,
    EngineLane,
    InputRefused,
    LoadRefused,
    ModelFile,
    RunFailed,
    Signature,
    TensorMeta,
)
from tessera_runtime.engines.staging import HostBuffer, Staged, Staging, check_max_batch
from tessera_runtime.engines.version import library_version
from tessera_runtime.preprocess.audio import AudioStage
from tessera_runtime.preprocess.errors import MediaRefused
from tessera_runtime.preprocess.examples import example
from tessera_runtime.preprocess.image import ImageStage

MOST_DOCUMENT = 64 << 10
"""Bytes."""


def load_media(file: ModelFile, device: EngineDevice) -> MediaEngine:
    """Raises LoadRefused."""
    if device.kind != "cpu":
        raise LoadRefused("preprocessing runs on processor cores; place it there")
    with open(file.path, "rb") as document:
        text = document.read(MOST_DOCUMENT)
    try:
        preprocess = from_document(text)
        sample = example(preprocess)
        if preprocess.audio is not None:
            AudioStage(preprocess.audio)
    except ValueError as error:
        raise LoadRefused(f"the preprocessing stage is refused: {error}") from error
    if preprocess.image is not None:
        return MediaEngine(preprocess.image, sample)
    assert preprocess.audio is not None
    return MediaEngine(preprocess.audio, sample)


class MediaEngine:
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


class _MediaLane(ABC):
    def __init__(self, signature: Signature, max_batch: int) -> None:
        self._signature = signature
        self._staging = Staging(signature, max_batch)
        self._staged: Staged | None = None

    def stage(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        self._staged = self._staging.stage(shapes)
        return self._staged.given

    def run(self) -> Mapping[str, np.ndarray]:
        assert self._staged is not None, "staged before it is run"
        (given,) = self._staged.given.values()
        at = 0
        try:
            for at, encoded in enumerate(given):
                self.take(at, len(given), encoded)
        except MediaRefused as refused:
            where = f"[{at}]" if len(given) > 1 else ""
            raise InputRefused(f"inputs.{self._signature.inputs[0].name}{where}: {refused}") from (
                refused
            )
        except MemoryError as error:
            raise RunFailed(f"no memory for what the media decode to: {error}") from error
        finally:
            given.fill(b"")  # what clients sent is not kept until the next batch
        return self.answer(len(given))

    @abstractmethod
    def take(self, at: int, rows: int, encoded: bytes) -> None:
        """Decode row ``at`` of ``rows``. Raises MediaRefused."""

    @abstractmethod
    def answer(self, rows: int) -> Mapping[str, np.ndarray]:
        """What was taken, by output."""

    def close(self) -> None:
        self._staged = None
        self._staging.close()


class _ImageLane(_MediaLane):
    def __init__(self, spec: ImagePreprocess, signature: Signature, max_batch: int) -> None:
        super().__init__(signature, max_batch)
        self._stage = ImageStage(spec)
        self._rows = HostBuffer(signature.outputs[0], max_batch)

    def take(self, at: int, rows: int, encoded: bytes) -> None:
        self._stage.into(encoded, self._rows.view((rows, *self._stage.row_shape))[at])

    def answer(self, rows: int) -> Mapping[str, np.ndarray]:
        return {"tensor": self._rows.view((rows, *self._stage.row_shape))}


class _AudioLane(_MediaLane):
    def __init__(self, spec: AudioPreprocess, signature: Signature, max_batch: int) -> None:
        super().__init__(signature, max_batch)
        self._stage = AudioStage(spec)
        self._bands = spec.mel_bands
        self._taken: list[np.ndarray] = []

    def take(self, at: int, rows: int, encoded: bytes) -> None:
        if at == 0:
            self._taken.clear()
        self._taken.append(self._stage.features(encoded))

    def answer(self, rows: int) -> Mapping[str, np.ndarray]:
        frames = np.array([len(each) for each in self._taken], np.int64)
        features = np.zeros((rows, int(frames.max()), self._bands), np.float32)
        for row, each in zip(features, self._taken, strict=True):
            row[: len(each)] = each
        self._taken.clear()
        return {"features": features, "frames": frames}
