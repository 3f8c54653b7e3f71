"""An exported graph as one flat Python function, whose operators and weights are bound once.

The module that ``ExportedProgram.module`` builds costs some 4 µs an operator on top of the operator itself: it
finds weights through ``nn.Module.__getattr__`` and operators through five attributes each, and calls them
through two Python frames. A network of ten small layers takes 0.4 ms for eight images on one core, so that
is a tenth of it. Here a line of the function is one call of the operator's C++ entry, and everything it
needs beside the batch is a global of it.

Convolutions run in channels-last order, for which oneDNN has its fastest kernels: with the weights stored so,
torch chooses it and keeps it from layer to layer. Sums are then added in another order, and not every network
gains; so both orders are run at load, and the plain one is kept where the other is off or slower.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Flat = Callable[..., Sequence[Any]]
"""User inputs in order to all outputs in order."""

TRIAL_ROWS = 2
TRIAL_RUNS = 3
TRIAL_S = 0.05
"""After which there is no further run: what takes longer is told apart by one."""

SLOWER = 1.05
"""How much longer channels-last order may take in its trial: a tie is noise, and large batches gain more."""

RELATIVE, OF_LARGEST = 1e-3, 1e-5
"""How far an answer may be off: of itself, and of the largest of its tensor, since sums cancel."""

_CONVOLUTIONS = frozenset({"aten::conv2d", "aten::convolution"})


def compiled(program: Any, weights: Mapping[str, Any]) -> Flat:
    """``program``'s graph as a function; ``weights`` are its lifted tensors by placeholder.

    Every name and number in the source is made here, and values of the graph are bound, so nothing of the file
    is ever read as code.
    """
    module = program.graph_module
    bound: dict[str, Any] = {}
    names: dict[Any, str] = {}
    arguments: list[str] = []
    lines: list[str] = []

    def bind(value: Any) -> str:
        name = f"c{len(bound)}"
        bound[name] = value
        return name

    def text(value: Any) -> str:
        if isinstance(value, torch.fx.Node):
            return names[value]
        if isinstance(value, tuple | list):
            inner = "".join(f"{text(item)}, " for item in value)
            return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
        if isinstance(value, dict):
            return f"{{{''.join(f'{bind(key)}: {text(item)}, ' for key, item in value.items())}}}"
        if value is None or isinstance(value, bool) or type(value) is int:
            return repr(value)
        return bind(value)

    last = _last_uses(module.graph)
    for node in module.graph.nodes:
        if node.op == "placeholder" and node.name in weights:
            names[node] = bind(weights[node.name])
        elif node.op == "placeholder":
            names[node] = f"a{len(arguments)}"
            arguments.append(names[node])
        elif node.op == "get_attr":
            names[node] = bind(_attribute(module, node.target))
        elif node.op == "call_function":
            names[node] = f"v{len(lines)}"
            given = [text(value) for value in node.args]
            given += [f"**{{{name!r}: {text(value)}}}" for name, value in node.kwargs.items()]
            called = bind(getattr(node.target, "_op", node.target))
            lines.append(f"{names[node]} = {called}({', '.join(given)})")
            # As soon as nobody reads a tensor any more its memory is free for the next one.
            ended = [names[used] for used in last.get(node, ())]
            if ended:
                lines[-1] += f"; {' = '.join(ended)} = None"
        elif node.op == "output":
            lines.append(f"return {text(node.args[0])}")
    source = f"def forward({', '.join(arguments)}):\n" + "".join(f"    {line}\n" for line in lines)
    exec(compile(source, "<exported program>", "exec"), bound)
    forward: Flat = bound["forward"]
    return forward


def _attribute(module: Any, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module


def _last_uses(graph: Any) -> dict[Any, list[Any]]:
    """By node, the results of calls that no later node reads."""
    seen: set[Any] = set()
    last: dict[Any, list[Any]] = {}
    for node in reversed(graph.nodes):
        for used in node.all_input_nodes:
            if used not in seen:
                seen.add(used)
                if used.op == "call_function" and node.op == "call_function":
                    last.setdefault(node, []).append(used)
    return last


def fastest(
    program: Any, weights: Mapping[str, Any], examples: Callable[[int], list[Any]] | None
) -> Flat:
    """The graph as a function, its convolutions in the order of memory that suits this processor.

    ``examples`` gives user inputs of a few rows, where they can be made up.
    """
    plain = compiled(program, weights)
    if examples is None:
        return plain
    turned = {
        name: tensor.contiguous(memory_format=torch.channels_last)
        for name, tensor in weights.items()
        if name in convolved(program.graph)
    }
    if not turned:
        return plain
    other = compiled(program, {**weights, **turned})
    inputs = examples(TRIAL_ROWS)
    with torch.inference_mode():
        try:
            if not _close(plain(*inputs), other(*inputs)):
                return plain
        except Exception:
            return plain  # what these inputs do wrong is found, and told, by the first real ones
        # In turns, and the thread's own time: whoever else runs on these cores must not decide.
        took = {plain: math.inf, other: math.inf}
        ends = time.monotonic() + TRIAL_S
        for run in range(TRIAL_RUNS):
            if run and time.monotonic() > ends:
                break
            for forward in took:
                began = time.thread_time_ns()
                forward(*inputs)
                took[forward] = min(took[forward], time.thread_time_ns() - began)
    return other if took[other] <= SLOWER * took[plain] else plain


def convolved(graph: Any) -> set[str]:
    """Placeholders that are weights of two-dimensional convolutions, and of nothing else."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op != "placeholder" or not node.users:
            continue
        value = node.meta.get("val")
        if getattr(value, "ndim", 0) == 4 and all(
            _is_convolution(user) and user.args[1] is node for user in node.users
        ):
            found.add(node.name)
    return found


def _is_convolution(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return (
        node.op == "call_function"
        and getattr(schema, "name", "") in _CONVOLUTIONS
        and len(node.args) > 1
    )


def _close(expected: Sequence[Any], found: Sequence[Any]) -> bool:
    for one, other in zip(expected, found, strict=True):
        if not isinstance(one, torch.Tensor):
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return False
            continue
        finite = one[torch.isfinite(one)]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
        if not torch.allclose(other, one, RELATIVE, OF_LARGEST * largest, equal_nan=True):
            return False
    return True
