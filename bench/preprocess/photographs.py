"""JPEGs as clients send them: real photographs, 100 to 500 KiB each, the same bytes wherever the same Pillow makes them.

Made from the two photographs that ship with scikit-learn, 640 x 427, enlarged to 0.4 to 2.5 megapixels. Detail does not grow
with the pixels, so the larger ones have fewer bytes for each (0.1 to 0.3, as photographs on web pages have).
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_sample_images

from tessera_core.api.preprocess import ImagePreprocess
from tessera_runtime.preprocess.image import ImageStage

IMAGE = ImagePreprocess(
    size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
"""torchvision's evaluation transform, with the statistics of ImageNet."""
ROW_SHAPE = (3, 224, 224)

LEAST, MOST = 100 << 10, 500 << 10
"""Bytes."""
QUALITY = 90
SCALES = (1.2, 1.5, 1.8, 2.1, 2.4, 3.0)


@lru_cache(maxsize=1)
def photographs() -> tuple[bytes, ...]:
    """All that have the wanted sizes, each photograph's from small to large."""
    found = []
    for pixels in load_sample_images().images:
        original = Image.fromarray(pixels)
        for scale in SCALES:
            size = (round(scale * original.width), round(scale * original.height))
            file = io.BytesIO()
            original.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY)
            found.append(file.getvalue())
    return tuple(each for each in found if LEAST <= len(each) <= MOST)


def decoded(stage: ImageStage, encoded: bytes) -> npt.NDArray[np.float32]:
    """One row, decoded as the server does it."""
    row = np.empty(stage.row_shape, np.float32)
    stage.into(encoded, row)
    return row


def decoded_at_full_size(encoded: bytes) -> npt.NDArray[np.float32]:
    """One row, as programs usually make it: Pillow decodes all pixels, then the transform's four steps one by one."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    assert IMAGE.resize is not None, "given above"
    scale = IMAGE.resize / min(image.size)
    size = (int(image.width * scale), int(image.height * scale))
    image = image.resize(size, Image.Resampling.BILINEAR)
    height, width = IMAGE.size
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32)
    normal = (pixels / 255 - np.array(IMAGE.mean, "f4")) / np.array(IMAGE.std, "f4")
    return np.ascontiguousarray(normal.transpose(2, 0, 1))
