import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tessera_runtime.models import fetch as fetching
from tessera_runtime.models.cache import ModelCache
from tessera_runtime.models.errors import (
    Denied,
    DigestMismatch,
    FetchError,
    InvalidUri,
    NoSpace,
    NotFound,
    SchemeUnsupported,
    TooLarge,
    Unreachable,
)

CHUNK = 16 * 1024
DATA = random.Random(1).randbytes(6 * CHUNK + 123)
MIB = 2**20


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "CHUNK", CHUNK)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return make_cache(tmp_path)


def make_cache(tmp_path: Path, max_bytes: int = 10 * MIB, **options) -> ModelCache:
    return ModelCache(tmp_path / "cache", max_bytes, pause=lambda _: None, **options)


def leftovers(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "partial").iterdir())


def test_a_file_is_copied_under_its_digest(cache, tmp_path):
    source = tmp_path / "net.pt2"
    source.write_bytes(DATA)
    with cache.fetch(f"file://{source}") as model:
        assert model.path.read_bytes() == DATA
        assert model.digest == sha256(DATA)
        assert model.size == len(DATA)
        assert model.path.name == "model.pt2"
        assert model.path.parent.name == model.digest.removeprefix("sha256:")
    assert leftovers(tmp_path) == []


def test_an_unchanged_http_file_is_downloaded_once_without_a_digest(cache, store):
    store.files["a.onnx"] = DATA
    with cache.fetch(store.url("a.onnx")):
        pass
    store.gets.clear()
    with cache.fetch(store.url("a.onnx")) as again:
        assert again.path.read_bytes() == DATA
    assert store.gets == []


def test_a_changed_source_is_downloaded_again(cache, store):
    store.files["a.onnx"] = DATA
    cache.fetch(store.url("a.onnx")).close()
    store.files["a.onnx"] = DATA[::-1]
    with cache.fetch(store.url("a.onnx")) as model:
        assert model.path.read_bytes() == DATA[::-1]


def test_a_source_without_identity_is_never_taken_for_unchanged(cache, store):
    store.etags = False
    store.files["a.onnx"] = DATA
    cache.fetch(store.url("a.onnx")).close()
    store.files["a.onnx"] = DATA[::-1]  # the same size
    with cache.fetch(store.url("a.onnx")) as model:
        assert model.path.read_bytes() == DATA[::-1]


def test_a_pinned_digest_that_is_cached_needs_no_network(cache, store):
    store.files["a.onnx"] = DATA
    cache.fetch(store.url("a.onnx"), sha256(DATA)).close()
    store.gets.clear()
    store.status = 500
    with cache.fetch("https://127.0.0.1:1/elsewhere.pt2", sha256(DATA)) as model:
        assert model.path.read_bytes() == DATA
        assert model.path.name == "model.pt2"


def test_between_tenants_a_digest_alone_opens_nothing(tmp_path, store):
    cache = make_cache(tmp_path, single_tenant=False)
    store.files |= {"secret.pt2": DATA, "mine.pt2": b"mine"}
    cache.fetch(store.url("secret.pt2"), sha256(DATA)).close()
    with pytest.raises(DigestMismatch):
        cache.fetch(store.url("mine.pt2"), sha256(DATA))


def test_between_tenants_every_fetch_asks_the_store(tmp_path, store):
    cache = make_cache(tmp_path, single_tenant=False)
    store.files["a.pt2"] = DATA
    cache.fetch(store.url("a.pt2"), sha256(DATA)).close()
    store.status = 403
    with pytest.raises(Denied):
        cache.fetch(store.url("a.pt2"), sha256(DATA))


def test_between_tenants_what_one_has_read_is_not_known_to_another(tmp_path, store):
    cache = make_cache(tmp_path, single_tenant=False)
    store.files["a.pt2"] = DATA
    cache.fetch(store.url("a.pt2"), sha256(DATA), reader="vision").close()
    store.gets.clear()
    cache.fetch(store.url("a.pt2"), sha256(DATA), reader="vision").close()
    assert store.gets == [], "asked, not read"
    store.status = 503
    cache.fetch(store.url("a.pt2"), sha256(DATA), reader="vision").close()
    with pytest.raises(Unreachable):
        cache.fetch(store.url("a.pt2"), sha256(DATA), reader="audio")
    store.status = None
    cache.fetch(store.url("a.pt2"), sha256(DATA), reader="audio").close()
    assert store.gets != []


def test_a_file_that_was_given_out_before_is_held_without_asking_anybody(tmp_path, store):
    cache = make_cache(tmp_path, max_bytes=len(DATA), single_tenant=False)
    store.files["a.pt2"] = DATA
    with cache.fetch(store.url("a.pt2")) as model:
        path = model.path
    store.status = 503
    again = make_cache(tmp_path, max_bytes=len(DATA), single_tenant=False)
    held = again.hold(path)
    assert held is not None
    with pytest.raises(NoSpace):
        again.evict(1)
    held.close()
    again.evict(1)
    assert again.hold(path) is None
    elsewhere = tmp_path / "elsewhere.pt2"
    elsewhere.write_bytes(DATA)
    assert again.hold(elsewhere) is None


def test_a_known_source_is_served_while_its_store_is_down(tmp_path, store):
    cache = make_cache(tmp_path, single_tenant=False)
    store.files["a.pt2"] = DATA
    cache.fetch(store.url("a.pt2")).close()
    store.status = 503
    with cache.fetch(store.url("a.pt2")) as model:
        assert model.path.read_bytes() == DATA
    with pytest.raises(Unreachable):
        cache.fetch(store.url("a.pt2") + "?other")


def test_credentials_reach_the_store_and_other_credentials_are_another_reader(tmp_path, store):
    cache = make_cache(tmp_path)
    store.files["a.pt2"] = DATA
    store.token = "Bearer good"
    good = {"headers": {"Authorization": "Bearer good"}}
    with cache.fetch(store.url("a.pt2"), storage_options=good) as model:
        assert model.size == len(DATA)
    with pytest.raises(Denied):
        cache.fetch(store.url("a.pt2"))


def test_a_wrong_digest_leaves_nothing_behind(cache, store, tmp_path):
    store.files["a.pt2"] = DATA
    with pytest.raises(DigestMismatch, match="expected sha256:0000"):
        cache.fetch(store.url("a.pt2"), "sha256:" + "0" * 64)
    assert cache.total_bytes() == 0
    assert leftovers(tmp_path) == []


def test_a_store_without_ranges_works(cache, store):
    store.ranges = False
    store.files["a.pt2"] = DATA
    with cache.fetch(store.url("a.pt2")) as model:
        assert model.path.read_bytes() == DATA


def test_a_broken_connection_is_continued_where_it_broke(cache, store):
    store.files["a.pt2"] = DATA
    first_bytes = []
    with cache.fetch(store.url("a.pt2")):
        first_bytes = [first for _, first in store.gets]
    middle = first_bytes[len(first_bytes) // 2]
    assert middle > 0
    store.gets.clear()
    store.break_at = {middle}
    with cache.fetch(store.url("a.pt2") + "?again") as model:
        assert model.path.read_bytes() == DATA
    assert store.break_at == set()
    assert [first for _, first in store.gets].count(0) == 1


def test_a_store_that_always_breaks_off_is_unreachable_after_bounded_attempts(tmp_path, store):
    pauses: list[float] = []
    cache = ModelCache(tmp_path / "cache", MIB, pause=pauses.append)
    store.files["a.pt2"] = DATA
    store.status = 503
    with pytest.raises(Unreachable) as caught:
        cache.fetch(store.url("a.pt2"))
    assert caught.value.temporary
    assert pauses == [0.5, 1.0, 2.0]


CHILD = """
import sys
from tessera_runtime.models import fetch
from tessera_runtime.models.cache import ModelCache
fetch.CHUNK = int(sys.argv[3])
with ModelCache(sys.argv[1], 10 * 2**20).fetch(sys.argv[2]) as model:
    print(model.digest, flush=True)
"""


def child(tmp_path: Path, uri: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "cache"), uri, str(CHUNK)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("with_digest", [False, True])
def test_a_killed_download_is_continued(cache, store, tmp_path, with_digest):
    store.files["a.pt2"] = DATA
    store.hold_after = 4 * CHUNK
    with child(tmp_path, store.url("a.pt2")) as process:
        assert store.held.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (partial,) = leftovers(tmp_path)
    kept = partial.stat().st_size
    assert 0 < kept < len(DATA)
    assert DATA.startswith(partial.read_bytes())
    store.released.set()
    store.gets.clear()
    seen: list[tuple[int, int | None]] = []
    digest = sha256(DATA) if with_digest else None
    with cache.fetch(
        store.url("a.pt2"), digest, progress=lambda done, total: seen.append((done, total))
    ) as model:
        assert model.path.read_bytes() == DATA
    assert min(first for _, first in store.gets) >= kept
    assert seen[0][0] > kept
    assert seen[-1] == (len(DATA), len(DATA))


def test_a_partial_of_a_source_that_changed_is_dropped(cache, store, tmp_path):
    store.files["a.pt2"] = DATA
    store.hold_after = 4 * CHUNK
    with child(tmp_path, store.url("a.pt2")) as process:
        assert store.held.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(leftovers(tmp_path)) == 1
    store.released.set()
    store.files["a.pt2"] = DATA[::-1]
    with cache.fetch(store.url("a.pt2")) as model:
        assert model.path.read_bytes() == DATA[::-1]
    assert leftovers(tmp_path) == []


def test_a_partial_with_wrong_content_is_fetched_anew_when_the_digest_is_known(
    cache, store, tmp_path
):
    store.files["a.pt2"] = DATA
    store.hold_after = 4 * CHUNK
    with child(tmp_path, store.url("a.pt2")) as process:
        assert store.held.wait(60)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (partial,) = leftovers(tmp_path)
    partial.write_bytes(b"x" * partial.stat().st_size)
    store.released.set()
    with cache.fetch(store.url("a.pt2"), sha256(DATA)) as model:
        assert model.path.read_bytes() == DATA


def test_a_source_that_changes_while_it_is_read_is_not_kept(cache, store, tmp_path):
    store.files["a.pt2"] = DATA

    def change(done: int, total: int | None) -> None:
        store.files["a.pt2"] = DATA[::-1]

    with pytest.raises(Unreachable, match="changed while it was read"):
        cache.fetch(store.url("a.pt2"), progress=change)
    assert cache.total_bytes() == 0
    with cache.fetch(store.url("a.pt2")) as model:
        assert model.path.read_bytes() == DATA[::-1]


def test_processes_and_threads_share_one_download(cache, store, tmp_path):
    store.files["a.pt2"] = DATA
    store.hold_after = 4 * CHUNK
    digests: list[str] = []

    def fetch() -> None:
        with cache.fetch(store.url("a.pt2")) as model:
            digests.append(model.digest)

    processes = [child(tmp_path, store.url("a.pt2")) for _ in range(2)]
    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert store.held.wait(60)
    store.released.set()
    for thread in threads:
        thread.join()
    digests += [process.communicate(timeout=60)[0].decode().strip() for process in processes]
    assert digests == [sha256(DATA)] * 4
    assert [first for _, first in store.gets].count(0) == 1


def test_a_file_larger_than_the_cache_is_refused_before_download(tmp_path, store):
    cache = make_cache(tmp_path, max_bytes=len(DATA) - 1)
    store.files["a.pt2"] = DATA
    with pytest.raises(TooLarge, match=f"{len(DATA)} bytes"):
        cache.fetch(store.url("a.pt2"))
    assert store.gets == []


def test_the_least_recently_used_file_is_evicted_first(tmp_path):
    cache = make_cache(tmp_path, max_bytes=250)
    uris = {}
    for name in ("old", "new", "third"):
        (tmp_path / name).write_bytes(name[0].encode() * 100)
        uris[name] = f"file://{tmp_path / name}"
    old = cache.fetch(uris["old"])
    new = cache.fetch(uris["new"])
    old.close(), new.close()
    os.utime(new.path, (1, 1))
    os.utime(old.path, (2, 2))
    cache.fetch(uris["third"]).close()
    assert not new.path.exists()
    assert old.path.exists()
    assert cache.total_bytes() == 200


def test_a_file_in_use_is_never_evicted(tmp_path):
    cache = make_cache(tmp_path, max_bytes=250)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    held = [cache.fetch(f"file://{tmp_path / name}") for name in ("a", "b")]
    with pytest.raises(NoSpace):
        cache.fetch(f"file://{tmp_path / 'c'}")
    assert all(model.path.exists() for model in held)
    held[0].close()
    with cache.fetch(f"file://{tmp_path / 'c'}") as third:
        assert third.path.exists()
    assert not held[0].path.exists()
    assert held[1].path.exists()


def test_a_full_disk_is_reported_and_not_filled_further(cache, store, monkeypatch):
    store.files["a.pt2"] = DATA
    monkeypatch.setattr("tessera_runtime.models.cache.RESERVE", 2**62)
    with pytest.raises(NoSpace):
        cache.fetch(store.url("a.pt2"))
    assert store.gets == []


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("no-scheme.pt2", InvalidUri),
        ("file://", InvalidUri),
        ("simplecache::s3://bucket/key", InvalidUri),
        ("file:///nul\0.pt2", InvalidUri),
        ("ftp://host/model.pt2", SchemeUnsupported),
        ("local:///etc/passwd", SchemeUnsupported),
        ("file:///no/such/model.pt2", NotFound),
    ],
)
def test_bad_uris_are_told_apart(cache, uri, error):
    with pytest.raises(error):
        cache.fetch(uri)


def test_a_directory_is_not_a_model(cache, tmp_path):
    with pytest.raises(InvalidUri, match="single file"):
        cache.fetch(f"file://{tmp_path}")


def test_a_malformed_digest_is_refused(cache, tmp_path):
    with pytest.raises(InvalidUri, match="64 hexadecimal"):
        cache.fetch(f"file://{tmp_path}/x", digest="md5:abc")


def test_only_allowed_schemes_are_opened(tmp_path):
    cache = make_cache(tmp_path, schemes=frozenset({"s3"}))
    with pytest.raises(SchemeUnsupported, match="allowed: s3"):
        cache.fetch(f"file://{tmp_path}/x")


def test_a_missing_library_names_the_remedy(cache):
    with pytest.raises(SchemeUnsupported, match="pip install adlfs"):
        cache.fetch("az://container/model.pt2")


@pytest.mark.parametrize("status", [404, 403, 503])
def test_no_credential_appears_in_an_error(cache, store, status):
    store.status = status
    host = store.base.removeprefix("http://")
    uri = f"http://user:hunter2@{host}/a.pt2?X-Amz-Signature=hunter3"
    with pytest.raises(FetchError) as caught:
        cache.fetch(uri, storage_options={"headers": {"Authorization": "hunter4"}})
    shown = f"{caught.value!s} {caught.value.__cause__!r}"
    assert "hunter" not in shown
    assert caught.value.__suppress_context__
    assert "/a.pt2" in shown


def test_the_index_holds_no_credential(cache, store, tmp_path):
    store.files["a.pt2"] = DATA
    cache.fetch(
        store.url("a.pt2") + "?sig=hunter3", storage_options={"headers": {"X-Key": "hunter4"}}
    ).close()
    (index,) = (tmp_path / "cache" / "uri").iterdir()
    assert "hunter" not in index.name + index.read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"digest": "../../x", "identity": ""}', "{"])
def test_a_damaged_index_only_costs_a_download(cache, store, tmp_path, text):
    store.files["a.pt2"] = DATA
    cache.fetch(store.url("a.pt2")).close()
    (index,) = (tmp_path / "cache" / "uri").iterdir()
    index.write_text(text)
    with cache.fetch(store.url("a.pt2")) as model:
        assert model.path.read_bytes() == DATA
    assert json.loads(index.read_text())["digest"] == sha256(DATA).removeprefix("sha256:")
