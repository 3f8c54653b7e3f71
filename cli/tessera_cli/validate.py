"""``tessera validate``: check documents of every kind, and cluster states, and show all errors at once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from tessera_cli.files import STDIN, Document, FileInvalid, expand, read_documents
from tessera_cli.output import add_output_argument, emit, fail
from tessera_core.api import FieldError, SpecInvalid, decode
from tessera_core.plan import state_from_dict


@dataclass(frozen=True, slots=True)
class Checked:
    """One document, or a file that has none that can be read."""

    file: str
    document: int | None
    kind: str
    name: str
    errors: tuple[FieldError, ...]
    unreadable: str = ""

    @property
    def valid(self) -> bool:
        return not (self.errors or self.unreadable)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit code: 0 when every document is valid, 1 when one is not."
    parser.add_argument(
        "-f",
        "--file",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="YAML or JSON file, or a directory of them; - for standard input",
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.file.count(STDIN) > 1:
        return fail("validate", "-f: standard input can be read only once")
    try:
        checked = [each for path in expand(arguments.file) for each in check(path)]
    except (FileInvalid, OSError) as error:
        return fail("validate", str(error))
    emit(arguments.output, [_plain(each) for each in checked], lambda: _table(checked))
    return 0 if all(each.valid for each in checked) else 1


def check(path: str) -> list[Checked]:
    """What there is to say about every document of ``path``."""
    try:
        documents = read_documents(path)
    except FileInvalid as error:
        return [Checked(path, None, "", "", (), str(error))]
    if not documents:
        return [Checked(path, None, "", "", (), f"{path}: found no document")]
    return [_checked(document) for document in documents]


def _checked(document: Document) -> Checked:
    content = document.content if isinstance(document.content, dict) else {}
    metadata = content.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    errors: tuple[FieldError, ...] = ()
    try:
        if document.is_state:
            state_from_dict(document.content)
        else:
            decode(document.content)
    except SpecInvalid as error:
        errors = error.errors
    return Checked(
        file=document.file,
        document=document.position,
        kind="state" if document.is_state else _text(content.get("kind")),
        name=_text(name),
        errors=errors,
    )


def _text(value: object) -> str:
    return value[:253] if isinstance(value, str) else ""


def _plain(each: Checked) -> dict[str, Any]:
    found: dict[str, Any] = {
        "file": each.file,
        "document": each.document,
        "kind": each.kind,
        "name": each.name,
        "valid": each.valid,
        "errors": [
            {"path": error.path, "found": error.found, "allowed": error.allowed}
            for error in each.errors
        ],
    }
    return found | ({"unreadable": each.unreadable} if each.unreadable else {})


def _table(checked: list[Checked]) -> Table:
    lines = Table.grid()
    for each in checked:
        if each.unreadable:
            lines.add_row(Text(each.unreadable, style="red"))
            continue
        what = " ".join(filter(None, (each.kind, each.name)))
        head = f"{each.file} (document {each.document}){': ' if what else ''}{what}: "
        verdict = ("ok", "green") if each.valid else (_count(each.errors), "red")
        lines.add_row(Text.assemble(head, verdict))
        for error in each.errors:
            lines.add_row(Text(f"  {error}"))
    return lines


def _count(errors: tuple[FieldError, ...]) -> str:
    return "1 error" if len(errors) == 1 else f"{len(errors)} errors"
