"""The coverage-guided harnesses, each for a bounded run from a few seeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hpack import Encoder

from support.raw_http import INFER, json_infer, request
from support.raw_http2 import INFER as RPC_INFER
from support.raw_http2 import call_fields, framed, identity_request
from tessera_runtime.protocol.http2 import frames
from tessera_runtime.protocol.messages import ModelInferRequest

_FOLDER = Path(__file__).parent
_SECONDS = 8


def _message() -> bytes:
    request = ModelInferRequest(raw_input_contents=[bytes(8)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    return request.SerializeToString()


def _frames() -> bytes:
    block = Encoder().encode(call_fields(RPC_INFER).items())
    data = framed(identity_request("seed"))
    return (
        b"\xff"
        + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
        + frames.frame(frames.DATA, frames.END_STREAM, 1, data)
        + frames.frame(frames.PING, 0, 0, bytes(8))
        + frames.window_update(1, 5)
        + frames.reset(1, frames.Code.CANCEL)
    )


SEEDS = {
    "fuzz_http": b"\xff\xff" + request("POST", INFER, json_infer()) + request("GET", "/v2"),
    "fuzz_v2": b"\0\0" + json_infer("seed"),
    "fuzz_grpc": _message(),
    "fuzz_http2": _frames(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEEDS)
def test_a_bounded_run_finds_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(SEEDS[name])
    command = [
        sys.executable,
        str(_FOLDER / f"{name}.py"),
        f"-max_total_time={_SECONDS}",
        "-max_len=4096",
        "-seed=1",
        f"-artifact_prefix={tmp_path}/",
        str(corpus),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Done" in ended.stderr
