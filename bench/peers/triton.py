"""Triton: the real server that the nvidia-pytriton wheel holds, run directly, without PyTriton around it.

Three ways to serve the same: its Python backend; its ensemble scheduler over Python models; and, as the floor
of what its wire, core and scheduler cost, an identity of our own on its C interface (``triton_identity.c``),
since the wheel ships no backend in C++.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peers.base import (
    BATCH_CAP,
    ENVIRONMENTS,
    HOST,
    ONE_THREAD,
    ROOT,
    Array,
    Command,
    Ports,
    Request,
    Wire,
    Work,
    answers_200,
    not_installed,
    v2_request,
)

SOURCE = Path(__file__).with_name("triton_identity.c")
BUILT = ENVIRONMENTS / "triton" / "libtriton_identity_c.so"

_MODEL = """\
import sys
from pathlib import Path

sys.path[:0] = {paths!r}
import numpy as np
import triton_python_backend_utils as pb_utils

from bench.models.served import load


class TritonPythonModel:
    def initialize(self, args):
        self._model = load(Path({models!r}), {networks!r})

    def execute(self, requests):
        read = pb_utils.get_input_tensor_by_name
        given = [[read(request, name).as_numpy() for name in {inputs!r}] for request in requests]
        if len({inputs!r}) > 1:
            parts = [np.mean(tensors, axis=0) for tensors in given]
        else:
            rows = [tensors[0] for tensors in given]
            answer = self._model(np.concatenate(rows) if len(rows) > 1 else rows[0])
            parts = np.split(answer, np.cumsum([len(r) for r in rows])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor({output!r}, part)]) for part in parts]
"""


def triton_home() -> Path:
    site = ENVIRONMENTS / "triton" / "lib" / "python3.11" / "site-packages"
    return site / "pytriton" / "tritonserver"


def _tensor(name: str, shape: Sequence[int]) -> str:
    return f'{{ name: "{name}" data_type: TYPE_FP32 dims: [{", ".join(map(str, shape))}] }}'


def _config(name: str, backend: str, inputs: list[str], output: str, batching: bool = True) -> str:
    kind = f'backend: "{backend}"' if backend != "ensemble" else 'platform: "ensemble"'
    lines = [
        f'name: "{name}"',
        kind,
        f"max_batch_size: {BATCH_CAP}",
        f"input [ {', '.join(inputs)} ]",
        f"output [ {output} ]",
    ]
    if backend != "ensemble":
        lines.append("instance_group [ { kind: KIND_CPU count: 1 } ]")
        lines += ["dynamic_batching { }"] if batching else []
    return "\n".join(lines) + "\n"


def _outputs(work: Work) -> tuple[int, ...]:
    if work.name == "identity":
        return work.row_shape
    return (1000,) if work.name == "resnet18" else (10,)


@dataclass(frozen=True, slots=True)
class Triton:
    """``backend``: ``python`` or ``identity_c``."""

    backend: str = "python"

    wires = (Wire.HTTP, Wire.GRPC)

    @property
    def name(self) -> str:
        return "Triton" if self.backend == "python" else "Triton C backend"

    @property
    def works(self) -> frozenset[str]:
        if self.backend != "python":
            return frozenset({"identity"})
        return frozenset({"identity", "cnn", "ensemble", "fused", "resnet18"})

    def missing(self) -> str:
        if why := not_installed("triton"):
            return why
        return (
            "" if self.backend == "python" or BUILT.exists() else "no C compiler to build it with"
        )

    def prepare(self, work: Work, models: Path, directory: Path) -> None:
        repository = directory / "repository"
        output = _tensor(work.output, _outputs(work))
        given = _tensor(work.input, work.row_shape)
        if self.backend != "python":
            folder = repository / work.name
            (folder / "1").mkdir(parents=True)
            shutil.copy(BUILT, folder / BUILT.name)
            (folder / "config.pbtxt").write_text(
                _config(work.name, self.backend, [given], output, batching=False)
            )
        elif work.name == "ensemble":
            self._ensemble(work, models, repository)
        else:
            config = _config(work.name, "python", [given], output)
            _python_model(repository / work.name, config, models, work.networks, [work.input], work)

    def _ensemble(self, work: Work, models: Path, repository: Path) -> None:
        given, output = _tensor(work.input, work.row_shape), _tensor(work.output, _outputs(work))
        steps = []
        for network in work.networks:
            config = _config(network, "python", [given], output)
            _python_model(repository / network, config, models, (network,), [work.input], work)
            steps.append(_step(network, {work.input: work.input}, {work.output: network}))
        members = [_tensor(network, _outputs(work)) for network in work.networks]
        config = _config("mean", "python", members, output)
        _python_model(repository / "mean", config, models, (), list(work.networks), work)
        steps.append(_step("mean", {n: n for n in work.networks}, {work.output: work.output}))
        folder = repository / work.name
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(
            _config(work.name, "ensemble", [given], output)
            + f"ensemble_scheduling {{ step [ {', '.join(steps)} ] }}\n"
        )

    def command(self, work: Work, models: Path, directory: Path, ports: Ports) -> Command:
        home = triton_home()
        argv = (
            *(
                str(home / "bin" / "tritonserver"),
                "--model-repository",
                str(directory / "repository"),
            ),
            *("--backend-directory", str(directory / "backends")),
            *("--http-address", HOST, "--grpc-address", HOST, "--metrics-address", HOST),
            *("--http-port", str(ports.http), "--grpc-port", str(ports.grpc)),
            *("--metrics-port", str(ports.metrics), "--log-info", "0", "--log-warning", "0"),
        )
        _backends(home, directory / "backends")
        libraries = str(home.parents[1] / "nvidia_pytriton.libs")
        return Command(argv, ONE_THREAD | {"LD_LIBRARY_PATH": libraries})

    def ready(self, work: Work, directory: Path, ports: Ports) -> bool:
        return answers_200(ports.http, f"/v2/models/{work.name}/ready")

    def request(self, work: Work, wire: Wire, rows: Array) -> Request:
        return v2_request(work.name, work, wire, rows)


def _backends(home: Path, directory: Path) -> None:
    """The wheel keeps the stub of each Python version aside; the backend looks for one beside itself."""
    if directory.exists():
        return
    shutil.copytree(home / "backends", directory)
    stub = home / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, directory / "python" / stub.name)


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    given = " ".join(f'input_map {{ key: "{k}" value: "{v}" }}' for k, v in inputs.items())
    made = " ".join(f'output_map {{ key: "{k}" value: "{v}" }}' for k, v in outputs.items())
    return f'{{ model_name: "{model}" model_version: -1 {given} {made} }}'


def _python_model(
    folder: Path,
    config: str,
    models: Path,
    networks: tuple[str, ...],
    inputs: list[str],
    work: Work,
) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    source = _MODEL.format(
        paths=[str(ROOT), str(triton_home().parents[1])],  # the stub drops PYTHONPATH
        models=str(models),
        networks=networks,
        inputs=inputs,
        output=work.output,
    )
    (folder / "1" / "model.py").write_text(source)


def build_identity() -> str:
    """Compile the C backend; why not, or nothing."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return "no C compiler"
    argv = [compiler, "-O2", "-shared", "-fPIC", "-Wall", "-o", str(BUILT), str(SOURCE)]
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""
