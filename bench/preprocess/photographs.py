"""JPEGs as clients send them: real photographs, 100 to 500 KiB each, the same bytes wherever the same Pillow makes them.

Made from the two photographs that ship with scikit-learn, 640 x 427, enlarged to 0.4 to 2.5 megapixels. Detail does not grow
with the pixels, so the larger ones have fewer bytes for each (0.1 to 0.3, as photographs on web pages have).
"""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image
from sklearn.datasets import load_sample_images

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
