import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera_runtime.models.cache import ModelCache
from tessera_runtime.models.errors import NotFound
from tessera_runtime.models.fetch import open_source

DATA = random.Random(2).randbytes(300_000)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict]:
    """A real S3 server on loopback, as fsspec options."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"key": "key", "secret": "hunter2", "endpoint_url": f"http://{host}:{port}"}
    server.stop()


def put(options: dict, path: str, data: bytes) -> None:
    import s3fs

    filesystem = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    filesystem.makedirs(path.partition("/")[0], exist_ok=True)
    filesystem.pipe_file(path, data)


def test_a_model_comes_from_s3_once_until_it_changes(s3, tmp_path: Path):
    put(s3, "models/cnn.pt2", DATA)
    cache = ModelCache(tmp_path, 10**7, pause=lambda _: None)
    seen: list[int] = []
    for _ in range(2):
        with cache.fetch(
            "s3://models/cnn.pt2",
            storage_options=s3,
            progress=lambda done, total: seen.append(done),
        ) as model:
            assert model.digest == "sha256:" + hashlib.sha256(DATA).hexdigest()
            assert model.path.name == "model.pt2"
    assert seen == [len(DATA)]
    put(s3, "models/cnn.pt2", DATA[::-1])
    with cache.fetch("s3://models/cnn.pt2", storage_options=s3) as model:
        assert model.path.read_bytes() == DATA[::-1]


def test_a_missing_s3_key_is_not_found(s3, tmp_path: Path):
    put(s3, "models/x", b"x")
    cache = ModelCache(tmp_path, 10**7, pause=lambda _: None)
    with pytest.raises(NotFound, match=r"s3://models/none\.onnx"):
        cache.fetch("s3://models/none.onnx", storage_options=s3)


@pytest.mark.parametrize(
    ("uri", "filesystem"),
    [
        ("gs://bucket/net.onnx", "GCSFileSystem"),
        ("hf://org/name/net.onnx", "HfFileSystem"),
        ("https://host/net.onnx", "HTTPFileSystem"),
    ],
)
def test_each_scheme_opens_its_own_filesystem(uri, filesystem):
    options = {"token": "anon"} if uri.startswith("gs") else {}
    source = open_source(uri, options, frozenset({"gs", "hf", "https"}))
    assert filesystem in [kind.__name__ for kind in type(source.filesystem).__mro__]
    assert source.suffix == ".onnx"
