"""Archives that would run code when torch opens them are refused, and nothing of them runs."""

import copy
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import Dim

from support.torch_nets import Mlp, export
from tessera_runtime.engines import archive as archives
from tessera_runtime.engines.base import EngineDevice, LoadRefused, ModelFile
from tessera_runtime.engines.exported import _check_size, clean_export
from tessera_runtime.engines.loading import load_engine

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Bomb:
    """Creates the file ``path`` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def bomb(path: Path) -> bytes:
    """As torch.save writes it, so that torch.load accepts the container."""
    buffer = io.BytesIO()
    torch.save(Bomb(path), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def members(models) -> dict[str, bytes]:
    """Members of a good archive, without their root folder."""
    path = export(Mlp(), models / "safe.pt2", (torch.zeros(2, 6),), batch=Dim("batch", max=32))
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: dict[str, bytes], root: str = "m") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def edited(
    members: dict[str, bytes], name: str, edit: Callable[[dict], object]
) -> dict[str, bytes]:
    document = json.loads(members[name])
    edit(document)
    return members | {name: json.dumps(document).encode()}


def load(path: Path):
    engine = load_engine(ModelFile(str(path), "TorchExport", allow_code=False), EngineDevice("cpu"))
    x = np.ones((2, 6), np.float32)
    lane = engine.lane(2)
    lane.stage({"x": x.shape})["x"][...] = x
    return lane.run()["output_0"].copy()


def test_the_bombs_of_these_tests_do_go_off_in_torch(members, tmp_path):
    marker = tmp_path / "ran"
    path = write(tmp_path / "bad.pt2", members | {SAMPLES: bomb(marker)})
    with pytest.raises(AssertionError, match="expected tuple or dict"):
        torch.export.load(path)
    assert marker.exists()


def test_malicious_sample_inputs_are_never_read(members, tmp_path):
    marker = tmp_path / "ran"
    path = write(tmp_path / "bad.pt2", members | {SAMPLES: bomb(marker)})
    with torch.inference_mode():
        expected = Mlp().eval()(torch.ones(2, 6)).numpy()
    assert np.array_equal(load(path), expected)
    assert not marker.exists()


def _pickled(config: dict, name: str, file: str) -> None:
    config["config"].setdefault(name, copy.deepcopy(next(iter(config["config"].values()), {})))
    config["config"][name] |= {"path_name": file, "use_pickle": True}


def malicious(members: dict[str, bytes], marker: Path) -> dict[str, dict[str, bytes]]:
    """One archive per way in which torch can be made to run code."""
    code = f"__import__('os').mkdir({str(marker)!r})"
    raw = pickle.dumps(Bomb(marker))

    def graph(edit: Callable[[dict], object]) -> dict[str, bytes]:
        return edited(members, GRAPH, lambda program: edit(program["graph_module"]["graph"]))

    def root_call(edit: Callable[[dict], object]) -> dict[str, bytes]:
        return edited(
            members,
            GRAPH,
            lambda program: edit(program["graph_module"]["module_call_graph"][0]["signature"]),
        )

    def constant(file: str) -> dict[str, bytes]:
        config = {
            "config": {
                "c": {"path_name": file, "is_param": False, "use_pickle": True, "tensor_meta": None}
            }
        }
        data = bomb(marker) if file.startswith("tensor") else raw
        return members | {CONSTANTS: json.dumps(config).encode(), f"data/constants/{file}": data}

    batch = {"as_expr": {"expr_str": code, "hint": {"as_int": 2}}}
    enum = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
    spec = [1, {"type": "builtins.tuple", "context": enum, "children_spec": []}]
    old = {
        "version": b"8.20",
        "serialized_exported_program.json": members[GRAPH],
        "serialized_state_dict.pt": bomb(marker),
        "serialized_constants.pt": bomb(marker),
        "serialized_example_inputs.pt": bomb(marker),
    }
    return {
        "pickled weight": edited(
            members, WEIGHTS, lambda c: _pickled(c, "net.0.weight", "weight_0")
        )
        | {"data/weights/weight_0": bomb(marker)},
        "legacy weights": members | {"data/weights/model.pt": bomb(marker)},
        "legacy constants": members | {"data/constants/model.pt": bomb(marker)},
        "tensor constant": constant("tensor_0"),
        "custom object": constant("custom_obj_0"),
        "opaque object": constant("opaque_obj_0"),
        "layout before 2.8": old,
        "both layouts": members | {"archive_version": b"1"} | old,
        "second program": members | {"models/other.json": members[GRAPH]},
        "shared library": members | {"data/aotinductor/model/model.so": b"\x7fELF"},
        "size expression": graph(lambda g: g["tensor_values"]["x"]["sizes"].__setitem__(0, batch)),
        "attribute as operator": graph(lambda g: g["nodes"][0].update(target="torch.hub.load")),
        "loading operator": graph(lambda g: g["nodes"][0].update(target="torch.ops.load_library")),
        "file operator": graph(
            lambda g: g["nodes"][0].update(target="torch.ops.aten.from_file.default")
        ),
        "dunder of an operator": graph(
            lambda g: g["nodes"][0].update(target="torch.ops.aten.__class__.mro")
        ),
        "operator argument": graph(
            lambda g: g["nodes"][0]["inputs"][0].update(arg={"as_operator": "torch.os.mkdir"})
        ),
        "node name": graph(lambda g: g["nodes"][0].update(name=f"x = {code}\n    y")),
        "placeholder name": graph(lambda g: g["inputs"][-1]["as_tensor"].update(name=f"x={code}")),
        "argument name": root_call(lambda s: s.update(forward_arg_names=[f"x={code}"])),
        "tree of another class": root_call(
            lambda s: s.update(in_spec=s["in_spec"].replace("builtins.tuple", "collections.deque"))
        ),
        "tree with an import": root_call(lambda s: s.update(out_spec=json.dumps(spec))),
        "weight name": edited(
            members,
            WEIGHTS,
            lambda c: c["config"].update({f"'+{code}+'": c["config"]["net.0.bias"]}),
        ),
        "weight outside": edited(
            members, WEIGHTS, lambda c: c["config"]["net.0.bias"].update(path_name="../../weight_0")
        ),
    }


WAYS = sorted(malicious({GRAPH: b"""{"graph_module": {"graph": {
    "tensor_values": {"x": {"sizes": [0]}}, "inputs": [{"as_tensor": {}}],
    "nodes": [{"inputs": [{}]}]}, "module_call_graph": [{"signature": {"in_spec": ""}}]}}""",
    WEIGHTS: b'{"config": {"net.0.bias": {}}}'}, Path("x")))  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_archive_that_would_run_code_is_refused(way, members, tmp_path):
    marker = tmp_path / "ran"
    path = write(tmp_path / "bad.pt2", malicious(members, marker)[way])
    with pytest.raises(LoadRefused):
        clean_export(str(path))
    with pytest.raises(LoadRefused):
        load(path)
    assert not marker.exists()


def test_guards_are_dropped_instead_of_run(members, tmp_path):
    marker = tmp_path / "ran"
    path = write(
        tmp_path / "bad.pt2",
        edited(
            members,
            GRAPH,
            lambda p: p.update(guards_code=[f"__import__('os').mkdir({str(marker)!r}) or True"]),
        ),
    )
    load(path)
    assert not marker.exists()


def test_only_checked_members_reach_torch(members, tmp_path):
    guarded = edited(members, GRAPH, lambda p: p.update(guards_code=["evil()"]))
    path = write(
        tmp_path / "more.pt2", guarded | {"extra/notes.txt": b"x", "data/weights/weight_99": b"x"}
    )
    with clean_export(str(path)) as clean, zipfile.ZipFile(clean) as archive:
        names = set(archive.namelist())
        assert archive.read(f"model/{SAMPLES}") == b""
        assert json.loads(archive.read(f"model/{GRAPH}"))["guards_code"] == []
    assert "model/extra/notes.txt" not in names
    assert "model/data/weights/weight_99" not in names
    assert "model/data/weights/weight_0" in names


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "2*Symbol('s0', integer=True) + 1",
        "FloorDiv(s0 - 3, 2) + Max(1, s1)**2",
        "ModularIndexing(s0, 4, 8)",
    ],
)
def test_sizes_that_torch_writes_are_accepted(text):
    _check_size(text, "size")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "().__class__",
        "__import__('os')",
        "exec('1')",
        "Symbol('s0 + evil()')",
        "Symbol(s0)(1)",
        "(lambda: 1)()",
        "[x for x in s0]",
        "s0 if s1 else s2",
        "f's0'",
        "s0[0]",
        "s0 #\n + 1",
        "1 + " * 1000 + "1",
        "(" * 300 + ")" * 300,
        7,
        None,
    ],
)
def test_any_other_size_is_refused(text):
    with pytest.raises(LoadRefused, match="not a symbolic size"):
        _check_size(text, "size")


def test_too_many_members_are_refused(members, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", len(members))
    path = write(tmp_path / "many.pt2", members | {"one": b"more"})
    with pytest.raises(LoadRefused, match=f"1 to {len(members)} are allowed"):
        load(path)


def test_an_inflated_member_is_refused_by_its_directory(members, tmp_path):
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/" + GRAPH, members[GRAPH])
        archive.writestr("m/zeros", bytes(100 * 2**20))
    with pytest.raises(LoadRefused, match="would expand"):
        load(path)


@pytest.mark.parametrize(
    "name", ["m/../../evil", "/m/evil", "m/MODELS/model.json", "other/file", "m/", "m/a b", "evil"]
)
def test_strange_member_names_are_refused(name, members, tmp_path):
    path = write(tmp_path / "odd.pt2", members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(LoadRefused, match=r"unsafe name|repeats"):
        load(path)


def test_weights_without_values_are_refused(members, tmp_path):
    path = write(tmp_path / "fake.pt2", members | {"data/weights/weight_0": b""})
    with pytest.raises(LoadRefused, match="values are not in the archive"):
        load(path)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, CONSTANTS])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"[" * 5000, b'{"graph_module": 3}', b"\xff"])
def test_damaged_descriptions_are_refused(name, data, members, tmp_path):
    path = write(tmp_path / "odd.pt2", members | {name: data})
    with pytest.raises(LoadRefused):
        load(path)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, CONSTANTS, "archive_version"])
def test_a_missing_member_is_refused(name, members, tmp_path):
    rest = {key: data for key, data in members.items() if key != name}
    with pytest.raises(LoadRefused):
        load(write(tmp_path / "less.pt2", rest))


def test_what_torch_only_logs_is_part_of_the_refusal(members, tmp_path, caplog):
    path = write(
        tmp_path / "odd.pt2",
        edited(
            members,
            GRAPH,
            lambda p: p["graph_module"]["graph"]["tensor_values"]["x"].update(
                device={"type": "nodevice", "index": None}
            ),
        ),
    )
    with pytest.raises(LoadRefused, match="nodevice"):
        load(path)
    assert "Traceback" not in caplog.text
