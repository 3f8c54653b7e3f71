import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from tessera_core.tuning.key import BuildFacts, DeviceFacts, artefact_key
from tessera_runtime.artefacts import ArtefactRefused, ArtefactStore, key_of
from tessera_runtime.target import DeviceTarget, MemberTarget, TensorTarget

DEVICE = DeviceFacts("cpu", "A processor", "avx2", "cpu-1", 1, 0)
FACTS = BuildFacts(
    "sha256:aa", "TorchExport", "inductor/fp32", (("x", "FP32", (6,)),), DEVICE, (("torch", "2.8.0"),), 1
)  # fmt: skip
MEMBER = MemberTarget("m", "/m.pt2", "TorchExport", "sha256:aa", 8, 8, ())


def other(value):
    match value:
        case str():
            return value + "x"
        case int():
            return value + 1
        case _:
            return (*value, value[0])


@pytest.mark.parametrize(
    "name", [field.name for field in fields(BuildFacts) if field.name != "device"]
)
def test_every_fact_of_a_build_makes_another_key(name: str) -> None:
    changed = replace(FACTS, **{name: other(getattr(FACTS, name))})
    assert artefact_key(changed) != artefact_key(FACTS)


@pytest.mark.parametrize("name", [field.name for field in fields(DeviceFacts)])
def test_every_fact_of_the_share_makes_another_key(name: str) -> None:
    changed = replace(FACTS, device=replace(DEVICE, **{name: other(getattr(DEVICE, name))}))
    assert artefact_key(changed) != artefact_key(FACTS)


def test_equal_facts_have_one_key() -> None:
    assert artefact_key(replace(FACTS)) == artefact_key(FACTS)
    assert len(artefact_key(FACTS)) == 64


def test_the_key_of_a_share_depends_on_its_cores_and_not_on_which() -> None:
    def key(*cores: int) -> str:
        device = DeviceTarget("cpu", "cpu", cores, threads=len(cores))
        return key_of(MEMBER, (TensorTarget("x", "FP32", (6,)),), device, "inductor/fp32")

    assert key(0, 1) == key(2, 3)
    assert key(0) != key(0, 1)
    assert key_of(MEMBER, (), DeviceTarget("cpu", "cpu"), "openvino/fp32") == ""


@pytest.fixture
def store(tmp_path: Path) -> ArtefactStore:
    return ArtefactStore(tmp_path / "store", max_bytes=100)


def built(tmp_path: Path, data: bytes) -> int:
    path = tmp_path / "built"
    path.write_bytes(data)
    return os.open(path, os.O_RDONLY)


def keep(store: ArtefactStore, tmp_path: Path, key: str, data: bytes) -> None:
    found = built(tmp_path, data)
    try:
        store.keep(key, found)
    finally:
        os.close(found)


def read(store: ArtefactStore, key: str) -> bytes | None:
    with store.found(key) as found:
        return None if found is None else os.pread(found, 1000, 0)


def test_what_is_kept_is_found_by_its_key_and_no_other(store, tmp_path) -> None:
    keep(store, tmp_path, "a" * 64, b"program")
    assert read(store, "a" * 64) == b"program"
    assert read(store, "b" * 64) is None
    assert read(store, "") is None
    assert (tmp_path / "store" / ("a" * 64)).stat().st_mode & 0o777 == 0o400


def test_what_was_used_longest_ago_goes_first_and_what_is_held_stays(store, tmp_path) -> None:
    for number, key in enumerate("abc"):
        keep(store, tmp_path, key, b"x" * 30)
        os.utime(tmp_path / "store" / key, (number, number))
    with store.found("b") as held:
        assert held is not None
        os.utime(tmp_path / "store" / "b", (0, 0))
        keep(store, tmp_path, "d", b"x" * 30)
        assert [read(store, key) is None for key in "abcd"] == [True, False, False, False]


def test_an_artefact_that_does_not_fit_is_refused_and_nothing_of_it_stays(store, tmp_path) -> None:
    with pytest.raises(ArtefactRefused, match="101 bytes; allowed: 1 to 100"):
        keep(store, tmp_path, "a", b"x" * 101)
    keep(store, tmp_path, "a", b"x" * 60)
    with store.found("a"), pytest.raises(ArtefactRefused, match="no room"):
        keep(store, tmp_path, "b", b"x" * 60)
    assert os.listdir(tmp_path / "store") == ["a"]


def test_what_was_being_copied_when_the_server_ended_goes(tmp_path) -> None:
    root = tmp_path / "store"
    root.mkdir(mode=0o700)
    (root / "a.0.partial").write_bytes(b"half")
    ArtefactStore(root, 100)
    assert os.listdir(root) == []


def test_a_directory_that_others_write_into_is_refused(tmp_path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(ArtefactRefused, match="choose another directory with --artefacts"):
        ArtefactStore(root, 100)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    with pytest.raises(ArtefactRefused):
        ArtefactStore(link, 100)


def test_a_link_in_the_store_is_not_followed(store, tmp_path) -> None:
    (tmp_path / "foreign").write_bytes(b"program")
    (tmp_path / "store" / "a").symlink_to(tmp_path / "foreign")
    with pytest.raises(OSError, match="symbolic"):
        read(store, "a")
