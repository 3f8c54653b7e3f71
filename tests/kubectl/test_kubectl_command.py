"""`kubectl tessera` where there is no cluster: usage, what it imports, and how it says what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tessera_cli.kubectl.main import VERBS, run
from tessera_cli.kubectl.objects import Failed, service_named
from tessera_core.api import ModelService

pytest.importorskip("kubernetes")


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """Two contexts; nobody listens at the server of either."""
    context = {"cluster": "nowhere", "user": "nobody"}
    path = tmp_path / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "staging",
                "clusters": [{"name": "nowhere", "cluster": {"server": "http://127.0.0.1:1"}}],
                "users": [{"name": "nobody", "user": {"token": "x"}}],
                "contexts": [
                    {"name": name, "context": context} for name in ("staging", "production")
                ],
            }
        )
    )
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_names_the_cluster_options(verb: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        run([verb, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "kubectl tessera" in shown
    assert all(option in shown for option in ("--kubeconfig", "--context", "--namespace"))


@pytest.mark.parametrize("arguments", [[], ["stauts"], ["explain"], ["top", "pods"], ["approve"]])
def test_wrong_usage_ends_with_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as end:
        run(arguments)
    assert end.value.code == 2
    assert "usage: kubectl tessera" in capsys.readouterr().err


def test_the_kubernetes_client_is_imported_only_where_the_cluster_is_read() -> None:
    verbs = ", ".join(f"tessera_cli.kubectl.{verb}" for verb in VERBS)
    program = f"import sys, {verbs}; sys.exit('kubernetes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status"], "cannot reach http://127.0.0.1:1: "),
        (
            ["status", "--context", "stagging"],
            "--context: found stagging, allowed: staging, production (did you mean staging?)",
        ),
        (["plan", "show"], "show, and only show, takes the name of a PlacementPlan"),
    ],
)
def test_what_is_wrong_with_the_cluster_is_said(
    arguments: list[str], said: str, kubeconfig: Path, capsys
) -> None:
    assert run([*arguments, "--kubeconfig", str(kubeconfig)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"kubectl tessera {arguments[0]}: {said}")
    assert printed.out == ""


def test_a_kubeconfig_that_is_missing_or_broken_is_named(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    missing = tmp_path / "missing"
    monkeypatch.setenv("KUBECONFIG", str(missing))
    assert run(["status"]) == 1
    said = capsys.readouterr().err
    assert f"{missing} names no cluster" in said
    assert "--kubeconfig or KUBECONFIG" in said
    broken = tmp_path / "broken"
    broken.write_text("clusters: [")
    assert run(["status", "--kubeconfig", str(broken)]) == 1
    assert f"{broken} is not YAML" in capsys.readouterr().err


def test_a_service_that_is_not_there_is_answered_with_what_is_near(example) -> None:
    services = [ModelService.from_dict(each) for each in example["services"]]
    assert service_named("quality", "vision", services) is services[0]
    assert service_named("forms.digits", "vision", services) is services[1]
    for text, near in (("qualty", "vision.quality"), ("digits", "forms.digits")):
        said = rf"no ModelService {text} in namespace vision \(did you mean {near}\?\)"
        with pytest.raises(Failed, match=said):
            service_named(text, "vision", services)
    with pytest.raises(Failed, match=r"no ModelService speech in namespace vision$"):
        service_named("speech", "vision", services)
