"""YAML and JSON files that people hand to the command, read with bounds.

    FileInvalid     a file that cannot be read or is not YAML; the message names the file and the place

A file may come from anywhere, so its size and depth are bounded, and aliases are refused: nine lines of them
can stand for billions of nodes. A key that is written twice is an error too: YAML would keep one of the two
and say nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tessera_core.api import SpecInvalid
from tessera_core.plan import ClusterState, state_from_dict

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML without libyaml: ten times slower, same result
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

MAX_FILE = 16 << 20
"""Bytes of one file: a state of a thousand nodes and services is about 1 MiB."""
MAX_DEPTH = 64
"""Nested collections; the deepest field of the API is 12 deep."""
MAX_FILES = 10_000
"""Files of one directory."""

STDIN = "-"
_SUFFIXES = (".yaml", ".yml", ".json")
_STATE_FIELDS = frozenset({"nodes", "pools", "services", "profiles"})


class FileInvalid(Exception):
    """A file that cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file."""

    file: str
    position: int
    """Counted from 1."""
    content: object

    @property
    def is_state(self) -> bool:
        """Whether it is a cluster state, which is a list of objects and has no kind of its own."""
        found = self.content
        return (
            isinstance(found, Mapping)
            and "kind" not in found
            and not _STATE_FIELDS.isdisjoint(found)
        )


def add_state_argument(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "-f",
        "--file",
        required=required,
        metavar="STATE",
        help="file with nodes, pools, services and profiles; - for standard input",
    )


def expand(paths: Sequence[str]) -> Iterator[str]:
    """The files that ``paths`` name: a directory stands for the YAML and JSON files in it, sorted."""
    for path in paths:
        if path == STDIN or not Path(path).is_dir():
            yield path
            continue
        found = sorted(each for each in Path(path).iterdir() if each.suffix in _SUFFIXES)
        if not 0 < len(found) <= MAX_FILES:
            allowed = f"1 to {MAX_FILES} files ending in {', '.join(_SUFFIXES)}"
            raise FileInvalid(f"{path}: found {len(found)}, allowed: {allowed}")
        yield from map(str, found)


def read_documents(path: str) -> list[Document]:
    """The documents of a file, empty ones left out. Raises FileInvalid."""
    name = "standard input" if path == STDIN else path
    try:
        content = _read(path)
        if len(content) > MAX_FILE:
            raise FileInvalid(f"{name}: over the limit of {MAX_FILE >> 20} MiB")
        text = content.decode()
        _refuse_bombs(text)
        found = list(yaml.load_all(text, Loader=_OneValuePerKey))
    except OSError as error:
        raise FileInvalid(f"{name}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise FileInvalid(f"{name}: not valid YAML: {_place_and_problem(error)}") from error
    return [
        Document(name, index + 1, content)
        for index, content in enumerate(found)
        if content is not None
    ]


def read_state(path: str) -> ClusterState:
    """The cluster state in a file of one document. Raises FileInvalid."""
    documents = read_documents(path)
    name = documents[0].file if documents else path
    if len(documents) != 1:
        raise FileInvalid(f"{name}: found {len(documents)} documents, allowed: one state")
    content = documents[0].content
    if isinstance(content, Mapping) and "kind" in content:
        raise FileInvalid(
            f"{name}: found a {content['kind']}, allowed: a state, which lists objects under "
            "nodes, pools, services and profiles"
        )
    try:
        return state_from_dict(content)
    except SpecInvalid as error:
        lines = str(error).replace("\n", "\n  ")
        raise FileInvalid(f"{name} is not a valid state:\n  {lines}") from error


def _read(path: str) -> bytes:
    if path == STDIN:
        return sys.stdin.buffer.read(MAX_FILE + 1)
    with open(path, "rb") as file:  # no stat: a pipe or <(...) has no size
        return file.read(MAX_FILE + 1)


def _refuse_bombs(text: str) -> None:
    """Look at the events before anything is built from them: builders recurse, and share what is aliased."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise _problem(event, "aliases (*name) are not supported: write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _problem(event, f"nested more than {MAX_DEPTH} deep")


class _OneValuePerKey(_Loader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _problem(key, f"{key.value[:64]!r} is written twice in one mapping")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _problem(where: yaml.Event | yaml.Node, text: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"{_place(where.start_mark)}: {text}")


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _place_and_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{_place(error.problem_mark)}: {error.problem}"
    return " ".join(str(error).split())
