"""A torch.export archive that is only data.

``torch.export.load`` runs code that an archive can choose, in more places than its pickles (read from
torch 2.8 to 2.15: ``torch/export/pt2_archive/_package.py``, ``torch/_export/serde/serialize.py``,
``torch/utils/_pytree.py``, ``torch/export/_unlift.py``):

- ``data/sample_inputs/*.pt``, ``data/weights/*.pt``, ``data/constants/*.pt``: ``torch.load`` that falls
  back to a full unpickle; every ordinary archive has sample inputs;
- payloads with ``use_pickle``, ``custom_obj_*``, ``opaque_obj_*``: unpickled in full;
- the layout before torch 2.8 (``serialized_*.pt``): the same fallback, chosen when the new one fails;
- ``data/aotinductor``: shared libraries;
- ``expr_str``: ``sympy.sympify``, that is ``eval``;
- ``guards_code`` and every name: pasted into generated Python source;
- node targets: any attribute reachable from ``torch``, ``math`` or ``_operator``;
- tree specifications: a context with ``__enum__`` imports any module.

So torch never sees the file that came. The parts that describe the graph are checked against what a graph
of pure operators may contain, and written with the raw weights into a fresh archive; whatever was not
checked is not copied. Two readers that disagree about a crafted zip can then do no harm either.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

from tessera_runtime.engines.archive import Archive, open_archive
from tessera_runtime.engines.base import LoadRefused

MAX_GRAPH_BYTES = 256 * 2**20
"""Of the graph's JSON; about 1 KiB per operator, so a quarter of a million of them."""

MAX_EXPRESSION = 2_000
"""Characters of a symbolic size; real ones have tens."""

_SIZE_TEXT = re.compile(r"[\w .,()+\-*/%<>=&|~']+", re.ASCII)
"""No line ends, comments or escapes, which sympy and :mod:`ast` would read differently."""

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*|", re.ASCII)
_DOTTED = re.compile(r"[\w.]*", re.ASCII)

_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prims|quantized_decomposed)"
    r"\.(?P<name>__i?(?:and|or|xor|lshift|rshift)__|(?!__)\w+)\.(?!_)\w+"
    r"|torch\.ops\.higher_order\.(?:cond|while_loop|scan|associative_scan|map_impl"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast|invoke_subgraph|flex_attention)"
    r"|torch\._?sym_\w+"
    r"|math\.(?:ceil|floor|trunc|sqrt|pow|log2?|exp|sin|cos|tan|asin|acos|atan|sinh|cosh|tanh)"
    r"|_operator\.(?:add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|getitem|eq|ne|lt|le|gt|ge"
    r"|and_|or_|xor|not_|lshift|rshift)",
    re.ASCII,
)
_FILE_OPERATORS = frozenset({"from_file", "save", "load"})
"""Operators of ``aten`` that open files by name."""

_SIZE_FUNCTIONS = frozenset(
    {
        "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "Min", "Max",
        "Abs", "Eq", "Ne", "Equality", "Unequality", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not",
        "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "floor", "ceiling",
        "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt",
        "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv",
        "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt",
        "RoundToInt", "RoundDecimal", "ToFloat", "Identity",
    }
)  # fmt: skip
"""Functions torch prints into symbolic sizes (``GraphModuleDeserializer.deserialize``) and sympy's own."""

_SIZE_SYNTAX = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.operator, ast.unaryop,
    ast.cmpop, ast.boolop, ast.Load, ast.keyword,
)  # fmt: skip

_CONTAINERS = frozenset(
    {"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
)
_WEIGHT = re.compile(r"weight_\d+", re.ASCII)
_CONSTANT = re.compile(r"tensor_\d+", re.ASCII)

_ROOT = "model"
_GRAPH = "models/model.json"


def clean_export(path: str) -> IO[bytes]:
    """An anonymous temporary file with a checked copy of the torch.export archive at ``path``, rewound.

    Takes as much temporary disk as the weights, until it is closed. Raises LoadRefused.
    """
    archive = open_archive(path)
    try:
        return _copy(archive)
    finally:
        archive.close()


def _copy(archive: Archive) -> IO[bytes]:
    _check_layout(archive)
    graph = _checked_graph(_load_json(archive, _GRAPH))
    payloads = [
        _checked_payloads(archive, "data/weights/", "model_weights_config.json", _WEIGHT),
        _checked_payloads(archive, "data/constants/", "model_constants_config.json", _CONSTANT),
    ]
    target = tempfile.TemporaryFile(prefix="tessera-export-")  # noqa: SIM115
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as writer:

            def put(name: str, data: str | bytes) -> None:
                writer.writestr(f"{_ROOT}/{name}", data)

            put("archive_format", "pt2")
            put("archive_version", archive.read("archive_version", 16))
            put(".data/version", "6\n")
            put("byteorder", "little")
            put(_GRAPH, json.dumps(graph))
            put("data/sample_inputs/model.pt", b"")
            for folder, config_name, config, files in payloads:
                put(folder + config_name, json.dumps(config))
                for file in files:
                    _copy_member(archive, writer, folder + file)
    except BaseException:
        target.close()
        raise
    target.seek(0)
    return target


def _copy_member(archive: Archive, writer: zipfile.ZipFile, name: str) -> None:
    info = archive.member(name)
    entry = zipfile.ZipInfo(f"{_ROOT}/{name}")
    entry.file_size = info.file_size
    try:
        with archive.reader.open(info) as source, writer.open(entry, "w") as sink:
            shutil.copyfileobj(source, sink, 2**20)
    except (zipfile.BadZipFile, EOFError) as error:
        raise LoadRefused(f"{name}: damaged in the archive ({error}); fetch it again") from error


def _check_layout(archive: Archive) -> None:
    members = archive.members
    if any(name.startswith("serialized_") for name in members):
        raise LoadRefused(
            "archive has the layout of torch before 2.8, whose weights are pickles; "
            "save it again with torch.export.save of a current torch"
        )
    if "constants.pkl" in members:
        raise LoadRefused("file is TorchScript; set model.format to TorchScript (it is code)")
    models = sorted(name for name in members if name.startswith("models/"))
    if not models and "data.pkl" in members:
        raise LoadRefused(
            "file is a pickled checkpoint of torch.save, not a program; "
            "export the model with torch.export.save or to ONNX"
        )
    if models != [_GRAPH]:
        raise LoadRefused(f"archive must hold exactly {_GRAPH}; found {models[:3]}")
    if any(name.startswith("data/aotinductor/") for name in members):
        raise LoadRefused(
            "archive holds AOTInductor libraries, which are code; save the exported program alone"
        )
    if "byteorder" in members and archive.read("byteorder", 16) != b"little":
        raise LoadRefused("archive is big-endian; export the model on a little-endian machine")


def _load_json(archive: Archive, name: str) -> Any:
    try:
        return json.loads(archive.read(name, MAX_GRAPH_BYTES))
    except (ValueError, RecursionError) as error:
        raise LoadRefused(f"{name}: no valid JSON ({error})") from error


def _checked_payloads(
    archive: Archive, folder: str, config_name: str, allowed: re.Pattern[str]
) -> tuple[str, str, Any, list[str]]:
    """``folder``, its configuration and the raw files that it names."""
    where = folder + config_name
    if f"{folder}model.pt" in archive.members:
        raise LoadRefused(f"{folder}model.pt: pickled tensors; save it again with a current torch")
    config = _load_json(archive, where)
    files: dict[str, None] = {}
    for name, payload in _mapping(_mapping(config, where).get("config"), where).items():
        here = f"{where}: {name[:80]!r}"
        payload = _mapping(payload, here)
        file = payload.get("path_name")
        if payload.get("use_pickle") is not False or not _matches(allowed, file):
            raise LoadRefused(
                f"{here} is a pickled object ({str(file)[:40]}), which runs code when it is opened; "
                "export the model with plain tensors only"
            )
        if not _matches(_DOTTED, name):
            raise LoadRefused(f"{here}: not a tensor's name")
        meta = _mapping(payload.get("tensor_meta"), here)
        _check(meta, here)
        if archive.member(f"{folder}{file}").file_size == 0 and not _is_empty(meta):
            raise LoadRefused(
                f"{here}: its values are not in the archive; export with real weights"
            )
        files[str(file)] = None
    return folder, config_name, config, list(files)


def _is_empty(meta: dict[str, Any]) -> bool:
    sizes = meta.get("sizes")
    return isinstance(sizes, list) and {"as_int": 0} in sizes


def _checked_graph(program: Any) -> Any:
    """The program without the parts that only debuggers read, everything else checked."""
    where = _GRAPH
    program = dict(_mapping(program, where))
    module = dict(_mapping(program.get("graph_module"), f"{where}: graph_module"))
    program["guards_code"] = []  # the sizes in the graph say the same
    module["metadata"] = {}
    module["treespec_namedtuple_fields"] = {}
    calls = module.get("module_call_graph")
    # Calls of submodules serve only torch.export.unflatten.
    module["module_call_graph"] = [
        call for call in calls if isinstance(call, dict) and call.get("fqn") == ""
    ] if isinstance(calls, list) else []  # fmt: skip
    program["graph_module"] = module
    try:
        _check(program, where)
    except RecursionError as error:
        raise LoadRefused(f"{where}: nested too deeply") from error
    _forget_intermediate(_mapping(module.get("graph"), f"{where}: graph"), where)
    return program


def _forget_intermediate(graph: dict[str, Any], where: str) -> None:
    """Call every result between inputs and outputs a scalar. Reading their sizes back, one symbolic number after
    the other, is a third of what a load takes, and nothing looks at them. Sizes that depend on values are left:
    torch asks where each of those comes from.
    """
    values = _mapping(graph.get("tensor_values"), f"{where}: tensor_values")
    if any(_mapping(graph.get(kind), f"{where}: {kind}") for kind in _SYMBOLS):
        return
    kept = {*_strings(graph.get("inputs")), *_strings(graph.get("outputs"))}
    for name in values.keys() - kept:
        values[name] = _mapping(values[name], where) | {"sizes": [], "strides": []}


def _strings(value: Any) -> Iterator[str]:
    """All of them anywhere in JSON, but for keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _check(value: Any, where: str) -> None:
    """Walk JSON; a field named in ``_FIELDS`` has its own rule, object keys are names."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not _matches(_DOTTED, key):
                raise LoadRefused(f"{where}: {key[:80]!r} is not a name")
            if key == "metadata":
                value[key] = {}
                continue
            rule = _FIELDS.get(key)
            if key in _BY_NAME:
                _check_named(item, f"{where}.{key}")
            elif rule is not None:
                rule(item, f"{where}.{key}")
            else:
                _check(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")


def _check_named(values: Any, where: str) -> None:
    """An object whose keys are the model's own names, which may be any, also ``target`` or ``name``."""
    for name, item in _mapping(values, where).items():
        _check_dotted(name, where)
        _check(item, f"{where}.{name}")


def _check_operator(target: Any, where: str) -> None:
    match = _OPERATOR.fullmatch(target) if isinstance(target, str) else None
    if match is None or match["name"] in _FILE_OPERATORS:
        raise LoadRefused(
            f"{where}: operator {str(target)[:120]!r} is not one that only computes; "
            "allowed: aten, prims, quantized_decomposed and control flow; "
            "rewrite the model without it or use ONNX"
        )


def _check_size(text: Any, where: str) -> None:
    """A symbolic size such as ``2*Symbol('s0', integer=True) + 1``: arithmetic and known functions only."""
    if not _matches(_SIZE_TEXT, text) or len(text) > MAX_EXPRESSION:
        raise LoadRefused(f"{where}: not a symbolic size")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise LoadRefused(f"{where}: {text[:80]!r} is not a symbolic size") from error
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if id(node) in called:
                fine = name in _SIZE_FUNCTIONS
            case ast.Name(id=name):
                fine = not name.startswith("__")
            case ast.Call(func=ast.Name()):
                fine = True
            case ast.Constant(value=str(name)):
                fine = bool(name) and _matches(_IDENTIFIER, name)
            case ast.Constant(value=number):
                fine = isinstance(number, int | float)
            case _:
                fine = isinstance(node, _SIZE_SYNTAX)
        if not fine:
            raise LoadRefused(f"{where}: {text[:80]!r} is not a symbolic size")


def _check_tree(text: Any, where: str) -> None:
    """How arguments or results nest (``torch.utils._pytree.treespec_dumps``): plain containers only."""
    try:
        protocol, spec = json.loads(text)
        _check_tree_node(spec, where)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise LoadRefused(f"{where}: not a tree specification") from error
    if protocol != 1:
        raise LoadRefused(f"{where}: protocol {protocol!r}; allowed: 1")


def _check_tree_node(spec: Any, where: str) -> None:
    if spec["type"] is not None:
        if spec["type"] not in _CONTAINERS:
            raise LoadRefused(
                f"{where}: nests in {str(spec['type'])[:80]!r}; allowed: tuple, list, dict. "
                "Wrap the model to take and return those"
            )
        context = json.loads(spec["context"])
        names = [] if context is None else context
        if not isinstance(names, list) or not all(_matches(_DOTTED, name) for name in names):
            raise LoadRefused(f"{where}: keys must be names of letters, digits and dots")
    for child in spec["children_spec"]:
        _check_tree_node(child, where)


def _check_identifier(name: Any, where: str) -> None:
    if name is not None and not _matches(_IDENTIFIER, name):
        raise LoadRefused(f"{where}: {str(name)[:80]!r} is not an identifier")


def _check_identifiers(names: Any, where: str) -> None:
    for name in names or ():
        _check_identifier(name, where)


def _check_dotted(name: Any, where: str) -> None:
    if not _matches(_DOTTED, name):
        raise LoadRefused(f"{where}: {str(name)[:80]!r} is not a dotted name")


def _refuse_object(_: Any, where: str) -> None:
    raise LoadRefused(f"{where}: custom objects are pickles; export the model with tensors only")


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise LoadRefused(f"{where}: found {type(value).__name__}; expected an object")
    return value


_SYMBOLS = ("sym_int_values", "sym_bool_values", "sym_float_values")

_BY_NAME = frozenset(
    {
        "tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "custom_obj_values",
        "range_constraints", "as_string_to_argument",
    }
)  # fmt: skip

_FIELDS: dict[str, Callable[[Any, str], None]] = {
    "target": _check_operator,
    "as_operator": _check_operator,
    "expr_str": _check_size,
    "in_spec": _check_tree,
    "out_spec": _check_tree,
    "name": _check_identifier,
    "as_name": _check_identifier,
    "forward_arg_names": _check_identifiers,
    "parameter_name": _check_dotted,
    "buffer_name": _check_dotted,
    "tensor_constant_name": _check_dotted,
    "user_input_name": _check_dotted,
    "as_custom_obj": _refuse_object,
    "custom_obj": _refuse_object,
}
