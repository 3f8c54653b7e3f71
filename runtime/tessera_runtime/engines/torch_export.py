"""Loads a torch.export program (.pt2) as a :class:`TorchModel`.

The file carries everything: names, datatypes and shapes, with a symbol for the batch dimension. Inputs are
named as the arguments of the exported module. Outputs are named by the keys of a returned dict, by the
declaration where there is one, else ``output_0``, ``output_1``, …: so different networks with one result
agree on its name, which the names inside their graphs would not.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from tessera_runtime.engines.base import LoadRefused, ModelFile, Signature, TensorMeta
from tessera_runtime.engines.exported import clean_export
from tessera_runtime.engines.staging import merge_declared
from tessera_runtime.engines.torch_model import TorchModel, datatype_of_torch, tensor_bytes
from tessera_runtime.engines.torch_program import Flat, fastest

EXPORT_HINT = "export with dynamic_shapes={input: {0: torch.export.Dim('batch')}} for every input"


@dataclass(frozen=True, slots=True)
class Exported:
    """A program that is fit to be served, and what follows from it."""

    program: Any
    signature: Signature
    batch: Batch
    fixed: list[Any]
    """All user inputs, with a hole for each tensor."""
    positions: list[int]
    """Of the signature's outputs among all outputs."""
    input_dtypes: tuple[Any, ...]
    weight_bytes: int

    @property
    def variable(self) -> bool:
        """Whether sizes beside the batch may vary."""
        return any(-1 in meta.row_shape for meta in self.signature.inputs)

    @property
    def plain(self) -> bool:
        """Whether it takes and answers nothing but the tensors of the signature."""
        return all(value is _HOLE for value in self.fixed) and self.positions == list(
            range(len(self.program.graph_signature.output_specs))
        )

    def model(self, call: Callable[[Sequence[Any]], Sequence[Any]]) -> TorchModel:
        """``call`` as it is served: it takes all that the program does and answers alike."""
        return TorchModel(
            call=call,
            signature=self.signature,
            input_dtypes=self.input_dtypes,
            weight_bytes=self.weight_bytes,
            min_rows=self.batch.least,
            static=self.batch.symbol is None,
        )

    def flat(self, forward: Flat) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """``forward`` over flat lists: no nesting and unnesting of arguments, no hooks."""
        fixed, positions = self.fixed, self.positions
        plain = all(value is _HOLE for value in fixed)

        def call(tensors: Sequence[Any]) -> Sequence[Any]:
            results = forward(*(tensors if plain else _filled(fixed, tensors)))
            return [results[position] for position in positions]

        return call


def load_export(file: ModelFile, device: str) -> TorchModel:
    """Load ``file`` on the torch device ``device``. Raises LoadRefused."""
    exported = read_export(file)
    program = exported.program
    if device != "cpu":
        program = move_to_device_pass(program, device)
    # Beyond the batch, which is checked when a batch is staged, only variable sizes can be out of range.
    if exported.variable:
        call = _checked_call(program.module(), exported.fixed, exported.positions)
    else:
        made_up = examples_of(exported) if device == "cpu" else None
        call = exported.flat(fastest(program, lifted(program), made_up))
    return exported.model(call)


def read_export(file: ModelFile) -> Exported:
    """Read and check ``file``, on the processor. Raises LoadRefused."""
    program = _open(file.path)
    _check_targets(program)
    _check_stateless(program)
    batch = _batch_of(program)
    inputs, fixed, dtypes = _inputs(program)
    outputs, positions, named = _outputs(program, batch)
    signature = Signature(
        inputs=merge_declared("inputs", inputs, file.inputs, named=True),
        outputs=merge_declared("outputs", outputs, file.outputs, named=named),
        max_rows=batch.most,
    )
    weights = tensor_bytes(
        [v for v in (*program.state_dict.values(), *program.constants.values()) if _is_tensor(v)]
    )
    return Exported(program, signature, batch, fixed, positions, dtypes, weights)


def _open(path: str) -> Any:
    with clean_export(path) as clean, _listening() as logged:
        try:
            return torch.export.load(clean)
        except Exception as error:
            cause = logged[0] if logged else error
            raise LoadRefused(
                f"torch {torch.__version__} cannot load the exported program: {_first_line(cause)}; "
                "export it again with this version"
            ) from error


@contextmanager
def _listening() -> Iterator[list[BaseException]]:
    """Collects the exceptions that torch.export logs where it raises only "see above", and keeps them and
    its warnings about a file out of the worker's output.
    """
    errors: list[BaseException] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            errors.append(record.exc_info[1])
        return False

    logger = logging.getLogger("torch.export")
    logger.addFilter(collect)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield errors
    finally:
        logger.removeFilter(collect)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _check_targets(program: Any) -> None:
    """Names were checked before loading; here that each one did resolve to an operator."""
    operators = (torch._ops.OpOverload, torch._ops.HigherOrderOperator)
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            if node.op == "call_function" and not isinstance(node.target, operators):
                home = getattr(node.target, "__module__", "")
                if home not in ("math", "_operator", "torch", "torch.fx.experimental.sym_node"):
                    raise LoadRefused(f"node {node.name!r} calls {node.target}, no operator")


def _check_stateless(program: Any) -> None:
    """Refuse operators that write into weights or buffers, directly or through views of them."""
    stored = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind != InputKind.USER_INPUT
    }
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        for position, argument in enumerate(node.target._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and position < len(node.args):
                target = stored.get(_owner(node.args[position]))
                if target is not None:
                    raise _stateful(target)


def _owner(node: Any) -> str | None:
    """Name of the node whose memory ``node`` is a view of."""
    while isinstance(node, torch.fx.Node):
        returns = getattr(getattr(node.target, "_schema", None), "returns", ())
        if not returns or returns[0].alias_info is None or not node.args:
            return str(node.name)
        node = node.args[0]
    return None


def _stateful(target: str | None) -> LoadRefused:
    return LoadRefused(
        f"the model changes {target!r} when it runs; instances share weights, so export it in eval "
        "mode and without state"
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """The first dimension of every input: ``symbol`` within ``least`` to ``most``, or static ``most``."""

    symbol: Any
    least: int
    most: int | None


def _batch_of(program: Any) -> Batch:
    firsts = set()
    for node, _ in _user_tensors(program):
        shape = node.meta["val"].shape
        if not shape:
            raise LoadRefused(f"input {node.name!r} is a scalar; its first dimension must be batch")
        firsts.add(_expression(shape[0]))
    if len(firsts) != 1:
        raise LoadRefused(
            f"inputs have first dimensions {sorted(map(str, firsts))}; they must share one batch "
            f"dimension: {EXPORT_HINT}"
        )
    (first,) = firsts
    if isinstance(first, int):
        if first < 1:
            raise LoadRefused("the batch dimension is 0")
        return Batch(None, 1, first)
    if not first.is_Symbol:
        raise LoadRefused(f"the batch dimension is {first}; it must be one free dimension")
    limits = program.range_constraints.get(first)
    least = 1 if limits is None else int(limits.lower)
    upper = math.inf if limits is None else float(limits.upper)
    # torch.export never traces sizes 0 and 1, and calls 2 the lower limit of a dimension without one.
    return Batch(first, 1 if least <= 2 else least, None if upper > 2**31 else int(upper))


def _user_tensors(program: Any) -> list[tuple[Any, int]]:
    """Placeholder nodes of the tensors a caller gives, with their position among all user inputs."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = [s for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    tensors = []
    for position, spec in enumerate(specs):
        if isinstance(spec.arg, TensorArgument):
            tensors.append((placeholders[spec.arg.name], position))
        elif not isinstance(spec.arg, ConstantArgument):
            raise LoadRefused(f"input {spec.arg.name!r} is no tensor; export with tensors only")
    if not tensors:
        raise LoadRefused("the model takes no tensor")
    return tensors


def _inputs(program: Any) -> tuple[tuple[TensorMeta, ...], list[Any], tuple[Any, ...]]:
    """Metadata of the tensor inputs, all user inputs with a hole for each of them, and their dtypes."""
    specs = [s for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    fixed: list[Any] = [
        s.arg.value if isinstance(s.arg, ConstantArgument) else _HOLE for s in specs
    ]
    metas, dtypes = [], []
    for node, _ in _user_tensors(program):
        value = node.meta["val"]
        datatype = datatype_of_torch(value.dtype, f"input {node.name!r}")
        metas.append(TensorMeta(node.name, datatype, _row_shape(value)))
        dtypes.append(value.dtype)
    return tuple(metas), fixed, tuple(dtypes)


def _outputs(program: Any, batch: Batch) -> tuple[tuple[TensorMeta, ...], list[int], bool]:
    """Metadata of the tensor outputs, their positions among all outputs, and whether they have names."""
    nodes = {node.name: node for node in program.graph.nodes}
    leaves = []
    for spec in program.graph_signature.output_specs:
        if spec.kind != OutputKind.USER_OUTPUT:
            raise _stateful(spec.target)
        leaves.append(spec.arg)
    names = _output_names(program.call_spec.out_spec, len(leaves))
    metas, positions = [], []
    for position, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if not isinstance(leaf, TensorArgument):
            continue  # a constant such as None says nothing about a request
        value = nodes[leaf.name].meta["val"]
        first = _expression(value.shape[0]) if value.ndim else None
        if first != (batch.most if batch.symbol is None else batch.symbol):
            raise LoadRefused(
                f"output {name!r} has shape {tuple(value.shape)}; its first dimension must be the batch"
            )
        datatype = datatype_of_torch(value.dtype, f"output {name!r}")
        metas.append(TensorMeta(name, datatype, _row_shape(value)))
        positions.append(position)
    if not metas:
        raise LoadRefused("the model returns no tensor")
    return tuple(metas), positions, names != _numbered(len(leaves))


def _output_names(spec: Any, count: int) -> list[str]:
    flat = all(child.type is None for child in spec.children())
    if spec.type is dict and flat and all(isinstance(key, str) for key in spec.context):
        return list(spec.context)
    return _numbered(count)


def _numbered(count: int) -> list[str]:
    return [f"output_{index}" for index in range(count)]


def _row_shape(value: Any) -> tuple[int, ...]:
    sizes = (_expression(size) for size in value.shape[1:])
    return tuple(size if isinstance(size, int) else -1 for size in sizes)


def _expression(size: Any) -> Any:
    """An int, or the sympy expression of a symbolic size."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression) if expression.is_Integer else expression
    return int(size)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


_HOLE = object()


def _checked_call(
    module: Any, fixed: list[Any], positions: list[int]
) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The module as its author calls it, which checks every size against the exported ranges. That takes
    some 200 µs a call on one core.
    """
    in_spec = module._in_spec

    def call(tensors: Sequence[Any]) -> Sequence[Any]:
        args, kwargs = pytree.tree_unflatten(_filled(fixed, tensors), in_spec)
        results = pytree.tree_leaves(module(*args, **kwargs))
        return [results[position] for position in positions]

    return call


def lifted(program: Any) -> dict[str, Any]:
    """The program's own tensors by the placeholder that stands for each."""
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind != InputKind.USER_INPUT:
            stored = program.state_dict.get(spec.target)
            value = program.constants[spec.target] if stored is None else stored
            found[spec.arg.name] = value.detach() if _is_tensor(value) else value
    return found


def examples_of(exported: Exported) -> Callable[[int], list[Any]] | None:
    """User inputs of random numbers, unless some input is not one of any numbers: an index, a mask."""
    values = [node.meta["val"] for node, _ in _user_tensors(exported.program)]
    if not all(value.is_floating_point() for value in values):
        return None
    batch = exported.batch

    def examples(rows: int) -> list[Any]:
        rows = max(batch.least, min(rows, batch.most or rows))
        if batch.symbol is None:
            rows = batch.most or rows
        generator = torch.Generator().manual_seed(0)
        return _filled(
            exported.fixed,
            [
                torch.randn((rows, *_row_shape(value)), generator=generator).to(value.dtype)
                for value in values
            ],
        )

    return examples


def inputs_from(
    exported: Exported, module: Any, tensors: Sequence[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of ``module``, which the program became, as its author calls it."""
    args, kwargs = pytree.tree_unflatten(_filled(exported.fixed, tensors), module._in_spec)
    return args, kwargs


def _filled(fixed: list[Any], tensors: Sequence[Any]) -> list[Any]:
    """All user inputs: constants with the tensors in their holes."""
    given = iter(tensors)
    return [next(given) if value is _HOLE else value for value in fixed]
