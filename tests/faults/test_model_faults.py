"""Models that raise, answer nonsense, are missing or corrupt: the batch or the model fails, nothing else does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support.clients import Crowd, Load
from support.model_files import (
    NO_OUTPUT,
    RAISE,
    WRONG_DATATYPE,
    WRONG_ROWS,
    ModelFile,
    rows,
    told,
)
from support.server import Server
from support.targets import member, service
from support.targets import server as target


@pytest.mark.parametrize(
    ("magic", "reason"),
    [
        (RAISE, "told to raise"),
        (WRONG_ROWS, "'y'.*shape"),
        (WRONG_DATATYPE, "'y'.*float64"),
        (NO_OUTPUT, "'y' is missing"),
    ],
)
def test_a_batch_that_fails_fails_only_the_request_to_blame(
    server: Server, crowd: Crowd, file: ModelFile, magic: float, reason: str
):
    server.apply(target(service("m", member("a", file))))
    file.hold()
    first = crowd.ask("test.m", rows(1))
    file.wait_held()
    mates = [(x := rows(i), crowd.ask("test.m", x)) for i in range(2, 6)]
    blamed = crowd.ask("test.m", told(magic))
    server.wait_for(lambda r: r.services[0].members[0].queued_rows == 5, "the batch queued")
    file.let_go()
    with pytest.raises(InferenceServerException, match=f"INTERNAL.*member a: .*{reason}"):
        blamed.result()
    for x, answer in [(rows(1), first), *mates]:
        np.testing.assert_array_equal(answer.result(), file(x))
    report = server.member("test.m")
    assert (report.restarts, report.ready, report.problem) == (0, 1, "")


BROKEN = {
    "corrupt Python": ("model.py", "Python", b"def load(", "never closed"),
    "not a Python model": ("model.py", "Python", b"x = 1", "load"),
    "corrupt ONNX": ("model.onnx", "ONNX", b"\x00\x01garbage", ""),
    "unknown format": ("model.bin", "Pickle", b"", "Pickle"),
    "raises while warming": (
        "model.py",
        "Python",
        b"class M:\n inputs = outputs = {'x': ('FP32', (1,))}\n"
        b" def __call__(self, b): return 1 / 0\ndef load(d, o): return M()",
        "warming failed.*ZeroDivisionError",
    ),
}


@pytest.mark.parametrize(("name", "format_", "data", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_model_says_why_and_leaves_the_others_serving(
    server: Server,
    file: ModelFile,
    tmp_path: Path,
    name: str,
    format_: str,
    data: bytes,
    reason: str,
):
    broken = tmp_path / f"broken-{name}"
    broken.write_bytes(data)
    good = service("good", member("a", file))
    bad = service("bad", member("a", broken, format=format_))
    server.apply(target(good))
    with Load(server.ports(), "test.good", file, clients=2) as load:
        server.apply(target(good, bad), wait=False)
        server.wait_for(
            lambda r: any(s.name == "test.bad" and s.members[0].problem for s in r.services),
            "the reason reported",
        )
        load.wait_answers(20)
    load.check()
    assert re.search(reason, server.member("test.bad").problem)
    assert not server.http().is_model_ready("test.bad")
    assert server.http().is_model_ready("test.good")


def test_a_missing_model_says_so(server: Server, tmp_path: Path):
    missing = tmp_path / "nowhere.onnx"
    server.apply(target(service("m", member("a", missing, format="ONNX"))), wait=False)
    server.wait_for(lambda r: r.services[0].members[0].problem, "the reason reported")
    assert "ready" not in server.member("test.m").problem
    assert not server.report().ready
    server.apply(target())


def test_members_that_do_not_fit_together_say_so(server: Server, file: ModelFile, tmp_path: Path):
    wide = tmp_path / "wide.py"
    wide.write_text(file.path.read_text().replace("(4,)", "(5,)"))
    wanted = target(service("m", member("a", file), member("b", wide)))
    server.apply(wanted, wait=False)
    server.wait_for(lambda r: "FP32[5]" in r.services[0].problem, "the contradiction reported")
    with pytest.raises(InferenceServerException, match="still being loaded"):
        server.grpc().get_model_metadata("test.m")
    server.apply(target())
