"""Encoded images to tensors: decode, resize, cut, normalise.

The result is that of torchvision's evaluation transform (``Resize`` with antialiasing, ``CenterCrop``, ``ToTensor``,
``Normalize``) with less work: JPEG is decoded at the smallest scale that still has :data:`SPARE` times the pixels that are
wanted along each side (libjpeg scales within the inverse DCT), only what the cut keeps is resized, and scaling to 0..1 and
normalising are one multiplication and addition. On the 0..255 scale an image that was decoded smaller is 1 off on average
at most, and 99 in 100 of its values are within 6; all others are within 1.

As with torchvision, orientation tags (EXIF) are not followed, and colours are taken for sRGB.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from tessera_core.api.preprocess import ImagePreprocess, Layout
from tessera_runtime.preprocess.errors import MediaRefused

FORMATS = ("JPEG", "PNG", "WEBP")
"""Decoders that clients' bytes are given to; Pillow has many more, for formats that nobody serves."""

MOST_PIXELS = 64 << 20
"""Of an image before it is decoded: 192 MiB of RGB. A small file may claim billions."""

SPARE = 1.5
"""How many times the wanted pixels along a side a scaled JPEG has at least. With 1 an image of 200 KiB takes 15 % less time
and is 2.6 off on average at most, with 2 it takes 35 % more and is 0.5 off."""

Image.MAX_IMAGE_PIXELS = None  # see MOST_PIXELS: Pillow would warn from 89 million on

_MARGIN = 2
"""Pixels around the cut that are resized too: the bilinear filter looks one pixel of the result beyond each."""

_MODES = {1: "RGB", 2: "LA", 3: "RGB", 4: "RGBA"}
"""By values of ``mean``: Pillow's name of the colours."""

JPEG = b"\xff\xd8\xff"

Encoded = bytes | memoryview


class ImageStage:
    """Decodes images as a service asks. Not thread-safe; one for each thread."""

    def __init__(self, spec: ImagePreprocess) -> None:
        self._spec = spec
        self._mode = _MODES[len(spec.mean)]
        channels = len(self._mode)
        std = np.broadcast_to(np.asarray(spec.std, np.float32), channels)
        mean = np.broadcast_to(np.asarray(spec.mean, np.float32), channels)
        self._scale = np.divide(1.0, 255.0 * std, dtype=np.float32)
        self._shift = -mean / std
        height, width = spec.size
        self.row_shape = (
            (channels, height, width) if spec.layout is Layout.NCHW else (height, width, channels)
        )
        """Of one image's tensor, FP32."""

    def into(self, encoded: Encoded, row: np.ndarray) -> None:
        """Decode one image into ``row``, FP32 of :attr:`row_shape`. Raises MediaRefused."""
        pixels = self._cut(encoded)
        by_channel = row if self._spec.layout is Layout.NCHW else np.moveaxis(row, -1, 0)
        for channel, values in enumerate(by_channel):
            np.multiply(pixels[:, :, channel], self._scale[channel], out=values)
            values += self._shift[channel]

    def _cut(self, encoded: Encoded) -> np.ndarray:
        """Bytes ``[height, width, channels]`` of ``size``, as Pillow's colours."""
        image, eighths, (width, height) = self._decode(encoded)
        wanted_height, wanted_width = self.resized(height, width)
        size_height, size_width = self._spec.size
        top, left = middle(wanted_height, size_height), middle(wanted_width, size_width)
        # In pixels of the whole, resized image: what is worked out.
        box = (
            max(left - _MARGIN, 0),
            max(top - _MARGIN, 0),
            min(left + size_width + _MARGIN, wanted_width),
            min(top + size_height + _MARGIN, wanted_height),
        )
        # A scaled image has an eighth of this many pixels for each of the whole one, and a part of a pixel at its edges
        # beyond that: stretched over the whole, it would be shifted.
        across = width * eighths / 8 / wanted_width
        down = height * eighths / 8 / wanted_height
        found = image.resize(
            (box[2] - box[0], box[3] - box[1]),
            Image.Resampling.BILINEAR,
            (
                box[0] * across,
                box[1] * down,
                min(box[2] * across, image.width),
                min(box[3] * down, image.height),
            ),
        )
        first_row, first_column = top - box[1], left - box[0]
        return np.asarray(found)[
            first_row : first_row + size_height, first_column : first_column + size_width
        ]

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width before the cut."""
        shorter = self._spec.resize
        if shorter is None:
            return self._spec.size[0], self._spec.size[1]
        if height <= width:
            return shorter, shorter * width // height
        return shorter * height // width, shorter

    def _decode(self, encoded: Encoded) -> tuple[Image.Image, int, tuple[int, int]]:
        """The image, in how many eighths of its size, and its width and height as encoded."""
        if bytes(encoded[:3]) == JPEG and self._mode == "RGB":
            found = self._jpeg(encoded)
            if found is not None:
                return found
        return self._any(encoded)

    def _jpeg(self, encoded: Encoded) -> tuple[Image.Image, int, tuple[int, int]] | None:
        """None: Pillow may know more of it, or say what is wrong."""
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(encoded)
            if space in ("CMYK", "YCCK"):
                return None
            _check(width, height)
            wanted_height, wanted_width = self.resized(height, width)
            pixels = simplejpeg.decode_jpeg(
                encoded,
                "RGB",
                min_height=int(SPARE * wanted_height),
                min_width=int(SPARE * wanted_width),
                min_factor=1,
            )
        except ValueError:
            return None
        return Image.fromarray(pixels), _eighths(height, pixels.shape[0]), (width, height)

    def _any(self, encoded: Encoded) -> tuple[Image.Image, int, tuple[int, int]]:
        try:
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
            _check(*image.size)
            return image.convert(self._mode), 8, image.size
        except MediaRefused:
            raise
        except UnidentifiedImageError:
            raise MediaRefused(
                f"{len(encoded)} bytes that are no image: JPEG, PNG or WebP is expected"
            ) from None
        # Whatever the bytes do to a decoder is the client's to mend: SyntaxError, struct.error, OSError and more.
        except Exception as error:
            raise MediaRefused(f"the image cannot be decoded: {error}") from error


def _check(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        limit = MOST_PIXELS >> 20
        raise MediaRefused(
            f"the image is {width} x {height}, more than {limit} Mi pixels: send a smaller one"
        )


def _eighths(whole: int, scaled: int) -> int:
    """In eighths of ``whole``, rounded up: so libjpeg scales."""
    return next(eighths for eighths in range(1, 9) if -(-whole * eighths // 8) >= scaled)


def middle(whole: int, part: int) -> int:
    """Where the middle ``part`` begins; torchvision rounds halves to even."""
    return round((whole - part) / 2)
