"""Profiles are found by what an engine calls itself, by a process that never imports the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tessera_core.api.members import ModelFormat
from tessera_runtime.agent.profiles import engine_version
from tessera_runtime.engines.base import EngineDevice, ModelFile
from tessera_runtime.engines.loading import load_engine

MODELS = Path(__file__).parent / "python_models"


def test_a_python_model_reports_what_the_agent_expects() -> None:
    file = ModelFile(str(MODELS / "identity.py"), "Python", allow_code=True)
    engine = load_engine(file, EngineDevice("cpu"))
    assert engine.version == engine_version(ModelFormat.PYTHON)


def test_a_torch_model_reports_what_the_agent_expects(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    program = torch.export.export(torch.nn.Linear(4, 2).eval(), (torch.zeros(2, 4),))
    torch.export.save(program, tmp_path / "linear.pt2")
    file = ModelFile(str(tmp_path / "linear.pt2"), "TorchExport", allow_code=False)
    engine = load_engine(file, EngineDevice("cpu"))
    assert engine.version == engine_version(ModelFormat.TORCH_EXPORT)
