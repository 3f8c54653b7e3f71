"""The transform of all servers, and how each kind of them does it."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from tessera_core.api.preprocess import ImagePreprocess
from tessera_runtime.preprocess.image import ImageStage

IMAGE = ImagePreprocess(
    size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
"""torchvision's evaluation transform, with the statistics of ImageNet."""
ROW_SHAPE = (3, 224, 224)


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
