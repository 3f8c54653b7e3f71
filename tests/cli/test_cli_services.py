"""Reading ModelServices for local serving."""

from pathlib import Path

import pytest

from tessera_cli.files import FileInvalid
from tessera_cli.services import read_services

SERVICE = """
apiVersion: tessera.dev/v1alpha1
kind: ModelService
metadata: {{name: {name}, namespace: vision}}
spec:
  members:
  - {{name: one, model: {{uri: "{uri}", format: {format}}}}}
  slo: {{objectives: [{{target: 50ms, percent: "99"}}]}}
"""


def write(path: Path, **fields: str) -> str:
    values = {"name": "digits", "uri": "file://./models/cnn.pt2", "format": "TorchExport"}
    path.write_text(SERVICE.format(**values | fields))
    return str(path)


def test_a_relative_uri_is_relative_to_its_document(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    [service] = read_services([write(folder / "a.yaml")], allow_code=False)
    assert service.spec.members[0].model.uri == f"file://{folder}/models/cnn.pt2"


def test_an_absolute_uri_stays(tmp_path: Path) -> None:
    [service] = read_services(
        [write(tmp_path / "a.yaml", uri="https://models.example/a")], allow_code=False
    )
    assert service.spec.members[0].model.uri == "https://models.example/a"


def test_code_is_refused_where_it_is_forbidden(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", format="Python")
    assert read_services([path], allow_code=True)
    with pytest.raises(FileInvalid, match=r"spec\.members\[0\]\.model\.format: found Python"):
        read_services([path], allow_code=False)


def test_the_same_service_twice_is_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.yaml"), write(tmp_path / "b.yaml")]
    with pytest.raises(FileInvalid, match=r"vision\.digits is defined twice"):
        read_services(paths, allow_code=False)


def test_another_kind_is_refused_by_name() -> None:
    pool = str(Path(__file__).parents[2] / "examples" / "h100-pool.yaml")
    with pytest.raises(FileInvalid, match="found a RuntimePool, allowed: ModelService"):
        read_services([pool], allow_code=False)


def test_a_wrong_field_is_named_with_file_and_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", format="Pickle")
    with pytest.raises(
        FileInvalid, match=r"a\.yaml \(document 1\).*spec\.members\[0\]\.model\.format"
    ):
        read_services([path], allow_code=False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "  slo:",
            "  preprocess: {image: {size: [8, 8], mean: [0.5], std: [0.5], layout: NCHW}}\n  slo:",
            "spec.preprocess",
        ),
        ("format: TorchExport", "format: TorchExport, secretRef: {name: keys}", "secretRef"),
        ("  slo:", "  access: {keysSecretRef: {name: keys}}\n  slo:", "spec.access.keysSecretRef"),
    ],
)
def test_what_would_silently_be_left_undone_is_refused(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = Path(write(tmp_path / "a.yaml"))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(FileInvalid, match=said):
        read_services([str(path)], allow_code=True)
