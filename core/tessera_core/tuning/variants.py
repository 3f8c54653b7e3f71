"""How a model file is run: library, arithmetic and options, as one canonical text.

The text is what travels: in targets, profiles, metrics and the status of objects. It is a recipe and never a program, so it may
come from anywhere; what is compiled by it is made by each node itself. The empty text is the model as its engine loads it
without tuning.

::

    <backend>/<precision>[/<option>[,<option>…]]        openvino/bf16    inductor/fp32/max-autotune
    option = <name> | <name>=<value>                    onnxruntime/fp32/graph=all,spin=on

Options are written in the order of their names, so that one variant has one text. All that there are lie in one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tessera_core.api.members import ModelFormat
from tessera_core.api.tuning import Precision

UNTUNED = ""
"""The text of what is loaded without tuning."""

MOST_LENGTH = 96
"""Characters of a variant's text."""

BIG_GPU_SMS = 68
"""Streaming multiprocessors below which Inductor drops the templates of max-autotune, unless it is told otherwise
(``is_big_gpu`` of torch/_inductor/utils.py): all slices of an A100 and H100 but whole ones.
"""


class Backend(StrEnum):
    """What runs the model."""

    TORCH = "torch"
    """The untuned engine of exported programs, with other options."""
    INDUCTOR = "inductor"
    """Compiled ahead of time: C++ on processors, Triton on GPUs."""
    ONNX_RUNTIME = "onnxruntime"
    OPENVINO = "openvino"


FLAG = ("",)
"""Values of an option that has none."""

OPTIONS: Mapping[Backend, Mapping[str, tuple[str, ...]]] = {
    Backend.TORCH: {"channels-last": FLAG},
    # `small-gpu`: templates are searched on fewer than BIG_GPU_SMS too.
    Backend.INDUCTOR: {"max-autotune": FLAG, "small-gpu": FLAG},
    # `threads=one`: of the share's threads only one works on a batch. `spin`: they wait for work without sleeping.
    Backend.ONNX_RUNTIME: {
        "graph": ("basic", "extended", "all"),
        "spin": ("off", "on"),
        "threads": ("one", "share"),
    },
    # `static`: a network of its own for every size of batch that is warmed.
    Backend.OPENVINO: {"static": FLAG},
}
"""Options of each backend and their values. None of CUDA graphs: lanes on GPUs record them for every variant they can."""

PRECISIONS: Mapping[Backend, Mapping[str, tuple[Precision, ...]]] = {
    Backend.TORCH: {
        "cpu": (Precision.FP32, Precision.BF16),
        "cuda": (Precision.FP32, Precision.BF16, Precision.FP16),
    },
    Backend.INDUCTOR: {
        "cpu": (Precision.FP32, Precision.BF16),
        "cuda": (Precision.FP32, Precision.BF16, Precision.FP16),
    },
    Backend.ONNX_RUNTIME: {"cpu": (Precision.FP32,), "cuda": (Precision.FP32,)},
    Backend.OPENVINO: {"cpu": (Precision.FP32, Precision.BF16)},
}
"""Arithmetic of each backend by kind of device; FP32 is what the file itself says. None has TF32: torch switches it for
whole processes, in which other models run as well.
"""


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """One way to run a model. Made by :func:`variant` or :func:`parse`, which check it."""

    backend: Backend
    precision: Precision
    options: tuple[tuple[str, str], ...] = ()
    """Name and value, by name; the value of a flag is empty."""

    def __str__(self) -> str:
        said = ",".join(f"{name}={value}" if value else name for name, value in self.options)
        return "/".join(filter(None, (self.backend, self.precision, said)))

    def option(self, name: str) -> str | None:
        """Its value; None where it is not said."""
        return dict(self.options).get(name)

    @property
    def compiles(self) -> bool:
        """Whether it needs what is built before it can be loaded: the others are ready within a load."""
        return self.backend is Backend.INDUCTOR


def parse(text: str) -> Variant:
    """The variant that prints as ``text``. Raises ValueError with what was found and what is allowed."""
    if len(text) > MOST_LENGTH:
        raise ValueError(f"variant of {len(text)} characters; allowed: at most {MOST_LENGTH}")
    backend, _, rest = text.partition("/")
    precision, _, said = rest.partition("/")
    options: list[tuple[str, str]] = []
    for part in said.split(",") if said else ():
        name, _, value = part.partition("=")
        options.append((name, value))
    try:
        found = variant(Backend(backend), Precision(precision), options)
    except ValueError as error:
        raise ValueError(
            f"variant {text!r}: {error}; expected <backend>/<precision>[/<option>,…] with backends "
            f"{', '.join(Backend)} and precisions {', '.join(Precision)}"
        ) from error
    if str(found) != text:
        raise ValueError(f"variant {text!r}: is written {str(found)!r}")
    return found


def variant(
    backend: Backend, precision: Precision, options: Iterable[tuple[str, str]] = ()
) -> Variant:
    """Raises ValueError for an option that the backend does not have, or that is said twice."""
    chosen = tuple(sorted(options))
    known = OPTIONS[backend]
    for name, value in chosen:
        if name not in known:
            raise ValueError(f"option {name!r}; {backend} has {', '.join(known)}")
        if value not in known[name]:
            allowed = ", ".join(map(repr, known[name]))
            raise ValueError(f"option {name}={value!r}; allowed: {allowed}")
    if len(dict(chosen)) < len(chosen):
        raise ValueError("an option is said twice")
    return Variant(backend, precision, chosen)


def candidates(
    model_format: ModelFormat,
    kind: str,
    precisions: Iterable[Precision],
    backends: Iterable[Backend],
    sm_count: int = 0,
) -> tuple[Variant, ...]:
    """What is worth building and measuring for a model, most promising first; at most a dozen or two.

    ``kind``: ``cpu`` or ``cuda``; ``precisions``: that the user allows; ``backends``: installed where it is tuned;
    ``sm_count``: multiprocessors of a GPU's share, 0 if not known. Formats that are programs of the user have none.
    """
    allowed, there = set(precisions), set(backends)
    return tuple(
        found
        for found in _promising(model_format, kind, sm_count)
        if found.backend in there
        and found.precision in allowed
        and found.precision in PRECISIONS[found.backend].get(kind, ())
    )


def _promising(model_format: ModelFormat, kind: str, sm_count: int) -> Iterator[Variant]:
    """In the order of the gains that were measured on processors of this decade (docs/decisions/0044)."""
    low = (Precision.BF16, Precision.FP16) if kind == "cuda" else (Precision.BF16,)
    falling = (*low, Precision.FP32)
    if model_format is ModelFormat.ONNX:
        for precision in falling:
            yield variant(Backend.OPENVINO, precision)
        threads = (("spin", "on"),), (("threads", "one"),), (("graph", "extended"), ("spin", "on"))
        for options in (*(threads if kind == "cpu" else ()), (("graph", "extended"),)):
            yield variant(Backend.ONNX_RUNTIME, Precision.FP32, options)
        for precision in falling:
            yield variant(Backend.OPENVINO, precision, [("static", "")])
    elif model_format is ModelFormat.TORCH_EXPORT:
        searched = {"max-autotune": ""}
        if kind == "cuda" and 0 < sm_count < BIG_GPU_SMS:
            searched["small-gpu"] = ""
        for precision in falling:
            yield variant(Backend.OPENVINO, precision)
        for precision in falling:
            yield variant(Backend.INDUCTOR, precision, searched.items())
            yield variant(Backend.INDUCTOR, precision)
        for precision in falling:
            yield variant(Backend.TORCH, precision, [("channels-last", "")])
            if precision is not Precision.FP32:
                yield variant(Backend.TORCH, precision)
        for precision in falling:
            yield variant(Backend.OPENVINO, precision, [("static", "")])
