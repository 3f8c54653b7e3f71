"""The chart's files beside what they speak of: the CRDs, the version, the operator's settings and the metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from tessera_core import __version__
from tessera_operator.config import MigManager, read_config

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tessera"
METRIC = re.compile(r"\btessera_[a-z0-9_]+")
SERIES = re.compile(r"_(total|bucket|sum|count)$")


def files(folder: Path, pattern: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob(pattern))}


def test_the_crds_are_those_of_the_repository() -> None:
    crds = files(ROOT / "crds", "*.yaml")
    assert crds
    assert files(CHART / "files" / "crds", "*.yaml") == crds


def test_a_crd_has_one_place_where_the_chart_puts_its_labels() -> None:
    """templates/crds.yaml writes them below the one line that is only ``metadata:``."""
    for name, text in files(ROOT / "crds", "*.yaml").items():
        assert text.count("\nmetadata:\n  name: ") == 1, name
        assert text.count("\nmetadata:\n") == 1, name


def test_the_chart_is_of_the_version_of_the_code() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_the_operator_reads_the_settings_of_the_values(tmp_path: Path) -> None:
    written = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    path = tmp_path / "operator.yaml"
    path.write_text(yaml.safe_dump(written))
    read = read_config(path)
    assert dict(read.model_prefixes) == {
        name: tuple(prefixes) for name, prefixes in written["modelPrefixes"].items()
    }
    path.write_text(yaml.safe_dump({**written, "modelPrefixes": {}}))
    assert read_config(path) == read_config(None), "the other values are the operator's defaults"


def test_rules_and_dashboard_use_metrics_that_exist() -> None:
    used = set()
    for path in ("templates/monitoring.yaml", "files/dashboard.json"):
        used |= {SERIES.sub("", name) for name in METRIC.findall((CHART / path).read_text())}
    sources = "".join(
        path.read_text()
        for package in ("operator/tessera_operator", "runtime/tessera_runtime")
        for path in sorted((ROOT / package).rglob("*.py"))
    )
    exported = set(re.findall(r'"(tessera_[a-z0-9_]+)"', sources))
    assert len(used) > 20
    assert used - exported == set()


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in panels
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places), "panels overlap"
    assert all(x < 24 for x, _ in places)
    assert all(
        target["expr"] for panel in panels if panel["type"] != "row" for target in panel["targets"]
    )


def test_the_operator_reads_where_layouts_for_nvidias_mig_manager_go(tmp_path: Path) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["partition"]["migManager"]
    assert values.pop("enabled") is False
    path = tmp_path / "operator.yaml"
    path.write_text(yaml.safe_dump({"migManager": values}))
    assert read_config(path).mig_manager == MigManager("gpu-operator", "tessera-mig-layouts")
