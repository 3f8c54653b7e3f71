"""The Dockerfiles, as far as they can be judged without building: what goes in, and as whom it runs."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPERATOR, GPU, CPU = "operator/Dockerfile", "runtime/Dockerfile", "runtime/Dockerfile.cpu"
FILES = (OPERATOR, GPU, CPU)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "pynvml": "nvidia-ml-py",
    "yaml": "pyyaml",
}
"""Packages that are called otherwise than what they install."""
EVERY_FILE = pytest.mark.parametrize("file", FILES)


@dataclass(frozen=True, slots=True)
class Stage:
    base: str
    name: str
    steps: tuple[tuple[str, str], ...]
    """Instruction and the rest of its line, continued lines joined."""

    def all(self, instruction: str) -> list[str]:
        return [rest for each, rest in self.steps if each == instruction]


def stages(file: str) -> tuple[list[tuple[str, str]], list[Stage]]:
    """What stands before the first stage, and the stages."""
    text = re.sub(r"^#.*\n", "", (ROOT / file).read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    steps = [(words[0], words[1]) for words in (line.split(maxsplit=1) for line in lines)]
    starts = [place for place, (instruction, _) in enumerate(steps) if instruction == "FROM"]
    found = []
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        base, _, name = steps[start][1].partition(" AS ")
        found.append(Stage(base, name, tuple(steps[start + 1 : end])))
    return steps[: starts[0]], found


def stage(file: str, name: str) -> Stage:
    [found] = [each for each in stages(file)[1] if each.name == name]
    return found


def admitted() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return {line[1:] for line in lines if line.startswith("!")}


def copied(file: str) -> set[str]:
    """What a build takes from the repository."""
    return {
        source
        for each in stages(file)[1]
        for copy in each.all("COPY")
        if not copy.startswith("--from=")
        for source in copy.split()[:-1]
    }


def installed(file: str) -> set[str]:
    """The packages that uv takes from the lock file for an image, on any platform."""
    dependencies = stage(file, "dependencies")
    [sync] = [run for run in dependencies.all("RUN") if "uv sync" in run]
    arguments = dict(each.split("=", 1) for each in dependencies.all("ARG"))
    optional = arguments["EXTRAS"].strip('"')
    extras = set(re.findall(r"--extra (\w+)", sync))
    left_out = set(re.findall(r"--no-install-package ([\w-]+)", sync))
    packages: dict[str, list[dict]] = {}
    for package in LOCKED:
        packages.setdefault(package["name"], []).append(package)
    reached: set[tuple[str, str]] = set()
    ahead = [("tessera", ""), *(("tessera", extra) for extra in extras | set(optional.split()))]
    while ahead:
        name, extra = ahead.pop()
        if (name, extra) in reached:
            continue
        reached.add((name, extra))
        for package in packages[name]:
            wanted = package.get("dependencies", ())
            if extra:
                wanted = package.get("optional-dependencies", {}).get(extra, ())
            for each in wanted:
                ahead.append((each["name"], ""))
                ahead.extend((each["name"], other) for other in each.get("extra", ()))
    return {name for name, _ in reached} - left_out


@EVERY_FILE
def test_the_build_takes_what_is_there_and_all_that_is_let_in(file: str) -> None:
    assert all((ROOT / source).exists() for source in copied(file))
    assert copied(file) == admitted()


@EVERY_FILE
def test_every_package_of_the_wheel_is_copied(file: str) -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= copied(file)
    assert {"pyproject.toml", PROJECT["project"]["readme"]} <= copied(file)
    assert set(PROJECT["project"]["license-files"]) <= copied(file)


@EVERY_FILE
def test_a_change_of_the_sources_leaves_the_dependencies_cached(file: str) -> None:
    steps = stage(file, "dependencies").steps
    assert [rest for each, rest in steps if each == "COPY"] == ["pyproject.toml uv.lock ./"]
    assert stage(file, "project").base == "dependencies"
    last = stages(file)[1][-1]
    assert [copy.split()[0] for copy in last.all("COPY")] == [
        "--from=dependencies",
        "--from=project",
    ]


@EVERY_FILE
def test_the_base_is_an_argument_with_a_default(file: str) -> None:
    before, built = stages(file)
    assert ("ARG", "BASE=python:3.12-slim-bookworm") in before
    assert built[-1].base == "${BASE}"
    named = {each.name for each in built}
    assert {each.base for each in built} <= {"${BASE}", "${BUILD_BASE}", *named}


@EVERY_FILE
def test_the_process_is_a_user_by_number_and_not_root(file: str) -> None:
    assert stages(file)[1][-1].all("USER") == ["65532:65532"]


@EVERY_FILE
def test_no_secret_reaches_the_image(file: str) -> None:
    before, built = stages(file)
    last = built[-1]
    assert not [run for run in last.all("RUN") if "--mount" in run]
    assert not last.all("ADD")
    values = [rest for each in built for rest in each.all("ARG") + each.all("ENV")]
    values += [rest for _, rest in before]
    assert not [
        value
        for value in values
        if re.search(r"(?i)token|passw|secret|key|credential|index|://", value)
    ]


@EVERY_FILE
def test_the_last_stage_installs_nothing(file: str) -> None:
    text = " ".join(stages(file)[1][-1].all("RUN"))
    assert not re.search(r"\b(apt|apt-get|pip install|uv|curl|wget|gcc)\b", text)


@EVERY_FILE
def test_labels_say_what_it_is(file: str) -> None:
    [labels] = stages(file)[1][-1].all("LABEL")
    said = dict(word.split("=", 1) for word in shlex.split(labels))
    prefix = "org.opencontainers.image"
    assert said[f"{prefix}.licenses"] == PROJECT["project"]["license"]
    assert said[f"{prefix}.version"] == "${VERSION}"
    assert said[f"{prefix}.title"].startswith("Tessera ")


def test_the_operator_starts_itself_and_a_pod_says_what_a_runtime_starts() -> None:
    [entrypoint] = stages(OPERATOR)[1][-1].all("ENTRYPOINT")
    assert json.loads(entrypoint) == ["python", "-m", "tessera_operator"]
    for file in (GPU, CPU):
        assert not stages(file)[1][-1].all("ENTRYPOINT")
        assert not stages(file)[1][-1].all("CMD")


def test_what_the_images_share_is_the_same_in_each() -> None:
    """Layers are shared by images only where their steps are equal to the letter."""
    assert len({stage(file, "tools") for file in FILES}) == 1
    assert len({stage(file, "project") for file in (GPU, CPU)}) == 1
    assert len({stages(file)[1][-1].all("RUN")[0] for file in FILES}) == 1


@pytest.mark.parametrize(
    ("file", "wanted", "unwanted"),
    [
        (OPERATOR, {"kubernetes", "numpy"}, {"torch", "onnxruntime", "grpcio", "uvloop"}),
        (CPU, {"onnxruntime", "openvino", "grpcio", "s3fs", "gcsfs"}, {"torch", "kubernetes"}),
        (GPU, {"torch", "grpcio", "nvidia-ml-py"}, {"triton", "openvino", "kubernetes"}),
    ],
)
def test_an_image_holds_what_its_processes_import_and_little_else(
    file: str, wanted: set[str], unwanted: set[str]
) -> None:
    packages = installed(file)
    assert wanted <= packages
    assert not unwanted & packages
    assert not {"pytest", "mypy", "ruff", "pip"} & packages


@pytest.mark.parametrize(
    ("file", "packages", "apart"),
    [
        (OPERATOR, ("operator/tessera_operator", "core/tessera_core"), ()),
        (CPU, ("runtime/tessera_runtime", "core/tessera_core"), ("torch_*.py",)),
        (GPU, ("runtime/tessera_runtime", "core/tessera_core"), ("onnx_*.py", "openvino_*.py")),
    ],
)
def test_an_image_holds_what_its_modules_import(
    file: str, packages: tuple[str, ...], apart: tuple[str, ...]
) -> None:
    """Imports within functions are of what may be missing, and so are those of the modules set ``apart``."""
    modules = [
        module
        for package in packages
        for module in (ROOT / package).rglob("*.py")
        if not any(module.match(each) for each in apart)
    ]
    imported = {name for module in modules for name in imports(ast.parse(module.read_text()))}
    assert "numpy" in imported
    assert {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in imported} <= installed(file)


def imports(module: ast.Module) -> set[str]:
    """The packages of others that a module imports when it is imported itself."""
    names: set[str] = set()
    for statement in module.body:
        if isinstance(statement, ast.Import):
            names.update(each.name for each in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            names.add(statement.module or "")
    tops = {name.partition(".")[0] for name in names}
    return {top for top in tops - sys.stdlib_module_names if not top.startswith("tessera_")}


def test_nothing_imports_the_part_of_the_kubernetes_client_that_is_left_out() -> None:
    [sync] = [run for run in stage(OPERATOR, "dependencies").all("RUN") if "uv sync" in run]
    assert "*/kubernetes/aio" in sync
    for package in ("operator/tessera_operator", "core/tessera_core", "cli/tessera_cli"):
        for module in (ROOT / package).rglob("*.py"):
            assert not re.search(r"kubernetes(\.|\s+import\s+)aio\b", module.read_text()), module


@pytest.mark.parametrize("file", [GPU, CPU])
def test_the_compiler_is_the_locked_one(file: str):
    """The hook of the build, the images and the type checks take the same mypy."""
    hook = ast.parse((ROOT / "hatch_build.py").read_text())
    [wanted] = [
        ast.literal_eval(each.value)
        for each in hook.body
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "REQUIREMENTS"
    ]
    locked = {package["name"]: package.get("version") for package in LOCKED}
    assert wanted == [f"{name}=={locked[name]}" for name in ("mypy", "setuptools")]
    [install] = [run for run in stage(file, "project").all("RUN") if "/tools/bin/pip" in run]
    assert set(wanted) <= set(install.split())


def test_every_compiled_module_exists():
    hook = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
    for module in hook["modules"]:
        assert (ROOT / module).is_file(), module
