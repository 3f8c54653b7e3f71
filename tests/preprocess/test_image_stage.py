"""Encoded images become the tensors that torchvision's evaluation transform makes of them."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.media import PHOTOGRAPHS, encoded, resized, torchvision_reference
from tessera_core.api.preprocess import ImagePreprocess, Layout
from tessera_runtime.preprocess.errors import MediaRefused
from tessera_runtime.preprocess.image import MOST_PIXELS, ImageStage

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSIFIER = ImagePreprocess(size=(224, 224), resize=256, mean=MEAN, std=STD)
STRETCHED = ImagePreprocess(size=(96, 160), mean=MEAN, std=STD)
SIZES = ((640, 427), (1024, 768), (901, 1333), (3000, 2000), (257, 300), (120, 90))


def tensor(spec: ImagePreprocess, data: bytes) -> np.ndarray:
    stage = ImageStage(spec)
    row = np.full(stage.row_shape, np.nan, np.float32)
    stage.into(data, row)
    return row


def steps_off(spec: ImagePreprocess, data: bytes) -> np.ndarray:
    """On the 0..255 scale, before normalising."""
    difference = np.abs(tensor(spec, data) - torchvision_reference(spec, data))
    steps: np.ndarray = difference * (255 * np.asarray(spec.std, np.float32)[:, None, None])
    return steps.round(3)


@pytest.mark.parametrize("spec", [CLASSIFIER, STRETCHED], ids=["cut", "stretched"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_jpeg_that_is_decoded_smaller_stays_within_the_stated_distance(
    spec: ImagePreprocess, size: tuple[int, int]
) -> None:
    for image in resized(size):
        for options in ({"quality": 90}, {"quality": 75, "progressive": True}, {"subsampling": 0}):
            off = steps_off(spec, encoded(image, "JPEG", **options))
            assert off.mean() <= 1.0
            assert np.percentile(off, 99) <= 6.0


@pytest.mark.parametrize("spec", [CLASSIFIER, STRETCHED], ids=["cut", "stretched"])
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("size", SIZES[:3] + SIZES[4:], ids=str)
def test_other_formats_are_within_one_step(
    spec: ImagePreprocess, form: str, size: tuple[int, int]
) -> None:
    for image in resized(size):
        assert steps_off(spec, encoded(image, form)).max() <= 1.0


def test_a_large_jpeg_is_not_decoded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    (image, _) = resized((3000, 2000))
    seen: list[tuple[int, ...]] = []
    decode = "tessera_runtime.preprocess.image.simplejpeg.decode_jpeg"
    real = simplejpeg.decode_jpeg

    def watched(*arguments: object, **options: object) -> np.ndarray:
        found: np.ndarray = real(*arguments, **options)
        seen.append(found.shape)
        return found

    monkeypatch.setattr(decode, watched)
    tensor(CLASSIFIER, encoded(image, "JPEG"))
    assert seen == [(500, 750, 3)]  # two eighths: one would leave 250 of 256 rows


def test_channels_last_is_the_same_tensor_in_another_order() -> None:
    data = encoded(PHOTOGRAPHS[0], "PNG")
    last = ImagePreprocess(size=(224, 200), resize=256, mean=MEAN, std=STD, layout=Layout.NHWC)
    first = ImagePreprocess(size=(224, 200), resize=256, mean=MEAN, std=STD)
    assert tensor(last, data).shape == (224, 200, 3)
    np.testing.assert_array_equal(np.moveaxis(tensor(last, data), -1, 0), tensor(first, data))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_other_colours_are_taken_as_pillow_converts_them(mode: str) -> None:
    image = PHOTOGRAPHS[1].resize((300, 300)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    assert steps_off(CLASSIFIER, data).max() <= 1.0


def test_one_mean_stands_for_all_channels() -> None:
    data = encoded(PHOTOGRAPHS[0], "PNG")
    one = ImagePreprocess(size=(64, 64), mean=(0.5,), std=(0.25,))
    three = ImagePreprocess(size=(64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)
    np.testing.assert_array_equal(tensor(one, data), tensor(three, data))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 64),
    st.integers(1, 64),
    st.one_of(st.none(), st.integers(64, 90)),
    st.sampled_from(["JPEG", "PNG"]),
)
def test_any_size_gives_a_whole_finite_tensor(
    width: int, height: int, rows: int, columns: int, resize: int | None, form: str
) -> None:
    image = PHOTOGRAPHS[0].resize((width, height))
    found = tensor(ImagePreprocess(size=(rows, columns), resize=resize), encoded(image, form))
    assert found.shape == (3, rows, columns)
    assert np.isfinite(found).all()
    assert found.min() >= 0.0
    assert found.max() <= 1.0 + 1e-6


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"hello", b"\xff\xd8\xff\xe0junk", b"GIF89a" + bytes(40), b"RIFF\0\0\0\0WEBP"],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(MediaRefused):
        tensor(CLASSIFIER, data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_images_are_refused_or_decoded_and_nothing_else(
    form: str, data: st.DataObject
) -> None:
    whole = bytearray(encoded(PHOTOGRAPHS[0].resize((200, 150)), form))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[at:]
    else:
        whole[at] ^= data.draw(st.integers(1, 255))
    with suppress(MediaRefused):
        assert np.isfinite(tensor(CLASSIFIER, bytes(whole))).all()


def test_an_image_that_claims_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    side = int(MOST_PIXELS**0.5) + 1
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        png += struct.pack(">I", len(body)) + kind + body
        png += struct.pack(">I", zlib.crc32(kind + body))
    with pytest.raises(MediaRefused, match="Mi pixels: send a smaller one"):
        tensor(CLASSIFIER, png)
    small = bytearray(encoded(PHOTOGRAPHS[0], "JPEG"))
    frame = small.index(b"\xff\xc0")
    small[frame + 5 : frame + 9] = struct.pack(">HH", 65535, 65535)
    with pytest.raises(MediaRefused, match="65535 x 65535"):
        tensor(CLASSIFIER, bytes(small))


def test_a_view_of_the_arena_is_decoded_without_a_copy_by_the_caller() -> None:
    data = encoded(PHOTOGRAPHS[0], "JPEG")
    arena = memoryview(b"before" + data + b"behind")[6 : 6 + len(data)]
    stage = ImageStage(CLASSIFIER)
    row = np.empty(stage.row_shape, np.float32)
    stage.into(arena, row)
    np.testing.assert_array_equal(row, tensor(CLASSIFIER, data))
