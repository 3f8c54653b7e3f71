"""Clients send images; a stage of the service makes tensors of them, once for all members."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tritonclient.http as http_client
from e2e.system.installation import Installation
from e2e.system.models import averages
from e2e.system.services import model_service
from tritonclient.utils import InferenceServerException

SIDE = 8
MEAN, STD = 0.5, 0.25
COLOUR = (10, 128, 250)


def plain(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """A PNG of one colour: whatever its size, resizing does not change it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = (b"\0" + bytes(colour) * width) * height
    found = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        found += struct.pack(">I", len(body)) + kind + body
        found += struct.pack(">I", zlib.crc32(kind + body))
    return found


def given(*images: bytes) -> list[http_client.InferInput]:
    elements = np.array(images, dtype=object)
    found = http_client.InferInput("image", elements.shape, "BYTES")
    found.set_data_from_numpy(elements)
    return [found]


def test_an_ensemble_is_served_from_images(installed: Installation, namespace: str) -> None:
    members = {
        name: installed.store.put(f"{namespace}/{name}.onnx", averages(scale, SIDE))
        for name, scale in (("a", 1.0), ("b", 3.0))
    }
    image = {"size": [SIDE, SIDE], "mean": [str(MEAN)], "std": [str(STD)]}
    installed.apply(model_service(namespace, "colours", members, preprocess={"image": image}))
    service = installed.service(namespace, "colours")
    service.wait_until_serving()
    target = service.target()
    expected = 2.0 * (np.array(COLOUR) / 255 - MEAN) / STD
    with http_client.InferenceServerClient(f"{target.address}:{target.http}") as client:
        images = given(plain(40, 30, COLOUR), plain(3, 200, COLOUR))
        found = client.infer(service.served_name, images).as_numpy("y")
        np.testing.assert_allclose(found, [expected, expected], atol=1e-3)
        with pytest.raises(InferenceServerException, match="that are no image") as refused:
            client.infer(service.served_name, given(b"no image"))
        assert "400" in str(refused.value.status())
    members_now = service.document()["status"]["members"]
    assert [each["name"] for each in members_now] == ["a", "b", "preprocess"]
    assert all(each["ready"] for each in members_now)
