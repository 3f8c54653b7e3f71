"""Batches of encoded images to tensors on a GPU: nvJPEG decodes all JPEGs in one call, a matrix resizes and cuts each.

Bilinear resizing with antialiasing is linear along each side, so an image of ``[3, h, w]`` becomes the cut by two products,
``down [height, h] · image · across [w, width]``, whose rows are Pillow's triangles for the pixels of the cut alone: nothing
outside of it is worked out, whatever shape the image has. One multiplication and addition then normalise the batch.

The result is that of :class:`~tessera_runtime.preprocess.image.ImageStage` and as near to torchvision's transform: what
both decode alike is within 1 of 255. nvJPEG works out the inverse DCT and the chroma of subsampled images in another way than libjpeg.

What GPUs do not decode (PNG, WebP, CMYK, large images) and what nvJPEG refuses is decoded on the processor, which also
says what is wrong with a damaged image, so that the others of the batch are not harmed.

On the device ``cpu`` libjpeg decodes at full size in place of nvJPEG, and the arithmetic is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import simplejpeg
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from tessera_core.api.preprocess import ImagePreprocess, Layout
from tessera_core.api.stages import MOST_ROWS
from tessera_runtime.preprocess.errors import MediaRefused
from tessera_runtime.preprocess.image import JPEG, ImageStage, middle

MOST_AT_ONCE = 16 << 20
"""Pixels that are decoded by one call. Larger images stay on the processor."""

MOST_SIDE = 8192
"""Pixels: longer images stay on the processor, so that matrices are bounded."""

_WORKING_MIB = 448
"""Besides the batch: 48 of bytes, 192 of the largest image in FP32, 128 of matrices, and some for nvJPEG."""

_KEPT, _MOST_KEPT = 64, 512 << 10
"""Matrices, and values of one: 128 MiB in all. Clients' images have few sizes, or all."""

_END = b"\xff\xd9"
"""Of a JPEG that is whole. What decoders make of others is for the processor's to say, which refuses them."""

Encoded = bytes | memoryview


def working_mib(spec: ImagePreprocess) -> int:
    """Memory of the device that a stage holds at most: with the largest batch, twice where its order is changed."""
    height, width = spec.size
    return _WORKING_MIB + (2 * MOST_ROWS * 3 * height * width * 4 >> 20)


class BatchStage:
    """Decodes batches of images as a service asks. Not thread-safe; one for each thread.

    ``device``: torch's name. Raises ValueError for what GPUs do not make: images with alpha.
    """

    def __init__(self, spec: ImagePreprocess, device: str) -> None:
        if not spec.is_rgb:
            raise ValueError(
                f"{len(spec.mean)} values of mean: GPUs decode JPEG to three colours only"
            )
        self._spec = spec
        self._device = device
        self._alone = ImageStage(spec)
        # Of this stage alone: what one stream fills another may read too early.
        self._kept = lru_cache(_KEPT)(_matrix)
        std = np.broadcast_to(np.asarray(spec.std, np.float32), 3)
        mean = np.broadcast_to(np.asarray(spec.mean, np.float32), 3)
        self._scale = torch.from_numpy(1 / (255 * std)).to(device).view(3, 1, 1)
        self._shift = torch.from_numpy(-mean / std).to(device).view(3, 1, 1)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one image's tensor, FP32."""
        return self._alone.row_shape

    def probe(self, sample: Encoded) -> None:
        """Decode ``sample`` on the device. Raises RuntimeError, of the decoder's own, where that does not work."""
        row = torch.empty((3, *self._spec.size), device=self._device)
        (image,) = decode_jpeg([_tensor(sample)], ImageReadMode.RGB, self._device)
        self._resize(image, row)
        float(row.sum())  # waits for it

    def into(self, encoded: Sequence[Encoded], rows: np.ndarray) -> None:
        """Decode a batch into ``rows``, FP32 ``[n]`` of :attr:`row_shape`.

        Raises MediaRefused of the first image that cannot be decoded, with its place among them as ``at``.
        """
        height, width = self._spec.size
        batch = torch.empty((len(encoded), 3, height, width), device=self._device)
        left = set(range(len(encoded)))
        for places in _chunks(encoded):
            for at, image in zip(
                places, self._decoded([encoded[at] for at in places]), strict=True
            ):
                if image is not None:
                    self._resize(image, batch[at])
                    left.discard(at)
        batch.mul_(self._scale).add_(self._shift)
        if self._spec.layout is Layout.NHWC:
            batch = batch.permute(0, 2, 3, 1)
        # Blocks until it has come, on a GPU also where ``rows`` are pinned.
        torch.from_numpy(rows).copy_(batch)
        for at in sorted(left):
            try:
                self._alone.into(encoded[at], rows[at])
            except MediaRefused as refused:
                raise MediaRefused(str(refused), at=at) from refused

    def _decoded(self, encoded: Sequence[Encoded]) -> list[Any]:
        """Images ``[3, h, w]`` of bytes on the device; None where it refuses. One that is damaged fails the call for all of
        them, so then each is tried alone.
        """
        if self._device != "cpu":
            # It writes on a stream of its own into memory that what is queued on this one may still read.
            torch.cuda.current_stream().synchronize()
        tensors = [_tensor(each) for each in encoded]
        try:
            found: list[Any] = decode_jpeg(tensors, ImageReadMode.RGB, self._device)
        except RuntimeError:
            return [None] if len(encoded) == 1 else [self._decoded([each])[0] for each in encoded]
        return found

    def _resize(self, image: Any, row: Any) -> None:
        """Resize and cut ``image`` into ``row``, FP32 ``[3, height, width]``, values 0 to 255."""
        height, width = image.shape[1:]
        whole_height, whole_width = self._alone.resized(height, width)
        rows, columns = row.shape[1:]
        top, down = self._matrix(height, whole_height, rows)
        left, across = self._matrix(width, whole_width, columns)
        kept = image[:, top : top + down.shape[1], left : left + across.shape[1]].float()
        torch.matmul(down, torch.matmul(kept, across.T), out=row)

    def _matrix(self, length: int, whole: int, size: int) -> tuple[int, Any]:
        make = self._kept if length * size <= _MOST_KEPT else _matrix
        return make(length, whole, size, self._device)


def _tensor(encoded: Encoded) -> Any:
    """A copy: torch warns of memory that is read-only."""
    return torch.frombuffer(bytearray(encoded), dtype=torch.uint8)


def _chunks(encoded: Sequence[Encoded]) -> Iterator[list[int]]:
    """Places of the images that a GPU may decode, of at most MOST_AT_ONCE pixels together."""
    chunk: list[int] = []
    pixels = 0
    for at, each in enumerate(encoded):
        size = _pixels(each)
        if not 0 < size <= MOST_AT_ONCE:
            continue
        if pixels + size > MOST_AT_ONCE:
            yield chunk
            chunk, pixels = [], 0
        chunk.append(at)
        pixels += size
    if chunk:
        yield chunk


def _pixels(encoded: Encoded) -> int:
    """Of a JPEG in grey or three colours; 0 of what a GPU is not given."""
    if bytes(encoded[:3]) != JPEG or bytes(encoded[-2:]) != _END:
        return 0
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return 0
    taken = space not in ("CMYK", "YCCK") and max(height, width) <= MOST_SIDE
    return height * width if taken else 0


def _matrix(length: int, whole: int, size: int, device: str) -> tuple[int, Any]:
    """Which of ``length`` pixels the middle ``size`` of ``whole`` are made of: the first one, and FP32 ``[size, pixels]``
    of how much of each.

    Pillow's bilinear filter (``precompute_coeffs`` in its Resample.c): a triangle as wide as two pixels of the result, of
    the source where that has less, cut off at the edges.
    """
    scale = length / whole
    support = max(scale, 1.0)
    centres = (np.arange(size) + middle(whole, size) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    taps = first[:, None] + np.arange(int(2 * support) + 2)
    parts = np.maximum(1 - np.abs(taps + 0.5 - centres[:, None]) / support, 0)
    parts[taps >= length] = 0
    parts /= parts.sum(axis=1, keepdims=True)
    start, end = first[0], min(taps[-1, -1] + 1, length)
    places = np.minimum(taps, end - 1) - start
    matrix = torch.zeros((size, int(end - start)), device=device)
    # The device is given the few values that are not zero.
    filled = torch.from_numpy(parts.astype(np.float32)).to(device)
    return int(start), matrix.scatter_add_(1, torch.from_numpy(places).to(device), filled)
