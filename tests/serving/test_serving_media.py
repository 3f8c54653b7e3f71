"""Clients send encoded images and recordings; the members get tensors, made once for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, infer_grpc, infer_http
from support.media import PHOTOGRAPHS, chirp, encoded, recorded, stage_file
from support.server import Server
from support.targets import member, service
from support.targets import server as target
from tessera_core.api.modelservice import Combine
from tessera_core.api.preprocess import AudioPreprocess, ImagePreprocess, Preprocess
from tessera_runtime.preprocess.audio import AudioStage
from tessera_runtime.preprocess.image import ImageStage
from tessera_runtime.target import (
    PREPROCESS,
    InstanceTarget,
    MemberTarget,
    ServiceTarget,
    TensorTarget,
)

MODEL = "test.m"
IMAGE = ImagePreprocess(size=(24, 32), resize=40, mean=(0.5,), std=(0.25,))
AUDIO = AudioPreprocess(mel_bands=16, normalise=False, max_length_s=5.0)

CENTRE = """
class Model:
    inputs = {{"x": ("FP32", (3, 24, 32))}}
    outputs = {{"y": ("FP32", (3,))}}
    def __call__(self, batch):
        return {{"y": {scale} * batch["x"].mean(axis=(2, 3))}}

def load(device, options):
    return Model()
"""

LOUDNESS = """
import numpy

class Model:
    inputs = {"features": ("FP32", (-1, 16)), "length": ("INT64", (1,))}
    outputs = {"y": ("FP32", (16,)), "n": ("INT64", (2,))}
    def __call__(self, batch):
        length = batch["length"]
        padded = numpy.full_like(length, batch["features"].shape[1])
        sums = batch["features"].sum(axis=1)
        return {"y": sums / length.astype("f4"), "n": numpy.concatenate([length, padded], axis=1)}

def load(device, options):
    return Model()
"""


def stage(directory: Path, preprocess: Preprocess, **settings: object) -> MemberTarget:
    path = stage_file(directory, preprocess)
    return member("preprocess", path, format=PREPROCESS, allow_code=False, **settings)


def models(directory: Path, **scales: float) -> Iterator[MemberTarget]:
    for name, scale in scales.items():
        path = directory / f"{name}.py"
        path.write_text(CENTRE.format(scale=scale))
        yield member(name, path)


def images(directory: Path, instances: int = 1, **settings: object) -> ServiceTarget:
    members = models(directory, a=1.0, b=3.0)
    first = stage(directory, Preprocess(image=IMAGE), instances=instances)
    values = {"combine": Combine.MEAN, "min_members": 2} | settings
    return service("m", *members, first, **values)


def tensors(*media: bytes) -> np.ndarray:
    made = ImageStage(IMAGE)
    rows = np.empty((len(media), *made.row_shape), np.float32)
    for row, each in zip(rows, media, strict=True):
        made.into(each, row)
    return rows


def elements(*media: bytes) -> np.ndarray:
    return np.array(media, dtype=object)


JPEGS = tuple(encoded(each.resize((300, 200)), "JPEG") for each in PHOTOGRAPHS)


def test_an_ensemble_answers_to_encoded_images(server: Server, tmp_path: Path) -> None:
    server.apply(target(images(tmp_path)))
    media = elements(*JPEGS, encoded(PHOTOGRAPHS[0], "PNG"), encoded(PHOTOGRAPHS[1], "WEBP"))
    expected = 2.0 * tensors(*media).mean(axis=(2, 3))
    for answer in (
        infer_http(server.http(), MODEL, media, "image"),
        infer_grpc(server.grpc(), MODEL, media, "image"),
    ):
        np.testing.assert_allclose(answer.as_numpy("y"), expected, atol=1e-5)


def test_each_image_is_decoded_once_for_all_members(server: Server, tmp_path: Path) -> None:
    server.apply(target(images(tmp_path)))
    before = {each: server.member(MODEL, each).rows for each in ("a", "b", "preprocess")}
    for _ in range(3):
        infer_http(server.http(), MODEL, elements(*JPEGS), "image")
    after = {each: server.member(MODEL, each).rows for each in ("a", "b", "preprocess")}
    assert {each: after[each] - before[each] for each in after} == dict.fromkeys(after, 6)


def test_clients_are_told_that_images_are_taken(server: Server, tmp_path: Path) -> None:
    server.apply(target(images(tmp_path)))
    metadata = server.http().get_model_metadata(MODEL)
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [each["name"] for each in metadata["outputs"]] == ["y"]
    assert metadata["platform"] == "tessera_ensemble"


@pytest.mark.parametrize(
    "media", [elements(b"no image"), elements(JPEGS[0], b"\xff\xd8\xff"), elements(b"")]
)
def test_what_is_no_image_is_refused_as_the_clients_fault(
    server: Server, tmp_path: Path, media: np.ndarray
) -> None:
    server.apply(target(images(tmp_path)))
    with pytest.raises(InferenceServerException, match=r"inputs\.image") as refused:
        infer_http(server.http(), MODEL, media, "image")
    assert "400" in str(refused.value.status())
    infer_http(server.http(), MODEL, elements(JPEGS[0]), "image")
    assert server.member(MODEL, "preprocess").restarts == 0


def test_a_bad_image_fails_nobody_else(server: Server, crowd: Crowd, tmp_path: Path) -> None:
    server.apply(target(images(tmp_path)))
    expected = 2.0 * tensors(JPEGS[0]).mean(axis=(2, 3))
    asked = [
        crowd.ask(MODEL, elements(b"bad" if number % 4 == 0 else JPEGS[0]), name="image")
        for number in range(40)
    ]
    for number, answer in enumerate(asked):
        if number % 4 == 0:
            with pytest.raises(InferenceServerException, match="no image"):
                answer.result()
        else:
            np.testing.assert_allclose(answer.result(), expected, atol=1e-5)


def test_tensors_in_place_of_media_are_refused(server: Server, tmp_path: Path) -> None:
    server.apply(target(images(tmp_path)))
    with pytest.raises(InferenceServerException, match=r"inputs\.image\.datatype: found FP32"):
        infer_http(server.http(), MODEL, tensors(JPEGS[0])[:, 0, 0, 0], "image")


def test_the_arena_is_empty_after_all_answers(server: Server, crowd: Crowd, tmp_path: Path) -> None:
    server.apply(target(images(tmp_path, instances=2)))
    used = server.report().arena_used
    for answer in [crowd.ask(MODEL, elements(*JPEGS), name="image") for _ in range(32)]:
        answer.result()
    server.wait_for(lambda report: report.arena_used == used, "the arena to be free again")


def test_a_stage_that_does_not_fit_the_members_is_a_problem_of_the_service(
    server: Server, tmp_path: Path
) -> None:
    wide = Preprocess(image=ImagePreprocess(size=(48, 48)))
    members = (*models(tmp_path, a=1.0), stage(tmp_path, wide))
    server.apply(target(service("m", *members, combine=Combine.NONE, min_members=1)), wait=False)
    server.wait_for(
        lambda report: "preprocessing makes FP32[3, 48, 48]" in report.services[0].problem,
        "the misfit to be told",
    )


def loudness(directory: Path, **settings: object) -> ServiceTarget:
    path = directory / "loudness.py"
    path.write_text(LOUDNESS)
    members = (member("a", path), stage(directory, Preprocess(audio=AUDIO)))
    values = {"combine": Combine.NONE, "min_members": 1} | settings
    return service("m", *members, **values)


def test_recordings_of_different_lengths_share_requests(server: Server, tmp_path: Path) -> None:
    server.apply(target(loudness(tmp_path)))
    media = [recorded(chirp(length_s, 16_000), 16_000) for length_s in (0.4, 1.0, 0.25)]
    features = [AudioStage(AUDIO).features(each) for each in media]
    answer = infer_http(server.http(), MODEL, elements(*media), "audio")
    frames = [len(each) for each in features]
    assert answer.as_numpy("n").tolist() == [[each, max(frames)] for each in frames]
    expected = [each.sum(axis=0) / len(each) for each in features]
    np.testing.assert_allclose(answer.as_numpy("y"), expected, rtol=1e-4)


def test_a_request_is_not_padded_to_the_length_of_its_batch_mates(
    server: Server, crowd: Crowd, tmp_path: Path
) -> None:
    server.apply(target(loudness(tmp_path)))
    media = {length_s: recorded(chirp(length_s, 16_000), 16_000) for length_s in (0.1, 0.5, 2.0)}
    frames = {length_s: len(AudioStage(AUDIO).features(each)) for length_s, each in media.items()}
    lengths = [(0.1, 0.5, 2.0)[number % 3] for number in range(30)]
    asked = [
        crowd.submit(infer_grpc, crowd.client, MODEL, elements(media[length_s]), "audio")
        for length_s in lengths
    ]
    for length_s, answer in zip(lengths, asked, strict=True):
        found = answer.result().as_numpy("n").tolist()
        assert found == [[frames[length_s]] * 2]


def test_recordings_are_padded_up_to_the_declared_bucket(server: Server, tmp_path: Path) -> None:
    inputs = (
        TensorTarget("features", "FP32", (-1, 16), buckets=((50, 16), (100, 16))),
        TensorTarget("length", "INT64", (1,)),
    )
    server.apply(target(loudness(tmp_path, inputs=inputs)))
    media = recorded(chirp(0.7, 16_000), 16_000)
    answer = infer_http(server.http(), MODEL, elements(media), "audio")
    assert answer.as_numpy("n").tolist() == [[len(AudioStage(AUDIO).features(media)), 100]]
    with pytest.raises(
        InferenceServerException, match=r"the largest padding bucket is \[100, 16\]"
    ):
        infer_http(server.http(), MODEL, elements(recorded(chirp(2, 16_000), 16_000)), "audio")


def test_a_stage_runs_on_cores_of_its_own(server: Server, tmp_path: Path) -> None:
    wanted = images(tmp_path)
    *others, first = wanted.members
    first = msgspec.structs.replace(first, instances=(InstanceTarget("cpu-1", 2),))
    server.apply(target(msgspec.structs.replace(wanted, members=(*others, first))))
    assert server.member(MODEL, "preprocess").device == "cpu-1"
    infer_http(server.http(), MODEL, elements(*JPEGS), "image")
