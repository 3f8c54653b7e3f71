"""Exported programs compiled ahead of time by Inductor: C++ on processors, Triton on GPUs.

What is compiled is the program that our own loader built and checked, never a file that came. :func:`build` takes minutes,
writes into the directory of the worker that calls it and needs a C++ compiler; :func:`load_compiled` takes milliseconds and
needs neither. Compiled is what the serving thread calls for every batch: flat lists of tensors, the batch of any size.

Inductor bakes the number of threads into its loops, chooses kernels by measuring them, and drops the templates of its search on
GPUs of few multiprocessors. So an artefact is built on the share that it is to serve on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tessera_core.tuning.variants import Variant
from tessera_runtime.engines.base import LoadRefused, ModelFile
from tessera_runtime.engines.torch_flat import flattened
from tessera_runtime.engines.torch_model import TorchModel
from tessera_runtime.engines.torch_variants import LOW, read_fixed


def build(file: ModelFile, device: str, variant: Variant, path: str) -> None:
    """Compile ``file`` into the package ``path``. Raises LoadRefused."""
    if device == "cpu" and shutil.which("g++") is None and shutil.which("c++") is None:
        raise LoadRefused(f"variant {variant} needs a C++ compiler, and there is none: install g++")
    exported = read_fixed(file, variant)
    searched = variant.option("max-autotune") is not None
    configs = {
        # Of a worker that may start no servers of its own, and has the cores of one share.
        "compile_threads": 1,
        "worker_start_method": "fork",
        "autotune_in_subproc": False,
        "max_autotune": searched,
        "max_autotune_report_choices_stats": False,
        "freezing": True,
        "fx_graph_cache": False,
        # Compiled once for one model: headers would never be used again. And what the processor can do it says itself:
        # programs that try it take as long as the model's own.
        "aot_inductor.precompile_headers": False,
        "cpp_cache_precompile_headers": False,
        "cpp.vec_isa_ok": True,
    }
    try:
        with _own_caches(), _searched_on_small_gpus(variant.option("small-gpu") is not None):
            program = flattened(exported, device, LOW.get(variant.precision))
            torch._inductor.aoti_compile_and_package(
                program, package_path=path, inductor_configs=configs
            )
    except LoadRefused:
        raise
    except Exception as error:  # of a compiler: it has errors of many kinds
        raise LoadRefused(f"torch {torch.__version__} cannot compile the model: {error}") from error


def load_compiled(file: ModelFile, device: str, variant: Variant) -> TorchModel:
    """Load what :func:`build` made of ``file``. Raises LoadRefused."""
    if not file.artefact:
        raise LoadRefused(
            f"variant {variant} was not built on this node for this device; tune the model again"
        )
    exported = read_fixed(file, variant)
    try:
        with _own_caches():
            loaded = torch._inductor.aoti_load_package(file.artefact)
    except Exception as error:
        raise LoadRefused(f"torch cannot load the compiled model: {error}") from error
    run = loaded.loader.run

    def call(tensors: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = run(list(tensors))
        return results

    return exported.model(call)


@contextmanager
def _own_caches() -> Iterator[None]:
    """Inductor's and Triton's files lie where nobody else writes, for the time of the call: they are programs."""
    with tempfile.TemporaryDirectory(prefix="tessera-inductor-") as caches:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(caches, "inductor")
        os.environ["TRITON_CACHE_DIR"] = os.path.join(caches, "triton")
        yield


@contextmanager
def _searched_on_small_gpus(wanted: bool) -> Iterator[None]:
    """Have Inductor search templates whatever the number of multiprocessors: no setting of its own says so."""
    if not wanted:
        yield
        return
    from torch._inductor import utils

    known = utils.is_big_gpu
    utils.is_big_gpu = lambda *_: True
    try:
        yield
    finally:
        utils.is_big_gpu = known
