"""A preprocessing stage is a member of its service that no document can write."""

from __future__ import annotations

import base64
import json

import pytest

from support.clusters import service
from tessera_core.api import SpecInvalid
from tessera_core.api.members import ModelFormat
from tessera_core.api.preprocess import AudioPreprocess, ImagePreprocess, Preprocess
from tessera_core.api.stages import SCHEME, STAGE, from_document, stage_of, to_document

IMAGE = Preprocess(image=ImagePreprocess(size=(224, 200), resize=256, mean=(0.485,), std=(0.229,)))
AUDIO = Preprocess(audio=AudioPreprocess(mel_bands=64, max_length_s=12.5))


@pytest.mark.parametrize("stage", [IMAGE, AUDIO], ids=["image", "audio"])
def test_a_document_says_all_of_a_stage(stage: Preprocess) -> None:
    assert from_document(to_document(stage)) == stage


def test_a_service_of_media_places_one_more_than_it_has_members() -> None:
    of_images = service("s", "ab", preprocess={"image": {"size": [224, 224]}})
    assert [each.name for each in of_images.spec.placed] == ["a", "b", STAGE]
    assert service("s", "ab").spec.placed == service("s", "ab").spec.members


def test_stages_are_the_same_model_exactly_where_they_do_the_same() -> None:
    one, same, other = (
        stage_of(Preprocess(image=ImagePreprocess(size=size))).model.digest
        for size in ((8, 8), (8, 8), (8, 9))
    )
    assert one == same != other


def test_a_stage_carries_its_document_in_its_uri() -> None:
    model = stage_of(IMAGE).model
    assert model.format is ModelFormat.PREPROCESS
    scheme, _, document = model.uri.partition("://")
    assert scheme == SCHEME
    assert base64.urlsafe_b64decode(document) == to_document(IMAGE)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"revision": 0, "preprocess": {}}',
        to_document(IMAGE).replace(b"224", b'"wide"'),
        to_document(IMAGE)[:-1],
    ],
)
def test_what_is_no_document_of_this_revision_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError):  # of json and of ours
        from_document(document)


def test_no_user_writes_the_format_or_the_scheme_of_a_stage() -> None:
    document = service("s").to_dict()
    for field, value, allowed in (
        ("format", "Preprocess", '"TorchExport", "TorchScript", "ONNX", "Python"'),
        ("uri", stage_of(IMAGE).model.uri, "of one of the schemes"),
    ):
        changed = json.loads(json.dumps(document))
        changed["spec"]["members"][0]["model"][field] = value
        with pytest.raises(SpecInvalid, match=allowed):
            type(service("s")).from_dict(changed)


def test_a_member_may_be_called_like_the_stage_only_without_one() -> None:
    assert service("s", [STAGE]).spec.placed[0].name == STAGE
    with pytest.raises(SpecInvalid, match=r"spec\.members\[0\]\.name: found preprocess"):
        service("s", [STAGE], preprocess={"image": {"size": [8, 8]}})
