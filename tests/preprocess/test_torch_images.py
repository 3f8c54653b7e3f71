"""Batches decoded by torch, on a GPU where there is one, are what the processor's decoder makes of each image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.media import PHOTOGRAPHS, encoded, resized, torchvision_reference
from tessera_core.api.preprocess import ImagePreprocess, Layout
from tessera_runtime.preprocess import torch_images
from tessera_runtime.preprocess.errors import MediaRefused
from tessera_runtime.preprocess.image import ImageStage
from tessera_runtime.preprocess.torch_images import BatchStage

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSIFIER = ImagePreprocess(size=(224, 224), resize=256, mean=MEAN, std=STD)
STRETCHED = ImagePreprocess(size=(96, 160), mean=MEAN, std=STD)
SIZES = ((640, 427), (1024, 768), (901, 1333), (257, 300), (120, 90), (3000, 40))
TRUNCATED = encoded(PHOTOGRAPHS[0], "JPEG")[:20_000]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return str(request.param)


def batch(spec: ImagePreprocess, device: str, *images: bytes) -> np.ndarray:
    stage = BatchStage(spec, device)
    rows = np.full((len(images), *stage.row_shape), np.nan, np.float32)
    stage.into(images, rows)
    return rows


def alone(spec: ImagePreprocess, data: bytes) -> np.ndarray:
    stage = ImageStage(spec)
    row = np.empty(stage.row_shape, np.float32)
    stage.into(data, row)
    return row


def steps_off(spec: ImagePreprocess, found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """On the 0..255 scale, before normalising."""
    scale = 255 * np.broadcast_to(np.asarray(spec.std, np.float32), 3)[:, None, None]
    steps: np.ndarray = (np.abs(found - expected) * scale).round(3)
    return steps


@pytest.mark.parametrize("spec", [CLASSIFIER, STRETCHED], ids=["cut", "stretched"])
def test_a_batch_of_all_sizes_is_within_the_stated_distance_of_torchvision(
    spec: ImagePreprocess, device: str
) -> None:
    options = ({"quality": 90}, {"quality": 75, "progressive": True}, {"subsampling": 0})
    images = [
        encoded(image, "JPEG", **each)
        for size in SIZES
        for image, each in zip((*resized(size), next(resized(size))), options, strict=True)
    ]
    for data, found in zip(images, batch(spec, device, *images), strict=True):
        off = steps_off(spec, found, torchvision_reference(spec, data))
        if device == "cpu":  # the same decoder as the reference
            assert off.max() <= 1.0
        assert off.mean() <= 1.0
        assert np.percentile(off, 99) <= 6.0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(1, 64),
    st.integers(1, 64),
    st.one_of(st.none(), st.integers(64, 90)),
)
def test_resizing_and_cutting_by_products_is_within_a_step_of_pillow(
    width: int, height: int, rows: int, columns: int, resize: int | None
) -> None:
    spec = ImagePreprocess(size=(rows, columns), resize=resize)
    data = encoded(PHOTOGRAPHS[0].resize((width, height)), "JPEG", quality=95)
    (found,) = batch(spec, "cpu", data)
    assert steps_off(spec, found, torchvision_reference(spec, data)).max() <= 1.0


@pytest.mark.parametrize(("form", "mode"), [("PNG", "RGB"), ("WEBP", "RGB"), ("JPEG", "CMYK")])
def test_what_gpus_do_not_decode_is_decoded_on_the_processor(
    form: str, mode: str, device: str
) -> None:
    other = encoded(PHOTOGRAPHS[1].resize((300, 200)).convert(mode), form)
    jpeg = encoded(PHOTOGRAPHS[0], "JPEG")
    found = batch(CLASSIFIER, device, jpeg, other, jpeg)
    np.testing.assert_array_equal(found[1], alone(CLASSIFIER, other))
    np.testing.assert_array_equal(found[0], found[2])


def test_grey_jpegs_become_three_colours(device: str) -> None:
    data = encoded(PHOTOGRAPHS[0].convert("L"), "JPEG")
    (found,) = batch(ImagePreprocess(size=(64, 64)), device, data)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_channels_last_is_the_same_tensor_in_another_order(device: str) -> None:
    data = encoded(PHOTOGRAPHS[0], "JPEG")
    last = ImagePreprocess(size=(224, 200), resize=256, mean=MEAN, std=STD, layout=Layout.NHWC)
    first = ImagePreprocess(size=(224, 200), resize=256, mean=MEAN, std=STD)
    found = batch(last, device, data)
    assert found.shape == (1, 224, 200, 3)
    np.testing.assert_array_equal(np.moveaxis(found, -1, 1), batch(first, device, data))


@pytest.mark.parametrize("damaged", [TRUNCATED, b"hello", b"\xff\xd8\xff\xe0junk\xff\xd9"])
def test_a_damaged_image_is_refused_by_its_row(damaged: bytes, device: str) -> None:
    jpeg = encoded(PHOTOGRAPHS[0], "JPEG")
    with pytest.raises(MediaRefused) as refused:
        batch(CLASSIFIER, device, jpeg, jpeg, damaged, jpeg)
    assert refused.value.at == 2


def test_what_the_decoder_refuses_is_left_to_the_processor_and_the_others_are_not(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (encoded(image, "JPEG") for image in PHOTOGRAPHS)
    whole = batch(CLASSIFIER, device, good)
    real, calls = torch_images.decode_jpeg, []

    def picky(tensors: list[torch.Tensor], *rest: object) -> list[torch.Tensor]:
        calls.append(len(tensors))
        if any(bytes(each.numpy()) == bad for each in tensors):
            raise RuntimeError("unsupported")
        found: list[torch.Tensor] = real(tensors, *rest)
        return found

    monkeypatch.setattr(torch_images, "decode_jpeg", picky)
    found = batch(CLASSIFIER, device, good, bad, good)
    assert calls == [3, 1, 1, 1]
    np.testing.assert_array_equal(found[0], whole[0])
    np.testing.assert_array_equal(found[2], whole[0])
    np.testing.assert_array_equal(found[1], alone(CLASSIFIER, bad))


def test_one_call_decodes_no_more_pixels_than_the_device_has_memory_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photograph = PHOTOGRAPHS[0].resize((100, 100))
    small = encoded(photograph, "JPEG")
    large = encoded(photograph.resize((200, 200)), "JPEG")
    monkeypatch.setattr(torch_images, "MOST_AT_ONCE", 25_000)
    real, calls = torch_images.decode_jpeg, []

    def watched(tensors: list[torch.Tensor], *rest: object) -> list[torch.Tensor]:
        calls.append(len(tensors))
        found: list[torch.Tensor] = real(tensors, *rest)
        return found

    monkeypatch.setattr(torch_images, "decode_jpeg", watched)
    found = batch(CLASSIFIER, "cpu", small, small, large, small)
    assert calls == [2, 1]
    np.testing.assert_array_equal(found[2], alone(CLASSIFIER, large))


def test_a_long_image_is_left_to_the_processor() -> None:
    long = encoded(Image.new("RGB", (torch_images.MOST_SIDE + 1, 8), "red"), "JPEG")
    (found,) = batch(CLASSIFIER, "cpu", long)
    np.testing.assert_array_equal(found, alone(CLASSIFIER, long))


def test_images_with_alpha_are_not_for_gpus() -> None:
    with pytest.raises(ValueError, match="2 values of mean"):
        BatchStage(ImagePreprocess(size=(8, 8), mean=(0.5, 0.5), std=(1.0, 1.0)), "cpu")
